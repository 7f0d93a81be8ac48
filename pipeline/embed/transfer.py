"""Waveforms to the device and features off it, on streams of their own, so that the model waits for neither.

On CUDA a batch is copied from pinned memory at once, and what leaves it is gathered into one buffer, copied to
pinned memory and only looked at when the next batch is on its way. On a processor nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Departure:
    """Features on their way to the host.

    Args:
        pieces: On a processor the features themselves.
        buffer: On CUDA all of them, row by row, then the sum of each row.
        arrived: Is recorded when the buffer is there.
        shapes: (num_frames, embed_dim) of each piece.
    """

    pieces: Sequence[Tensor]
    buffer: Tensor | None
    arrived: torch.cuda.Event | None
    shapes: Sequence[tuple[int, int]]

    def wait(self) -> list[tuple[np.ndarray, bool]]:
        """Return each piece as float32 (num_frames, embed_dim), and whether all its values are finite.

        Raises:
            RuntimeError: The device failed meanwhile.
        """
        if self.buffer is None:
            return [(piece.numpy(), is_finite(piece)) for piece in self.pieces]
        if self.arrived is not None:
            self.arrived.synchronize()
        found, row = [], 0
        values = self.buffer.numpy()
        num_rows = sum(num_frames for num_frames, _ in self.shapes)
        first, sums = 0, values[len(values) - num_rows :]
        for num_frames, embed_dim in self.shapes:
            piece = values[first : first + num_frames * embed_dim].reshape(num_frames, embed_dim)
            # A sum is finite where all that it is of is; so is a mean.
            found.append((piece, bool(np.isfinite(sums[row : row + num_frames]).all())))
            first, row = first + piece.size, row + num_frames
        return found


class Transfer:
    """Copies between the host and one device.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # A tensor may claim to be on CUDA where there is none: the tests follow it so through the model.
        self.is_real = device.type == "cuda" and torch.cuda.is_available()
        self._inward: torch.cuda.Stream | None
        self._outward: torch.cuda.Stream | None
        self._inward, self._outward = (
            (torch.cuda.Stream(device), torch.cuda.Stream(device)) if self.is_real else (None, None)  # type: ignore[no-untyped-call]
        )

    def load(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Copy waveforms to the device at once, those of equal lengths that follow each other as one tensor.

        Args:
            waveforms: float32, (num_samples,) each.

        Returns:
            Tensors (number of equal lengths, num_samples).
        """
        flat = self._copy_in(waveforms)
        runs: list[list[int]] = []
        for waveform in waveforms:
            if runs and runs[-1][1] == len(waveform):
                runs[-1][0] += 1
            else:
                runs.append([1, len(waveform)])
        return [
            part.view(count, length)
            for part, (count, length) in zip(
                flat.split([count * length for count, length in runs]),  # type: ignore[no-untyped-call]
                runs,
                strict=True,
            )
        ]

    def take_off(self, pieces: Sequence[Tensor]) -> Departure:
        """Send features to the host.

        Args:
            pieces: float32, (num_frames, embed_dim) each, all of one width.
        """
        shapes = [(piece.shape[0], piece.shape[1]) for piece in pieces]
        if self.device.type == "cpu" or not pieces:
            return Departure(pieces, None, None, shapes)
        num_rows, embed_dim = sum(rows for rows, _ in shapes), shapes[0][1]
        flat = torch.empty(num_rows * embed_dim + num_rows, device=self.device)
        rows = flat[: num_rows * embed_dim].view(num_rows, embed_dim)
        torch.cat(list(pieces), out=rows)
        torch.sum(rows, dim=1, out=flat[num_rows * embed_dim :])
        if self._outward is None:
            return Departure([], flat.cpu(), None, shapes)
        self._outward.wait_stream(torch.cuda.current_stream(self.device))
        landing = torch.empty(flat.shape, pin_memory=True)
        with torch.cuda.stream(self._outward):
            landing.copy_(flat, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record(self._outward)
        flat.record_stream(self._outward)
        return Departure([], landing, arrived, shapes)

    def _copy_in(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        if self._inward is None:
            return torch.from_numpy(np.concatenate(waveforms)).to(self.device)
        buffer = torch.empty(sum(map(len, waveforms)), pin_memory=True)
        np.concatenate(waveforms, out=buffer.numpy())
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._inward):
            flat = buffer.to(self.device, non_blocking=True)
        current.wait_stream(self._inward)
        flat.record_stream(current)
        return flat


def is_finite(values: Tensor) -> bool:
    """Say whether all values are finite: their sum is, unless it overflows, so that one pass mostly tells."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
