"""Tracks on their way through the model: which windows of them it sees, and where their frames belong.

A track whose windows overlap, or cover it at several lengths, goes through the model's front end once, and each of
its windows through the Conformer alone. Where that is no cheaper, each window goes through the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from musicfm_model.shared_frontend import (
    STRETCH_FRAMES,
    Excerpt,
    WindowParts,
    count_frames,
    is_sharing_cheaper,
    join_window,
    plan_stretches,
    plan_window,
)
from pipeline.config import HOP_LENGTH
from pipeline.embed.window import plan_windows
from pipeline.errors import TrackError


@dataclass
class Track:
    """A track on its way through the model: frames of each window length gather here window by window.

    Args:
        waveform: float32, shape (num_samples,), mono at 24 kHz.
        wanted: "recipe/resolution" names.
    """

    waveform: np.ndarray
    wanted: list[str]
    frames: dict[tuple[float, int], Tensor] = field(default_factory=dict)  # by window length in s and layer
    error: TrackError | None = None
    shared: Tensor | None = None  # frames of the front end over the whole track
    edges: dict[Excerpt, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Destination:
    """Where a window's frames belong: the window length they were asked for, and the part that is kept."""

    window_s: float
    first_kept_frame: int
    num_kept_frames: int
    first_track_frame: int
    num_track_frames: int

    @property
    def ends_track(self) -> bool:
        """Whether these are the last frames of the track."""
        return self.first_track_frame + self.num_kept_frames == self.num_track_frames


@dataclass(frozen=True)
class ModelInput:
    """One window of one track, and the layers wanted of it."""

    track: Track
    start_sample: int
    num_samples: int
    layers: tuple[int, ...]
    destinations: tuple[Destination, ...]  # several where a track is shorter than several window lengths
    parts: WindowParts | None  # how to put it together where the track's front end has run

    @property
    def num_mel(self) -> int:
        """Its mel frames."""
        return self.num_samples // HOP_LENGTH

    @property
    def num_frames(self) -> int:
        """Its frames."""
        return count_frames(self.num_samples)

    @property
    def samples(self) -> np.ndarray:
        """Its samples."""
        return self.track.waveform[self.start_sample : self.start_sample + self.num_samples]


@dataclass(frozen=True)
class FrontendInput:
    """An excerpt of a track for the front end; a stretch of the track, or the edge of a window."""

    track: Track
    excerpt: Excerpt
    first_frame: int | None  # of the track; None for an edge

    @property
    def num_mel(self) -> int:
        """The mel frames that its convolutions see."""
        return self.excerpt.crop.stop_mel - self.excerpt.crop.first_mel

    @property
    def samples(self) -> np.ndarray:
        """Its samples."""
        start = self.excerpt.start_sample
        return self.track.waveform[start : start + self.excerpt.crop.num_samples]


def list_inputs(track: Track, layers: dict[float, set[int]]) -> list[ModelInput]:
    """List the different windows of a track.

    Args:
        track: The track.
        layers: Wanted layers by window length in seconds.
    """
    num_samples = len(track.waveform)
    destinations: dict[tuple[int, int], list[Destination]] = {}
    for window_s in layers:
        first_frame = 0
        windows = plan_windows(num_samples, window_s)
        num_frames = sum(window.num_kept_frames for window in windows)
        for window in windows:
            kept = window.first_kept_frame, window.num_kept_frames
            destination = Destination(window_s, *kept, first_frame, num_frames)
            destinations.setdefault((window.start_sample, window.num_samples), []).append(destination)
            first_frame += window.num_kept_frames
    shares = is_sharing_cheaper(num_samples, list(destinations))
    return [
        ModelInput(
            track,
            *window,
            tuple(sorted(set().union(*(layers[place.window_s] for place in places)))),
            tuple(places),
            plan_window(num_samples, *window) if shares else None,
        )
        for window, places in destinations.items()
    ]


def list_frontend_inputs(inputs: Sequence[ModelInput]) -> list[FrontendInput]:
    """List what the front end has to see of the tracks whose windows share it, each excerpt once."""
    tracks = {id(item.track): item.track for item in inputs if item.parts is not None}
    stretches = [
        FrontendInput(track, stretch, index * STRETCH_FRAMES)
        for track in tracks.values()
        for index, stretch in enumerate(plan_stretches(len(track.waveform)))
    ]
    edges = {
        (id(item.track), edge): FrontendInput(item.track, edge, None)
        for item in inputs
        if item.parts is not None
        for edge in (item.parts.before, item.parts.after)
        if edge is not None
    }
    return [*stretches, *edges.values()]


def join_frames(item: ModelInput) -> Tensor:
    """Put a window together from the frames of its track's front end: (T, embed_dim)."""
    assert item.parts is not None
    assert item.track.shared is not None
    return join_window(item.track.shared, item.parts, item.track.edges)


def keep_frames(item: ModelInput, layer: int, hidden_state: Tensor) -> None:
    """Put the kept frames of a window, (T, embed_dim), in their places in the track."""
    for place in item.destinations:
        source = place.window_s, layer
        kept = hidden_state[place.first_kept_frame : place.first_kept_frame + place.num_kept_frames]
        if place.num_kept_frames == place.num_track_frames:
            item.track.frames[source] = kept  # all there are: nothing to gather, so nothing is copied
            continue
        if source not in item.track.frames:
            item.track.frames[source] = hidden_state.new_empty(place.num_track_frames, hidden_state.shape[1])
        item.track.frames[source][place.first_track_frame : place.first_track_frame + len(kept)] = kept
