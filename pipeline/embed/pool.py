"""Pooling: 25 Hz frames of a track to any resolution, as adaptive average pooling over time does.

At r Hz, bin i is the mean of frames floor(i * 25 / r) … ceil((i + 1) * 25 / r) - 1, clipped at the track's T
frames, and there are ceil(T * r / 25) bins: the grid of ``torch.nn.AdaptiveAvgPool1d`` wherever T * r / 25 is
whole, and independent of the track's length everywhere else. At 50 Hz each frame stands twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import FRAME_RATE_HZ, Resolution

FRAMES_PER_CHUNK = 4096  # bounds what is there twice of a long track: an hour at 50 Hz is 0.7 GB


def count_bins(num_frames: int, frame_rate_hz: float) -> int:
    """Return how many bins a track of this many 25 Hz frames has at another rate."""
    return math.ceil(num_frames * Fraction(frame_rate_hz) / Fraction(FRAME_RATE_HZ))


def count_pooled(num_frames: int, resolution: Resolution, frame_rate_hz: float | None = FRAME_RATE_HZ) -> int:
    """Return how many vectors ``pool_frames`` gives of so many frames."""
    if resolution.frame_rate_hz == frame_rate_hz:
        return num_frames
    return 1 if resolution.frame_rate_hz is None else count_bins(num_frames, resolution.frame_rate_hz)


def count_repeats(resolution: Resolution, frame_rate_hz: float | None = FRAME_RATE_HZ) -> int:
    """Return how many bins each frame is on its own, such as 2 at 50 Hz; 1 where bins are averages, or frames."""
    if resolution.frame_rate_hz is None or frame_rate_hz != FRAME_RATE_HZ:
        return 1
    bins_per_frame = Fraction(resolution.frame_rate_hz) / Fraction(FRAME_RATE_HZ)
    return bins_per_frame.numerator if bins_per_frame.denominator == 1 else 1


def pool_frames(frames: Tensor, resolution: Resolution, frame_rate_hz: float | None = FRAME_RATE_HZ) -> Tensor:
    """Pool a track's frames over time.

    Args:
        frames: Shape (num_frames, embed_dim), any floating dtype, any device; at least one frame.
        resolution: The resolution to pool to.
        frame_rate_hz: Of the frames: 25, or the resolution's own where they are pooled already.

    Returns:
        float32, shape (num_bins, embed_dim); (1, embed_dim) for the global vector.
    """
    return torch.cat(list(pool_in_chunks(frames, resolution, frame_rate_hz)))


def pool_in_chunks(
    frames: Tensor,
    resolution: Resolution,
    frame_rate_hz: float | None = FRAME_RATE_HZ,
    start_bin: int = 0,
    stop_bin: int | None = None,
) -> Iterator[Tensor]:
    """Pool as ``pool_frames`` does, a few bins at a time, so that a long track's features need not be there twice.

    Args:
        frames: As for ``pool_frames``.
        resolution: The resolution to pool to.
        frame_rate_hz: As for ``pool_frames``.
        start_bin: Leave out the bins before this one.
        stop_bin: Leave out this bin and what comes after it; by default none.

    Yields:
        float32, shape (num_bins, embed_dim), one piece after the other in time.
    """
    frames = frames.float()
    if resolution.frame_rate_hz == frame_rate_hz:
        yield from torch.split(frames[start_bin:stop_bin], FRAMES_PER_CHUNK)
        return
    if resolution.frame_rate_hz is None:
        yield frames.mean(dim=0, keepdim=True)
        return
    num_frames = frames.shape[0]
    num_bins = count_bins(num_frames, resolution.frame_rate_hz)
    stop_bin = num_bins if stop_bin is None else min(stop_bin, num_bins)
    frames_per_bin = Fraction(FRAME_RATE_HZ) / Fraction(resolution.frame_rate_hz)
    # Integer arithmetic: 25 / 16 has no exact float32, and an edge that slips by one frame is another bin.
    numerator, denominator = frames_per_bin.numerator, frames_per_bin.denominator
    # On the host, which need not wait for a device to know how many rows there are.
    bins = np.arange(start_bin, stop_bin)
    starts = bins * numerator // denominator
    stops = np.minimum(-(-(bins + 1) * numerator // denominator), num_frames)
    bins_per_chunk = FRAMES_PER_CHUNK // math.ceil(frames_per_bin + 1)  # a bin may touch one frame more
    for first in range(0, len(bins), bins_per_chunk):
        chunk = slice(first, first + bins_per_chunk)
        yield average_spans(frames, starts[chunk], stops[chunk])


def average_spans(frames: Tensor, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Tensor:
    """Average spans of rows, each on its own.

    Args:
        frames: float32, shape (num_frames, embed_dim), on any device.
        starts: Shape (num_spans,): first row of each span.
        stops: Shape (num_spans,): the row after its last.

    Returns:
        float32, shape (num_spans, embed_dim).
    """
    widths = stops - starts
    offsets = widths.cumsum(0) - widths
    rows = np.arange(int(widths.sum())) + np.repeat(starts - offsets, widths)
    both = torch.from_numpy(np.concatenate([rows, offsets]))
    if frames.is_cuda and torch.cuda.is_available():
        both = both.pin_memory()
    index = both.to(frames.device, non_blocking=True)
    return F.embedding_bag(index[: len(rows)], frames, index[len(rows) :], mode="mean")
