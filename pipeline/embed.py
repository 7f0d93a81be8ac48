"""Embed: waveforms in, pooled features of every wanted layer and resolution out.

Frames stay on the device from the model through the stitching of windows to the pooling; only the pooled
features leave it. Each window length is pooled as soon as it is complete, so that a long track's frames are there
for one length at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.model import MusicFM25Hz
from pipeline.config import RESOLUTIONS, Precision, Recipe, RunSettings, WindowPolicy, window_length_s
from pipeline.errors import Reason, Stage, TrackError
from pipeline.infer import FULL_WINDOW_SAMPLES, Inference, ModelInput, Track, list_inputs
from pipeline.pool import count_bins, pool_in_chunks
from pipeline.schema import EMBEDDED, POOLED
from pipeline.window import plan_windows

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
class _Features:
    """A track's pooled features, one after the other in one array: an hour at 50 Hz is 0.7 GB, and there once.

    Args:
        flat: float32, all values.
        by_name: Views of it, (num_frames, embed_dim), by "recipe/resolution", in the order of what is wanted.
    """

    flat: np.ndarray
    by_name: dict[str, np.ndarray]


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
        self.embed_dim = self.model.embed_dim
        self._inference = Inference(self.model, settings.batch_size)

    def embed_rows(self, decoded: pa.Table) -> Iterator[pa.Table]:
        """Embed decoded rows, in order.

        Args:
            decoded: Rows of ``schema.DECODED``. Rows that failed, or that have no waveform because their
                content is unchanged, pass through.

        Yields:
            One-row tables of ``schema.EMBEDDED``. A track that the model cannot take carries its failure.
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
                yield from self._embed_group(group)
                group, num_samples = [], 0
        yield from self._embed_group(group)

    def embed_waveform(self, waveform: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Embed a single waveform.

        Args:
            waveform: float32, shape (num_samples,), mono at 24 kHz.
            wanted: "recipe/resolution" names.

        Returns:
            For each name float32 features of shape (num_frames, embed_dim).

        Raises:
            TrackError: The model cannot take it, or gives values that are not finite.
        """
        track = Track(waveform, list(wanted))
        features = self._embed_tracks(self._list_inputs(track)).get(id(track))
        if track.error is not None:
            raise track.error
        return dict(features.by_name) if features else {}

    def _embed_group(self, group: Sequence[_Row]) -> Iterator[pa.Table]:
        pooled = self._embed_tracks([model_input for item in group for model_input in item.inputs])
        for item in group:
            features = pooled.pop(id(item.track), None)
            error = item.track.error if item.track else None
            yield _as_embedded(item.row, features if error is None else None, error)

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

    def _embed_tracks(self, inputs: Sequence[ModelInput]) -> dict[int, _Features]:
        """Return features of tracks by their identity; tracks that cannot be embedded get an error."""
        pooled: dict[int, _Features] = {}
        for track, window_s in self._inference.run(inputs):
            if id(track) not in pooled:
                pooled[id(track)] = self._make_room(track)
            try:
                self._pool_window_length(track, window_s, pooled[id(track)])
            except TrackError as error:
                track.error = error
        return pooled

    def _make_room(self, track: Track) -> _Features:
        """Return an array, yet to be filled, for all that is wanted of a track."""
        num_bins = {}
        for name in track.wanted:
            windows = plan_windows(len(track.waveform), self._source_of(name)[0])
            rate_hz = RESOLUTIONS[name.split("/")[1]].frame_rate_hz
            num_frames = sum(window.num_kept_frames for window in windows)
            num_bins[name] = 1 if rate_hz is None else count_bins(num_frames, rate_hz)
        frames = np.empty((sum(num_bins.values()), self.embed_dim), np.float32)
        ends = np.cumsum(list(num_bins.values()))
        by_name = {name: frames[end - num_bins[name] : end] for name, end in zip(num_bins, ends, strict=True)}
        return _Features(frames.reshape(-1), by_name)

    def _pool_window_length(self, track: Track, window_s: float, features: _Features) -> None:
        """Pool a track's frames of one window length to all that is wanted of it, and let go of them.

        Raises:
            TrackError: The model's values are not finite.
        """
        for name in track.wanted:
            source = self._source_of(name)
            if source[0] != window_s:
                continue
            place, start = features.by_name[name], 0
            for chunk in pool_in_chunks(track.frames[source], RESOLUTIONS[name.split("/")[1]]):
                if not bool(torch.isfinite(chunk).all()):
                    raise TrackError(
                        Stage.EMBED,
                        Reason.NON_FINITE_EMBEDDING,
                        f"the model's output for {name} has values that are not finite under precision "
                        f"{self.settings.precision}; try --precision float32",
                    )
                torch.from_numpy(place[start : start + len(chunk)]).copy_(chunk)
                start += len(chunk)
        for source in [source for source in track.frames if source[0] == window_s]:
            del track.frames[source]


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


def _as_embedded(row: pa.Table, features: _Features | None, error: TrackError | None) -> pa.Table:
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
    return row.append_column("pooled", _as_pooled_column(features)).select(EMBEDDED.names).cast(EMBEDDED)


def _as_pooled_column(features: _Features | None) -> pa.Array:
    """Return features as a one-row column of ``schema.POOLED``, without a copy."""
    by_name = features.by_name if features is not None else {}
    flat = features.flat if features is not None else np.empty(0, np.float32)
    offsets = np.cumsum([0, *(each.size for each in by_name.values())], dtype=np.int32)
    items = pa.StructArray.from_arrays(
        [
            pa.array(list(by_name), pa.string()),
            pa.array([len(each) for each in by_name.values()], pa.int32()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        ],
        fields=list(POOLED.value_type),
    )
    return pa.ListArray.from_arrays(pa.array([0, len(by_name)], pa.int32()), items).cast(POOLED)
