"""Which windows go through the model together: those whose mel frames are equal in number.

Log-mels are computed of each waveform on its own samples, so that clips a few milliseconds apart share a batch
and give what they give alone. Where convolutions are padded, it is with the zeros that they pad with themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from musicfm_model.gpu.shapes import count_padded
from pipeline.config import HOP_LENGTH, SAMPLE_RATE_HZ, SHARED_WINDOW_S
from pipeline.embed.track import FrontendInput, ModelInput

FULL_WINDOW_MEL = round(SHARED_WINDOW_S * SAMPLE_RATE_HZ) // HOP_LENGTH

Item = TypeVar("Item", FrontendInput, ModelInput)


def describe_shape(item: FrontendInput | ModelInput) -> Hashable:
    """Return what the members of a batch have in common."""
    if isinstance(item, ModelInput):
        return item.parts is None, item.num_frames if item.parts else item.num_mel, item.layers
    crop = item.excerpt.crop
    return item.num_mel, crop.first_mel, crop.first_frame, crop.num_frames


def count_mel(item: FrontendInput | ModelInput) -> int:
    """Return how much of a batch an item takes, padded; margins of a track's stretches do not shrink it."""
    return min(FULL_WINDOW_MEL, count_padded(item.num_mel))


def form_batches(items: Sequence[Item], batch_mel: Callable[[], int]) -> Iterator[list[Item]]:
    """Group items of one shape, in order, as many as have the mel frames of a full batch.

    Args:
        items: Of any shapes.
        batch_mel: Says what a full batch is, anew for each one: it may shrink on the way.
    """
    shapes: dict[Hashable, list[Item]] = {}
    for item in items:
        shapes.setdefault(describe_shape(item), []).append(item)
    for alike in shapes.values():
        start = 0
        while start < len(alike):
            size = max(1, batch_mel() // count_mel(alike[start]))
            yield alike[start : start + size]
            start += size
