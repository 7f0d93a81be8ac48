"""Embed: waveforms in, features of every wanted layer and window length out.

Frames stay on the device from the model through the stitching of windows. What leaves it is whichever is less:
the frames, from which writing pools every resolution, or what is pooled from them here. Each window length leaves
as soon as it is complete, so that a long track's frames are there for one length at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from pipeline.embed.infer import (
    FULL_WINDOW_SAMPLES,
    Inference,
    ModelInput,
    Track,
    describe_model_error,
    list_inputs,
)
from pipeline.embed.pool import FRAMES_PER_CHUNK, count_pooled, pool_frames
from pipeline.embed.window import plan_windows
from pipeline.errors import Reason, Stage, TrackError
from pipeline.schema import EMBEDDED, FEATURES

MODEL_BATCHES_PER_GROUP = 4  # tracks are taken in groups of so many batches, so that equal lengths meet


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
class _Row:
    """A decoded row, its track where there is something to embed, and the windows that this takes."""

    row: pa.Table
    track: Track | None
    inputs: list[ModelInput]


@dataclass(frozen=True)
class Features:
    """Some of a track's features on their way to the store: an item of ``schema.FEATURES``.

    Args:
        wanted: "recipe/resolution" names of all that is pooled from the values.
        frame_rate_hz: Of the values: 25, or where they are pooled already that of what is wanted, None if global.
        values: float32, shape (num_frames, embed_dim).
    """

    wanted: list[str]
    frame_rate_hz: float | None
    values: np.ndarray


class Embedder:
    """The model on its device, fed with tracks.

    An embedding does not depend on its batch neighbours: only windows of exactly equal length share a batch.

    Args:
        checkpoint: Weights and statistics.
        settings: How to embed.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EmbedderSettings) -> None:
        self.settings = settings
        self.model = MusicFM25Hz.for_inference(checkpoint, settings.device, settings.attention, settings.precision)
        self._inference = Inference(self.model, settings.batch_size)

    def check_device(self) -> None:
        """Run the model once.

        Raises:
            DeviceError: It does not run on its device.
        """
        self._inference.check_device()

    def embed_rows(self, decoded: pa.Table) -> Iterator[pa.Table]:
        """Embed decoded rows, in order.

        Args:
            decoded: Rows of ``schema.DECODED``. Rows that failed, or that have no waveform because their
                content is unchanged, pass through.

        Yields:
            Tables of ``schema.EMBEDDED``, each of the tracks that went through the model together. A track that
            the model cannot take carries its failure.

        Raises:
            DeviceError: The model no longer runs, whatever it is given.
        """
        group: list[_Row] = []
        num_samples = 0
        for index in range(decoded.num_rows):
            row = decoded.slice(index, 1)
            track = _read_track(row)
            inputs = self._list_inputs(track) if track else []
            group.append(_Row(row, track, inputs))
            num_samples += sum(model_input.num_samples for model_input in inputs)
            if num_samples >= MODEL_BATCHES_PER_GROUP * self.settings.batch_size * FULL_WINDOW_SAMPLES:
                yield self._embed_group(group)
                group, num_samples = [], 0
        if group:
            yield self._embed_group(group)

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
        found = self._embed_tracks(self._list_inputs(track)).get(id(track), [])
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

    def _embed_group(self, group: Sequence[_Row]) -> pa.Table:
        features = self._embed_tracks([model_input for item in group for model_input in item.inputs])
        rows = []
        for item in group:
            found = features.pop(id(item.track), None)
            error = item.track.error if item.track else None
            rows.append(_as_embedded(item.row, found if error is None else None, error))
        return pa.concat_tables(rows)

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

    def _embed_tracks(self, inputs: Sequence[ModelInput]) -> dict[int, list[Features]]:
        """Return features of tracks by their identity; tracks that cannot be embedded get an error."""
        features: dict[int, list[Features]] = {}
        for track, window_s in self._inference.run(inputs):
            try:
                features.setdefault(id(track), []).extend(self._take_window_length(track, window_s))
            except TrackError as error:
                track.error = error
            except (RuntimeError, MemoryError) as error:  # the device has no room left to pool in
                track.error = self._inference.confirm(describe_model_error(error))
        return features

    def _take_window_length(self, track: Track, window_s: float) -> Iterator[Features]:
        """Take off the device what is wanted of a track's frames of one window length, and let go of them.

        Raises:
            TrackError: The model's values are not finite.
        """
        for source in [source for source in track.frames if source[0] == window_s]:
            wanted = [name for name in track.wanted if self._source_of(name) == source]
            frames = track.frames.pop(source).float()
            if not all(bool(torch.isfinite(chunk).all()) for chunk in torch.split(frames, FRAMES_PER_CHUNK)):
                raise TrackError(
                    Stage.EMBED,
                    Reason.NON_FINITE_EMBEDDING,
                    f"the model's output for {' and '.join(wanted)} has values that are not finite under "
                    f"precision {self.settings.precision}; try --precision float32",
                )
            yield from _choose_features(frames, wanted)


def choose_embedder_settings(recipes: Mapping[str, Recipe], settings: RunSettings) -> EmbedderSettings:
    """Return how a run embeds on this machine: what it leaves open, the device and the batch, is chosen here.

    Args:
        recipes: The run's recipes by id.
        settings: What to compute.
    """
    device = settings.device or choose_device()
    return EmbedderSettings(
        {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()},
        settings.windows,
        settings.precision,
        settings.attention,
        device,
        settings.batch_size or choose_batch_size(device, settings.precision),
    )


def choose_batch_size(device: str, precision: Precision) -> int:
    """Return how many 30 s windows to give the model at once on this device.

    At the published size one window's convolution activations take about 1.6 GB in float32 (four tensors of
    512 channels × 64 bands × 1500 mel frames live at once in the first residual block).
    """
    if torch.device(device).type != "cuda":
        return 1
    window_bytes = 1.6e9 if precision in ("float32", "tf32") else 0.8e9
    free_bytes, _ = torch.cuda.mem_get_info(torch.device(device))
    return max(1, min(32, int(0.7 * free_bytes / window_bytes)))


def choose_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_track(row: pa.Table) -> Track | None:
    """Return the track of a decoded row, or None where there is nothing to embed."""
    waveform = row.column("waveform").combine_chunks()
    if not row.column("stage")[0].as_py() and waveform.null_count == 0:
        return Track(waveform.flatten().to_numpy(), row.column("wanted")[0].as_py())
    return None


def _choose_features(frames: Tensor, wanted: Sequence[str]) -> Iterator[Features]:
    """Return a track's frames, or all that is pooled from them where this is less to carry.

    Args:
        frames: float32, shape (num_frames, embed_dim), at 25 Hz, on any device.
        wanted: "recipe/resolution" names of all that is wanted of them.
    """
    resolutions = {name: RESOLUTIONS[name.split("/")[1]] for name in wanted}
    if sum(count_pooled(len(frames), resolution) for resolution in resolutions.values()) >= len(frames):
        yield Features(list(resolutions), FRAME_RATE_HZ, frames.cpu().numpy())
        return
    for name, resolution in resolutions.items():
        yield Features([name], resolution.frame_rate_hz, pool_frames(frames, resolution).cpu().numpy())


def _as_embedded(row: pa.Table, features: Sequence[Features] | None, error: TrackError | None) -> pa.Table:
    """Replace a decoded row's waveform by its features, or by the failure that the model met."""
    num_samples = len(row.column("waveform")[0]) if row.column("waveform").null_count == 0 else 0
    row = row.drop_columns(["waveform"])
    if error is not None:
        for name, value in (
            ("stage", error.stage.value),
            ("error_type", error.reason.value),
            ("error_message", error.message),
        ):
            row = row.set_column(row.schema.get_field_index(name), name, pa.array([value], pa.string()))
    num_frames = None
    if features is not None:
        windows = plan_windows(num_samples, window_length_s(RESOLUTIONS["25hz"], "shared"))
        num_frames = sum(window.num_kept_frames for window in windows)
    row = row.append_column("num_frames_25hz", pa.array([num_frames], pa.int32()))
    return row.append_column("features", as_column(features or [])).select(EMBEDDED.names).cast(EMBEDDED)


def as_column(features: Sequence[Features]) -> pa.Array:
    """Return a track's features as a one-row column of ``schema.FEATURES``; a single array is not copied."""
    flat = [each.values.reshape(-1) for each in features]
    values = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.float32), *flat])
    offsets = np.cumsum([0, *(len(each) for each in flat)])
    items = pa.StructArray.from_arrays(
        [
            pa.array([each.wanted for each in features], pa.list_(pa.string())),
            pa.array([each.frame_rate_hz for each in features], pa.float64()),
            pa.array([len(each.values) for each in features], pa.int32()),
            pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values)),
        ],
        fields=list(FEATURES.value_type),
    )
    return pa.ListArray.from_arrays(pa.array([0, len(features)], pa.int32()), items).cast(FEATURES)
