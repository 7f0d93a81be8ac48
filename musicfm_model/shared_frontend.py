"""The front end once over a track, for windows that cover it several times.

A frame of the front end sees a small neighbourhood, statistics are the same everywhere, and windows start on the
grid of frames: inside a window its frames are those of the track. Only near the window's own edges, where the STFT
reflects and the convolutions pad with zeros, they are others; those few are computed from short excerpts.

All positions along time are multiples of a hop (240 samples) or of a frame (4 hops). With a kernel of k and a
stride of s, a layer reaches (k - 1) / 2 of its input steps to either side, and multiplies the step by s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musicfm_model.constants import HOP_LENGTH, MEL_FRAMES_PER_TOKEN, N_FFT, SAMPLES_PER_TOKEN
from musicfm_model.model import MusicFM25Hz

STRETCH_FRAMES = 750  # 30 s: a track is taken in such stretches, so that a long one needs no more memory

_CONVOLUTIONS = ((3, 2), (3, 1)) * 2  # kernel and stride along time of the longest path through the two blocks


def _count_reach() -> int:
    """Return how many mel frames the two blocks see on either side of the one that a frame lies on."""
    reach, step = 0, 1
    for kernel, stride in _CONVOLUTIONS:
        reach += kernel // 2 * step
        step *= stride
    assert step == MEL_FRAMES_PER_TOKEN
    return reach


REACH_MEL = _count_reach()  # 1 + 2 + 2 + 4 = 9
REACH_SAMPLES = REACH_MEL * HOP_LENGTH + N_FFT // 2  # a mel frame sees half an FFT on either side
_HALO_FRAMES = -(-REACH_MEL // MEL_FRAMES_PER_TOKEN)  # whole frames, so that an excerpt keeps the strides' grid
_HALO_HOPS = -(-(N_FFT // 2) // HOP_LENGTH)  # mel frames at an excerpt's beginning that reflection spoils


@dataclass(frozen=True)
class Crop:
    """How frames come out of an excerpt: excerpts of equal crops can share a batch.

    Args:
        num_samples: Length of the excerpt.
        first_mel: First of the excerpt's mel frames that is as in the whole.
        stop_mel: The one after the last that is needed.
        first_frame: First frame wanted, counted from ``first_mel``.
        num_frames: How many from there on.
    """

    num_samples: int
    first_mel: int
    stop_mel: int
    first_frame: int
    num_frames: int


@dataclass(frozen=True)
class Excerpt:
    """Samples of a track that some frames follow from, exactly.

    Args:
        start_sample: Where it begins in the track.
        crop: Its length and how its frames come out of it.
    """

    start_sample: int
    crop: Crop


@dataclass(frozen=True)
class WindowParts:
    """What a window's frames are put together from.

    Args:
        first_frame: First frame of the track that the window shares.
        stop_frame: The one after the last.
        before: Excerpt of the frames before them, if any.
        after: Excerpt of the frames after them, if any.
    """

    first_frame: int
    stop_frame: int
    before: Excerpt | None
    after: Excerpt | None


def count_frames(num_samples: int) -> int:
    """Return how many frames an input of this many samples has."""
    return -(-(num_samples // HOP_LENGTH) // MEL_FRAMES_PER_TOKEN)


def plan_excerpt(start_sample: int, num_samples: int, first_frame: int, stop_frame: int) -> Excerpt:
    """Find the samples that some frames of an input need.

    Args:
        start_sample: Where the input, a window or the track itself, begins in the track.
        num_samples: Its length.
        first_frame: First frame wanted, counted from the input's beginning.
        stop_frame: The one after the last.
    """
    halo_frame = max(0, first_frame - _HALO_FRAMES)
    first_mel = halo_frame * MEL_FRAMES_PER_TOKEN
    last_mel = (stop_frame - 1) * MEL_FRAMES_PER_TOKEN + REACH_MEL
    stop_mel = min(num_samples // HOP_LENGTH, last_mel + 1)
    start_hop = max(0, first_mel - _HALO_HOPS)
    # Cut where the last mel frame ends; nearer to the input's end than that, its reflection is part of the result.
    start, stop = start_hop * HOP_LENGTH, min(num_samples, last_mel * HOP_LENGTH + N_FFT // 2)
    return Excerpt(
        start_sample + start,
        Crop(
            num_samples=stop - start,
            first_mel=first_mel - start_hop,
            stop_mel=stop_mel - start_hop,
            first_frame=first_frame - halo_frame,
            num_frames=stop_frame - first_frame,
        ),
    )


def plan_stretches(num_samples: int) -> list[Excerpt]:
    """Cut a track into excerpts whose frames, one after the other, are the track's."""
    num_frames = count_frames(num_samples)
    return [
        plan_excerpt(0, num_samples, first, min(num_frames, first + STRETCH_FRAMES))
        for first in range(0, num_frames, STRETCH_FRAMES)
    ]


def plan_window(track_samples: int, start_sample: int, num_samples: int) -> WindowParts:
    """Say which of a window's frames are the track's, and where the others come from.

    Args:
        track_samples: Length of the track.
        start_sample: Where the window begins, a multiple of 960.
        num_samples: Its length.
    """
    num_frames = count_frames(num_samples)
    num_before = min(num_frames, -(-REACH_SAMPLES // SAMPLES_PER_TOKEN)) if start_sample else 0
    stop = num_frames
    if start_sample + num_samples < track_samples:
        stop = max(num_before, min(num_frames, (num_samples - REACH_SAMPLES) // SAMPLES_PER_TOKEN + 1))
    first_frame = start_sample // SAMPLES_PER_TOKEN
    return WindowParts(
        first_frame + num_before,
        first_frame + stop,
        plan_excerpt(start_sample, num_samples, 0, num_before) if num_before else None,
        plan_excerpt(start_sample, num_samples, stop, num_frames) if stop < num_frames else None,
    )


def is_sharing_cheaper(track_samples: int, windows: Sequence[tuple[int, int]]) -> bool:
    """Say whether one pass over the track and its windows' edges costs less than all windows on their own.

    Cost is counted in mel frames that go through the convolutions, without what ``gpu/shapes.py`` adds to edges.

    Args:
        track_samples: Length of the track.
        windows: Start and length of each window in samples, all different.
    """
    parts = [plan_window(track_samples, *window) for window in windows]
    edges = {edge for part in parts for edge in (part.before, part.after) if edge}
    crops = [excerpt.crop for excerpt in (*plan_stretches(track_samples), *edges)]
    shared = sum(crop.stop_mel - crop.first_mel for crop in crops)
    return shared < sum(num_samples // HOP_LENGTH for _, num_samples in windows)


def encode_excerpts(model: MusicFM25Hz, mel: Tensor, crop: Crop) -> Tensor:
    """Run the convolutions over excerpts.

    Args:
        model: The model.
        mel: (B, n_mels, crop.stop_mel - crop.first_mel) of ``model.compute_mel``, cut to the crop.
        crop: Of all of them, from its first mel frame on.

    Returns:
        (B, crop.num_frames, embed_dim) in the model's dtype: hidden state 0.
    """
    return model.encode_mel(mel)[:, crop.first_frame : crop.first_frame + crop.num_frames]


def join_window(track_frames: Tensor, parts: WindowParts, edges: dict[Excerpt, Tensor]) -> Tensor:
    """Put a window's frames together.

    Args:
        track_frames: (T, embed_dim), of the whole track.
        parts: From ``plan_window``.
        edges: Frames of its excerpts, (num_frames, embed_dim) each.

    Returns:
        (number of the window's frames, embed_dim).
    """
    before = [edges[parts.before]] if parts.before else []
    after = [edges[parts.after]] if parts.after else []
    return torch.cat([*before, track_frames[parts.first_frame : parts.stop_frame], *after])
