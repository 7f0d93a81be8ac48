"""Few shapes for many lengths: what cuDNN prepares for each new shape costs more than the computation.

On an H200 (benchmarks/RESULTS.md) the first call with a shape took 3 to 8 ms for each convolution of the front
end, 250 ms for a depthwise one and 65 ms for cuDNN's attention, the next one tenths of a millisecond, and tracks
have all lengths. So convolutions get inputs padded with zeros, as they pad themselves, to one of few widths: what
is beyond an input's end is zero before each of them, and cut off at last. Nothing changes but the count of shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Windows of 6, 12, 24 and 30 s are multiples of both: their width is not padded.
MEL_STEP = 60  # mel frames: 50 widths up to 30 s
FRAME_STEP = 150  # frames at 25 Hz: 5 widths up to 30 s
_FEW = 8  # batches beyond so many come in multiples of it, fewer in powers of two


def count_padded(num_mel: int) -> int:
    """Return how many mel frames ``pad_mel`` makes of so many."""
    return num_mel + -num_mel % MEL_STEP


def pad_mel(mel: Tensor) -> Tensor:
    """Pad (B, n_mels, T) with zeros to a multiple of ``MEL_STEP`` frames."""
    missing = count_padded(mel.shape[2]) - mel.shape[2]
    return F.pad(mel, (0, missing)) if missing else mel


def clear_beyond(x: Tensor, num_frames: int) -> Tensor:
    """Set what is beyond so many frames of (B, C, H, T) to zero, in place; return the same tensor."""
    if x.shape[3] > num_frames:
        x[..., num_frames:].zero_()
    return x


def pad_frames(x: Tensor) -> Tensor:
    """Pad (B, T, C) with zeros to a multiple of ``FRAME_STEP`` frames, and to one of few batch sizes."""
    batch_size, num_frames = x.shape[:2]
    many = 1 << (batch_size - 1).bit_length() if batch_size <= _FEW else batch_size + -batch_size % _FEW
    missing = -num_frames % FRAME_STEP
    if missing or many > batch_size:
        return F.pad(x, (0, 0, 0, missing, 0, many - batch_size))
    return x


_SWITCH = threading.RLock()  # PyTorch's own is process-wide


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Do not leave attention on CUDA to cuDNN inside the block, where another kernel may take its place.

    For inference, where lengths vary: the kernel that is next takes 0.15 ms for 16 windows, cuDNN's 0.11, which is
    a hundredth of the model's time; and 0.1 ms for a new length, cuDNN's 65.
    """
    cuda: Any = torch.backends.cuda
    with _SWITCH:
        others = cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled()
        before = cuda.cudnn_sdp_enabled()
        cuda.enable_cudnn_sdp(before and not others)
        try:
            yield
        finally:
            cuda.enable_cudnn_sdp(before)
