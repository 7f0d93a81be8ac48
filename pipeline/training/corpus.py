"""The corpus of a training run: log-mels of all tracks in half precision, one after the other in one file.

A folder with ``log_mels.f16`` (rows of ``n_mels`` little-endian halves, 100 a second) and ``tracks.json``. It is
mapped, not read: a corpus may be larger than memory. Half precision keeps a decibel to within 0.03.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from musicfm_model.log_mel import LogMel
from pipeline.config import HOP_LENGTH
from pipeline.errors import UsageError

ROWS_FILE, TRACKS_FILE = "log_mels.f16", "tracks.json"
TRAIN, HELD_OUT = "train", "held_out"
CHUNK_FRAMES = 6000  # a minute: bounds the memory of a long track's transform


@dataclass(frozen=True)
class Corpus:
    """Log-mels of tracks, and where each of them lies.

    Args:
        log_mels: (num_rows, n_mels) float16, in dB.
        track_ids: Names, in the order of the rows.
        groups: Of each track: its artist or package, which no two parts of the corpus may share.
        first_rows: (num_tracks,) int64, the row at which each begins.
        num_frames: (num_tracks,) int64, rows that each has.
    """

    log_mels: Tensor
    track_ids: list[str]
    groups: list[str]
    first_rows: Tensor
    num_frames: Tensor

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return float(self.num_frames.sum()) / 100

    def to(self, device: torch.device | str) -> Corpus:
        """Return the corpus with its rows on a device; what says where they lie stays on the CPU."""
        return replace(self, log_mels=self.log_mels.to(device))

    def measure_stats(self) -> tuple[float, float]:
        """Return mean and standard deviation of all values, in dB: the model's normalisation."""
        total, squares, count = 0.0, 0.0, 0
        for first, stop in self._list_spans():
            values = self.log_mels[first:stop].float()
            total += float(values.sum(dtype=torch.float64))
            squares += float(values.square().sum(dtype=torch.float64))
            count += values.numel()
        if not count:
            raise UsageError("expected a corpus with music in it, found no frames")
        mean = total / count
        return mean, max(squares / count - mean**2, 1e-12) ** 0.5

    def _list_spans(self) -> Iterator[tuple[int, int]]:
        for first, num in zip(self.first_rows.tolist(), self.num_frames.tolist(), strict=True):
            for start in range(first, first + num, CHUNK_FRAMES):
                yield start, min(start + CHUNK_FRAMES, first + num)


class CorpusWriter:
    """Writes a corpus track by track; it is there once ``close`` has returned.

    Args:
        folder: Made where it does not exist; a corpus in it is replaced.
        n_mels: Bands.
    """

    def __init__(self, folder: Path, n_mels: int = 128) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._n_mels = folder, n_mels
        self._tracks: list[dict[str, str | int]] = []
        self._rows: IO[bytes] = (folder / (ROWS_FILE + ".part")).open("wb")

    def add(self, track_id: str, log_mel: np.ndarray, group: str, part: str) -> None:
        """Append a track.

        Args:
            track_id: Its name.
            log_mel: (num_frames, n_mels) float16 in dB.
            group: Its artist or package.
            part: ``train`` or ``held_out``.
        """
        rows = np.ascontiguousarray(log_mel, dtype="<f2")
        if rows.ndim != 2 or rows.shape[1] != self._n_mels:
            raise ValueError(f"expected log-mels of {self._n_mels} bands, found shape {rows.shape}")
        self._rows.write(rows.tobytes())
        self._tracks.append({"track_id": track_id, "num_frames": len(rows), "group": group, "part": part})

    def close(self) -> None:
        """Put both files in place, whole."""
        self._rows.flush()
        os.fsync(self._rows.fileno())
        self._rows.close()
        (self._folder / TRACKS_FILE).unlink(missing_ok=True)
        os.replace(self._folder / (ROWS_FILE + ".part"), self._folder / ROWS_FILE)
        part = self._folder / (TRACKS_FILE + ".part")
        part.write_text(json.dumps({"n_mels": self._n_mels, "tracks": self._tracks}))
        os.replace(part, self._folder / TRACKS_FILE)


def open_corpus(folder: Path, part: str) -> Corpus:
    """Map one part of a corpus.

    Args:
        folder: Of a ``CorpusWriter`` that was closed.
        part: ``train`` or ``held_out``.

    Raises:
        UsageError: There is no whole corpus in the folder.
    """
    try:
        content = json.loads((folder / TRACKS_FILE).read_text())
        n_mels, tracks = content["n_mels"], content["tracks"]
        num_rows = sum(track["num_frames"] for track in tracks)
        rows = np.memmap(folder / ROWS_FILE, dtype="<f2", mode="c", shape=(num_rows, n_mels))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"expected a corpus of log-mels in {folder}, found none that is whole ({error})"
        ) from error
    ends = np.cumsum([track["num_frames"] for track in tracks])
    chosen = [index for index, track in enumerate(tracks) if track["part"] == part]
    num_frames = np.array([tracks[index]["num_frames"] for index in chosen], np.int64)
    return Corpus(
        torch.from_numpy(rows),
        [tracks[index]["track_id"] for index in chosen],
        [tracks[index]["group"] for index in chosen],
        torch.from_numpy(ends[chosen].astype(np.int64) - num_frames),
        torch.from_numpy(num_frames),
    )


def join_corpora(parts: Iterable[Corpus]) -> Corpus:
    """Return several corpora as one; their rows are copied."""
    parts = list(parts)
    offsets = np.cumsum([0, *(len(part.log_mels) for part in parts[:-1])])
    return Corpus(
        torch.cat([part.log_mels for part in parts]),
        [track_id for part in parts for track_id in part.track_ids],
        [group for part in parts for group in part.groups],
        torch.cat([part.first_rows + int(offset) for part, offset in zip(parts, offsets, strict=True)]),
        torch.cat([part.num_frames for part in parts]),
    )


@torch.inference_mode()
def compute_log_mel(transform: LogMel, waveform: Tensor) -> Tensor:
    """Return a waveform's log-mels as a corpus keeps them.

    Args:
        transform: On the waveform's device.
        waveform: (num_samples,) float32 at 24 kHz.

    Returns:
        (num_frames, n_mels) float16: those of the whole waveform, computed a minute at a time.
    """
    halo = 5  # frames: half an FFT is 4.27 hops, and a chunk's own reflection must not be seen
    num_frames = len(waveform) // HOP_LENGTH
    pieces = []
    for first in range(0, num_frames, CHUNK_FRAMES):
        start, stop = max(0, first - halo), min(num_frames, first + CHUNK_FRAMES)
        last = len(waveform) if stop == num_frames else (stop + halo) * HOP_LENGTH
        mel = transform(waveform[None, start * HOP_LENGTH : last])[0]
        pieces.append(mel[:, first - start : stop - start].T.half())
    return torch.cat(pieces) if pieces else waveform.new_empty(0, transform.n_mels, dtype=torch.float16)
