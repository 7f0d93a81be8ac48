"""Embed: waveforms in, features of every wanted layer and window length out.

Frames stay on the device from the model through the stitching of windows. What leaves it is whichever is less:
the frames, from which writing pools every resolution, or what is pooled from them here. Each window length leaves
as soon as it is complete, so that a long track's frames are there for one length at a time; and it is waited for
only when the next batch is on its way, so that a GPU is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.model import MusicFM25Hz
from pipeline.config import (
    FRAME_RATE_HZ,
    RESOLUTIONS,
    Precision,
    Recipe,
    RunSettings,
    WindowPolicy,
    window_length_s,
)
from pipeline.embed.batch import FULL_WINDOW_MEL
from pipeline.embed.device import advise_precision, choose_batch_size, choose_device, require_cuda
from pipeline.embed.infer import Inference, describe_model_error
from pipeline.embed.pool import count_pooled, pool_frames
from pipeline.embed.rows import Features, build_rows, read_tracks
from pipeline.embed.track import ModelInput, Track, list_inputs
from pipeline.embed.transfer import Departure
from pipeline.errors import Reason, Stage, TrackError

BATCHES_PER_GROUP = 4  # tracks are taken in groups of at least so many batches, so that equal lengths meet
WINDOWS_PER_GROUP_ON_CUDA = 128  # and there of so many windows, so that few batches are not full


@dataclass(frozen=True)
class EmbedderSettings:
    """How to embed.

    Args:
        layers: Layer of each recipe id.
        windows: Window policy.
        precision: Arithmetic of the model.
        attention: Attention back end.
        device: Torch device.
        batch_size: 30 s windows in one call of the model; of shorter ones as many as last no longer together.
    """

    layers: Mapping[str, int]
    windows: WindowPolicy = "shared"
    precision: Precision = "float32"
    attention: str = "sdpa"
    device: str = "cpu"
    batch_size: int = 1


@dataclass(frozen=True)
class _Leaving:
    """Features of some tracks on their way off the device.

    Args:
        items: Track, "recipe/resolution" names and frame rate of each piece.
        departure: The pieces.
    """

    items: Sequence[tuple[Track, list[str], float | None]]
    departure: Departure


class Embedder:
    """The model on its device, fed with tracks.

    An embedding does not depend on its batch neighbours: only windows of equally many mel frames share a batch.

    Args:
        checkpoint: Weights and statistics.
        settings: How to embed.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EmbedderSettings) -> None:
        self.settings = settings
        self.model = MusicFM25Hz.for_inference(checkpoint, settings.device, settings.attention, settings.precision)
        self._inference = Inference(self.model, settings.batch_size)
        on_cuda = torch.device(settings.device).type == "cuda"
        self._windows_per_group = max(
            BATCHES_PER_GROUP * settings.batch_size, WINDOWS_PER_GROUP_ON_CUDA if on_cuda else 0
        )

    def check_device(self) -> None:
        """Run the model once.

        Raises:
            DeviceError: It does not run on its device.
        """
        self._inference.check_device()

    def embed_rows(
        self, decoded: pa.Table, model_lock: AbstractContextManager[Any] | None = None
    ) -> Iterator[pa.Table]:
        """Embed decoded rows, in order.

        Args:
            decoded: Rows of ``schema.DECODED``. Rows that failed, or that have no waveform because their
                content is unchanged, pass through.
            model_lock: What calls in several threads have the model under; tables are read and built beside it.

        Yields:
            Tables of ``schema.EMBEDDED``, each of the tracks that went through the model together. A track that
            the model cannot take carries its failure.

        Raises:
            DeviceError: The model no longer runs, whatever it is given.
        """
        tracks = read_tracks(decoded)
        first, inputs, num_mel = 0, list[ModelInput](), 0
        for stop, track in enumerate(tracks, start=1):
            found = self._list_inputs(track) if track else []
            inputs += found
            num_mel += sum(model_input.num_mel for model_input in found)
            if num_mel < self._windows_per_group * FULL_WINDOW_MEL and stop < len(tracks):
                continue
            features = self._embed_tracks(inputs, model_lock or nullcontext())
            group = tracks[first:stop]
            yield build_rows(
                decoded.slice(first, stop - first), group, [features.pop(id(each), ()) for each in group]
            )
            tracks[first:stop] = [None] * len(group)
            first, inputs, num_mel = stop, [], 0

    def embed_waveform(self, waveform: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Embed a single waveform.

        Args:
            waveform: float32, shape (num_samples,), mono at 24 kHz.
            wanted: "recipe/resolution" names.

        Returns:
            For each name float32 features of shape (num_frames, embed_dim).

        Raises:
            TrackError: The model cannot take it, or gives values that are not finite.
            DeviceError: The model no longer runs, whatever it is given.
        """
        track = Track(waveform, list(wanted))
        found = self._embed_tracks(self._list_inputs(track), nullcontext()).get(id(track), [])
        if track.error is not None:
            raise track.error
        features_of = {name: features for features in found for name in features.wanted}
        return {
            name: pool_frames(
                torch.from_numpy(features_of[name].values),
                RESOLUTIONS[name.split("/")[1]],
                features_of[name].frame_rate_hz,
            ).numpy()
            for name in wanted
        }

    def _list_inputs(self, track: Track) -> list[ModelInput]:
        """List the windows that a track's wanted features need, each with its layers."""
        layers: dict[float, set[int]] = {}
        for name in track.wanted:
            window_s, layer = self._source_of(name)
            layers.setdefault(window_s, set()).add(layer)
        return list_inputs(track, layers)

    def _source_of(self, name: str) -> tuple[float, int]:
        """Return the window length in seconds and the layer that a "recipe/resolution" is pooled from."""
        recipe, resolution = name.split("/")
        return window_length_s(RESOLUTIONS[resolution], self.settings.windows), self.settings.layers[recipe]

    def _embed_tracks(
        self, inputs: Sequence[ModelInput], model_lock: AbstractContextManager[Any]
    ) -> dict[int, list[Features]]:
        """Return features of tracks by their identity; tracks that cannot be embedded get an error, and none."""
        features: dict[int, list[Features]] = {}
        leaving: deque[_Leaving] = deque()
        with model_lock:
            for done in self._inference.run(inputs):
                leaving.append(self._take_off(done))
                if len(leaving) > 1:  # the batch after it is on its way
                    self._receive(leaving.popleft(), features)
        while leaving:
            self._receive(leaving.popleft(), features)
        return features

    @torch.inference_mode()
    def _take_off(self, done: Sequence[tuple[Track, float]]) -> _Leaving:
        """Send off the device what is wanted of tracks' frames of one window length each, and let go of them."""
        items: list[tuple[Track, list[str], float | None]] = []
        pieces: list[Tensor] = []
        for track, window_s in done:
            try:
                found = list(self._choose_pieces(track, window_s))
            except (RuntimeError, MemoryError) as error:  # the device has no room left to pool in
                track.error = self._inference.confirm(describe_model_error(error))
                continue
            items += [(track, wanted, frame_rate_hz) for wanted, frame_rate_hz, _ in found]
            pieces += [piece for _, _, piece in found]
        try:
            return _Leaving(items, self._inference.transfer.take_off(pieces))
        except (RuntimeError, MemoryError) as error:
            failure = self._inference.confirm(describe_model_error(error))
            for track, _, _ in items:
                track.error = failure
            return _Leaving([], self._inference.transfer.take_off([]))

    def _choose_pieces(self, track: Track, window_s: float) -> Iterator[tuple[list[str], float | None, Tensor]]:
        """Return names, frame rate and values of what leaves the device of a track's frames of a window length."""
        for source in [source for source in track.frames if source[0] == window_s]:
            wanted = [name for name in track.wanted if self._source_of(name) == source]
            yield from choose_pieces(track.frames.pop(source).float(), wanted)

    def _receive(self, leaving: _Leaving, features: dict[int, list[Features]]) -> None:
        """Wait for what left the device, and refuse tracks whose values are not finite."""
        try:
            arrived = leaving.departure.wait()
        except (RuntimeError, MemoryError) as error:  # a fault of the device shows when it is waited for
            failure = self._inference.confirm(describe_model_error(error))
            for track, _, _ in leaving.items:
                track.error = failure
            arrived = []
        for (track, wanted, frame_rate_hz), (values, is_finite) in zip(
            leaving.items, arrived, strict=bool(arrived)
        ):
            if not is_finite:
                track.error = TrackError(
                    Stage.EMBED,
                    Reason.NON_FINITE_EMBEDDING,
                    f"the model's output for {' and '.join(wanted)} has values that are not finite under "
                    f"precision {self.settings.precision}; try --precision float32",
                )
            features.setdefault(id(track), []).append(Features(wanted, frame_rate_hz, values))
        for track, _, _ in leaving.items:
            if track.error is not None:
                features.pop(id(track), None)


def choose_embedder_settings(recipes: Mapping[str, Recipe], settings: RunSettings) -> EmbedderSettings:
    """Return how a run embeds on this machine: what it leaves open, the device and the batch, is chosen here.

    Args:
        recipes: The run's recipes by id.
        settings: What to compute.

    Raises:
        DeviceError: A GPU is asked for that cannot be used.
    """
    device = settings.device or choose_device()
    if torch.device(device).type == "cuda":
        require_cuda()
        advise_precision(settings.precision)
    return EmbedderSettings(
        {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()},
        settings.windows,
        settings.precision,
        settings.attention,
        device,
        settings.batch_size or choose_batch_size(device, settings.precision),
    )


def choose_pieces(frames: Tensor, wanted: Sequence[str]) -> Iterator[tuple[list[str], float | None, Tensor]]:
    """Choose a track's frames, or all that is pooled from them where this is less to carry.

    Args:
        frames: float32, shape (num_frames, embed_dim), at 25 Hz, on any device.
        wanted: "recipe/resolution" names of all that is wanted of them.

    Yields:
        Names, frame rate (None for a global vector) and values.
    """
    resolutions = {name: RESOLUTIONS[name.split("/")[1]] for name in wanted}
    if sum(count_pooled(len(frames), resolution) for resolution in resolutions.values()) >= len(frames):
        yield list(resolutions), FRAME_RATE_HZ, frames
        return
    for name, resolution in resolutions.items():
        yield [name], resolution.frame_rate_hz, pool_frames(frames, resolution)
