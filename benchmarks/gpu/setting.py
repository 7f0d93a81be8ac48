"""What is measured on, and with: the device, the sizes, a random checkpoint, and the clock."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from musicfm_model.precision import compute_dtype
from tests.checkpoints import write_random_checkpoint

PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
SMALL = ModelConfig(embed_dim=64, num_layers=3, num_heads=2, ffn_dim=96, conv_dim=16, codebook_size=64)
SECONDS_A_TIMING = 1.0  # a call is repeated for about so long
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """Where and with what a step measures.

    Args:
        device: Torch device; a rehearsal's is the processor.
        config: Sizes of the model.
        layer: The hidden state that is asked for.
        num_samples: Of a window.
        batch_size: Windows at once, where a step does not vary it.
        batch_sizes: Those that the throughput is measured at.
        matrix_size: Of the square matrices of the ceiling.
        num_clips: That the actor is given.
        reference: A checkout of the published code, a folder called ``musicfm``, or None.
        out: Where traces go.
    """

    device: torch.device
    config: ModelConfig
    layer: int
    num_samples: int
    batch_size: int
    batch_sizes: tuple[int, ...]
    matrix_size: int
    num_clips: int
    reference: Path | None
    out: Path

    @classmethod
    def choose(cls, reference: Path | None, out: Path, rehearse: bool) -> Setting:
        """Return the published size on the GPU, or where it is rehearsed a small one on the processor."""
        if rehearse:
            return cls(torch.device("cpu"), SMALL, 2, 24_000, 2, (1, 2, 2, 2), 64, 4, reference, out)
        sizes = (1, 4, 8, 16, 21, 32)
        return cls(torch.device("cuda"), ModelConfig(), 7, 720_000, 16, sizes, 8192, 512, reference, out)

    @property
    def is_gpu(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    @property
    def window_tflop(self) -> float:
        """Operations of a 30 s window, 10¹² of them."""
        return count_window_tflop(self.config, self.layer)

    @cached_property
    def checkpoint_path(self) -> Path:
        """A random checkpoint of the published form."""
        path = Path(tempfile.mkdtemp(prefix="musicfm-gpu-")) / "random.pt"
        write_random_checkpoint(path, self.config, seed=0)
        return path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The same, loaded."""
        return load_checkpoint(str(self.checkpoint_path))

    def draw_waveforms(self, num_windows: int) -> Tensor:
        """Return random windows on the device, (num_windows, num_samples)."""
        generator = torch.Generator(self.device).manual_seed(num_windows)
        return 0.1 * torch.randn(num_windows, self.num_samples, device=self.device, generator=generator)

    def draw(self, *shape: int, precision: str = "float32") -> Tensor:
        """Return a random tensor on the device, in the dtype of a precision."""
        return torch.randn(*shape, device=self.device).to(compute_dtype(precision))

    def time(self, call: Callable[[], Any], seconds: float = SECONDS_A_TIMING) -> float:
        """Return the median seconds of a call, after two that warm it up; a rehearsal calls it once."""
        if not self.is_gpu:
            return self._time_once(call)
        for _ in range(2):
            call()
        self.wait()
        taken_s: list[float] = []
        while len(taken_s) < MIN_ROUNDS or (sum(taken_s) < seconds and len(taken_s) < 100):
            taken_s.append(self._time_once(call))
        return sorted(taken_s)[len(taken_s) // 2]

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def _time_once(self, call: Callable[[], Any]) -> float:
        if not self.is_gpu:
            start_s = time.perf_counter()
            call()
            return time.perf_counter() - start_s
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


@contextmanager
def cudnn_tries(tries: bool) -> Iterator[None]:
    """Let cuDNN choose each convolution's algorithm by trying all (or by its rules), inside the block."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tries
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
