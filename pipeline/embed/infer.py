"""Infer: windows of tracks through the model, hidden states out, batched by length.

A track whose windows overlap, or cover it at several lengths, goes through the model's front end once, and each of
its windows through the Conformer alone. Where that is no cheaper, each window goes through the whole model.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from musicfm_model.model import MusicFM25Hz
from musicfm_model.shared_frontend import (
    STRETCH_FRAMES,
    Excerpt,
    WindowParts,
    count_frames,
    encode_excerpts,
    encode_frames,
    is_sharing_cheaper,
    join_window,
    plan_stretches,
    plan_window,
)
from pipeline.config import HOP_LENGTH, SAMPLE_RATE_HZ, SHARED_WINDOW_S
from pipeline.embed.window import plan_windows
from pipeline.errors import DeviceError, Reason, Stage, TrackError

FULL_WINDOW_SAMPLES = round(SHARED_WINDOW_S * SAMPLE_RATE_HZ)


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


@dataclass(frozen=True)
class _FrontendInput:
    """An excerpt of a track for the front end; a stretch of the track, or the edge of a window."""

    track: Track
    excerpt: Excerpt
    first_frame: int | None  # of the track; None for an edge


_Item = TypeVar("_Item", _FrontendInput, ModelInput)


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


class Inference:
    """Batches of windows through one model.

    Only windows of exactly equal length share a batch, so hidden states do not depend on batch neighbours.

    Args:
        model: The model.
        batch_size: 30 s windows in one call of the model; of shorter ones as many as last no longer together.
    """

    def __init__(self, model: MusicFM25Hz, batch_size: int) -> None:
        self.model = model
        self.device = model.linear.weight.device
        self.batch_samples = batch_size * FULL_WINDOW_SAMPLES

    def run(self, inputs: Sequence[ModelInput]) -> Iterator[tuple[Track, float]]:
        """Run all windows of some tracks; their frames gather in ``Track.frames``.

        Args:
            inputs: From ``list_inputs``, all those of a track one after the other.

        Yields:
            A track and a window length in seconds as soon as all its frames are there. A track that the model
            cannot take gets an error instead.
        """
        frontend_inputs = _list_frontend_inputs(inputs)
        for excerpts in self._batch(frontend_inputs, lambda item: item.excerpt.crop, _count_excerpt_samples):
            self._run_batch(excerpts, self._encode)
        for windows in self._batch(inputs, _describe_shape, lambda item: item.num_samples):
            self._run_batch(windows, self._compute_hidden_states)
            for model_input in windows:
                if model_input.track.error is None:
                    yield from ((model_input.track, d.window_s) for d in model_input.destinations if d.ends_track)
        for model_input in inputs:
            model_input.track.shared = None
            model_input.track.edges.clear()
            if model_input.track.error is not None:
                model_input.track.frames.clear()

    def _batch(
        self, items: Sequence[_Item], key: Callable[[_Item], Hashable], size: Callable[[_Item], int]
    ) -> Iterator[list[_Item]]:
        """Group items of equal key, in order, as many as have the samples of a full batch."""
        batches: dict[Hashable, list[_Item]] = {}
        for item in items:
            batches.setdefault(key(item), []).append(item)
        for batch in batches.values():
            length = max(1, self.batch_samples // size(batch[0]))
            yield from (batch[start : start + length] for start in range(0, len(batch), length))

    def _run_batch(self, batch: list[_Item], compute: Callable[[list[_Item]], None]) -> None:
        """Run one batch; where the device refuses it, its halves, down to the single item that fails alone."""
        batch = [item for item in batch if item.track.error is None]
        if not batch:
            return
        failure = _try(compute, batch)
        if failure is None:
            return
        if failure.reason is Reason.OUT_OF_MEMORY:
            torch.cuda.empty_cache()
        if len(batch) == 1:
            batch[0].track.error = self.confirm(failure)
            return
        half = len(batch) // 2
        self._run_batch(batch[:half], compute)
        self._run_batch(batch[half:], compute)

    def confirm(self, failure: TrackError) -> TrackError:
        """Return the failure of a track that was refused alone, once it is sure that the device is not to blame.

        Raises:
            DeviceError: It is.
        """
        if failure.reason is not Reason.OUT_OF_MEMORY:
            self.check_device()
        return failure

    def check_device(self) -> None:
        """Run a second of nothing in particular through the model.

        A GPU that has once failed refuses all that its process asks of it from then on, and one that the
        installed kernels do not fit does so from the start. Neither is to be taken for a failure of the tracks.

        Raises:
            DeviceError: The model does not run.
        """
        try:
            with torch.inference_mode():
                waveform = torch.linspace(-0.1, 0.1, SAMPLE_RATE_HZ, device=self.device)[None]
                self.model.get_hidden_states(waveform, (1,))[1].sum().item()
        except (RuntimeError, MemoryError) as error:
            where = f"{self.device} of {socket.gethostname()}"
            raise DeviceError(f"the model does not run on {where}: {_name_error(error)}") from None

    @torch.inference_mode()
    def _encode(self, batch: list[_FrontendInput]) -> None:
        excerpts = [(item.track, item.excerpt.start_sample, item.excerpt.crop.num_samples) for item in batch]
        encoded = encode_excerpts(self.model, self._load(excerpts), batch[0].excerpt.crop)
        for item, frames in zip(batch, encoded, strict=True):
            if item.first_frame is None:
                item.track.edges[item.excerpt] = frames
                continue
            if item.track.shared is None:
                num_frames = count_frames(len(item.track.waveform))
                item.track.shared = frames.new_empty(num_frames, frames.shape[1])
            item.track.shared[item.first_frame : item.first_frame + len(frames)] = frames

    @torch.inference_mode()
    def _compute_hidden_states(self, batch: list[ModelInput]) -> None:
        layers = batch[0].layers
        if batch[0].parts is None:
            waveforms = self._load([(item.track, item.start_sample, item.num_samples) for item in batch])
            hidden_states = self.model.get_hidden_states(waveforms, layers)
        else:
            hidden_states = encode_frames(self.model, torch.stack([_join(item) for item in batch]), layers)
        for index, item in enumerate(batch):
            for layer in layers:
                _keep(item, layer, hidden_states[layer][index])

    def _load(self, excerpts: Sequence[tuple[Track, int, int]]) -> Tensor:
        """Copy excerpts of tracks (start and length in samples) to the device: (B, num_samples) float32."""
        on_gpu = self.device.type == "cuda"  # which reads pinned memory itself, while this thread goes on
        waveforms = torch.empty(len(excerpts), excerpts[0][2], pin_memory=on_gpu)
        samples = [track.waveform[start : start + length] for track, start, length in excerpts]
        np.stack(samples, out=waveforms.numpy())
        return waveforms.to(self.device, non_blocking=on_gpu)


def _try(compute: Callable[[list[_Item]], None], batch: list[_Item]) -> TrackError | None:
    """Run a batch; return why the device refuses it.

    The error itself is let go of: it holds all that the model had computed, which is to be free for what follows.
    """
    try:
        compute(batch)
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all that a device refuses
        return describe_model_error(error)
    return None


def _list_frontend_inputs(inputs: Sequence[ModelInput]) -> list[_FrontendInput]:
    """List what the front end has to see of the tracks whose windows share it, each excerpt once."""
    tracks = {id(item.track): item.track for item in inputs if item.parts is not None}
    stretches = [
        _FrontendInput(track, stretch, index * STRETCH_FRAMES)
        for track in tracks.values()
        for index, stretch in enumerate(plan_stretches(len(track.waveform)))
    ]
    edges = {
        (id(item.track), edge): _FrontendInput(item.track, edge, None)
        for item in inputs
        if item.parts is not None
        for edge in (item.parts.before, item.parts.after)
        if edge is not None
    }
    return [*stretches, *edges.values()]


def _count_excerpt_samples(item: _FrontendInput) -> int:
    """Return the length of what the convolutions see: margins of a track's stretches do not shrink a batch."""
    return min(FULL_WINDOW_SAMPLES, (item.excerpt.crop.stop_mel - item.excerpt.crop.first_mel) * HOP_LENGTH)


def _describe_shape(item: ModelInput) -> Hashable:
    """Return what windows of a batch have in common."""
    return item.parts is None, item.num_samples, item.layers


def _join(item: ModelInput) -> Tensor:
    assert item.parts is not None
    assert item.track.shared is not None
    return join_window(item.track.shared, item.parts, item.track.edges)


def _keep(item: ModelInput, layer: int, hidden_state: Tensor) -> None:
    """Copy a window's kept frames to their places in the track."""
    for place in item.destinations:
        source = place.window_s, layer
        if source not in item.track.frames:
            item.track.frames[source] = hidden_state.new_empty(place.num_track_frames, hidden_state.shape[1])
        kept = hidden_state[place.first_kept_frame : place.first_kept_frame + place.num_kept_frames]
        item.track.frames[source][place.first_track_frame : place.first_track_frame + len(kept)] = kept


def describe_model_error(error: Exception) -> TrackError:
    """Return the failure of a track that a device refused, taken alone."""
    out_of_memory = (
        isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error).lower()
    )
    reason = Reason.OUT_OF_MEMORY if out_of_memory else Reason.EMBED_FAILED
    return TrackError(Stage.EMBED, reason, f"the model failed on this track alone: {_name_error(error)}")


def _name_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
