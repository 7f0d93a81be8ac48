"""Embed: waveforms in, pooled features of every wanted layer and resolution out.

Frames stay on the device from the model through the stitching of windows to the pooling; only the pooled
features leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.model import MusicFM25Hz
from pipeline.config import RESOLUTIONS, Precision, WindowPolicy, window_length_s
from pipeline.errors import Reason, Stage, TrackError
from pipeline.pool import pool_frames
from pipeline.schema import EMBEDDED, POOLED
from pipeline.window import Window, plan_windows

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
        batch_size: Windows in one call of the model.
    """

    layers: Mapping[str, int]
    windows: WindowPolicy = "shared"
    precision: Precision = "float32"
    attention: str = "sdpa"
    device: str = "cpu"
    batch_size: int = 1


@dataclass
class _Track:
    """A track on its way through the model: its frames gather here window by window."""

    waveform: np.ndarray
    wanted: list[str]  # "recipe/resolution"
    frames: dict[tuple[float, int], list[Tensor]] = field(default_factory=dict)  # by window length and layer
    error: TrackError | None = None


@dataclass(frozen=True)
class _ModelInput:
    """One window of one track, and the layers wanted of it."""

    track: _Track
    window: Window
    window_s: float
    layers: tuple[int, ...]


class Embedder:
    """The model on its device, fed with tracks.

    An embedding does not depend on its batch neighbours: only windows of exactly equal length share a batch.

    Args:
        checkpoint: Weights and statistics.
        settings: How to embed.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EmbedderSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.model = MusicFM25Hz.for_inference(checkpoint, settings.device, settings.attention, settings.precision)
        self.embed_dim = self.model.embed_dim

    def embed_rows(self, decoded: pa.Table) -> Iterator[pa.Table]:
        """Embed decoded rows, in order.

        Args:
            decoded: Rows of ``schema.DECODED``. Rows that failed, or that have no waveform because their
                content is unchanged, pass through.

        Yields:
            One-row tables of ``schema.EMBEDDED``. A track that the model cannot take carries its failure.
        """
        group: list[tuple[pa.Table, _Track | None]] = []
        num_windows = 0
        for index in range(decoded.num_rows):
            row = decoded.slice(index, 1)
            track = _read_track(row)
            group.append((row, track))
            num_windows += len(self._list_inputs(track)) if track else 0
            if num_windows >= MODEL_BATCHES_PER_GROUP * self.settings.batch_size:
                yield from self._embed_group(group)
                group, num_windows = [], 0
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
        track = _Track(waveform, list(wanted))
        self._run_model([track])
        return self._pool_track(track)

    def _embed_group(self, group: Sequence[tuple[pa.Table, _Track | None]]) -> Iterator[pa.Table]:
        self._run_model([track for _, track in group if track])
        for row, track in group:
            if track is None:
                yield _as_embedded(row, {}, None)
                continue
            try:
                pooled = self._pool_track(track)
            except TrackError as error:
                yield _as_embedded(row, {}, error)
            else:
                yield _as_embedded(row, pooled, None)
            track.frames.clear()

    def _list_inputs(self, track: _Track) -> list[_ModelInput]:
        """List the windows that a track's wanted features need, each with its layers."""
        layers_by_window_s: dict[float, set[int]] = {}
        for name in track.wanted:
            window_s, layer = self._source_of(name)
            layers_by_window_s.setdefault(window_s, set()).add(layer)
        return [
            _ModelInput(track, window, window_s, tuple(sorted(layers)))
            for window_s, layers in layers_by_window_s.items()
            for window in plan_windows(len(track.waveform), window_s)
        ]

    def _source_of(self, name: str) -> tuple[float, int]:
        """Return the window length in seconds and the layer that a "recipe/resolution" is pooled from."""
        recipe, resolution = name.split("/")
        return window_length_s(RESOLUTIONS[resolution], self.settings.windows), self.settings.layers[recipe]

    def _run_model(self, tracks: Sequence[_Track]) -> None:
        """Run all windows of the tracks, batched by length and layers, and hand the frames to their tracks."""
        inputs = [model_input for track in tracks for model_input in self._list_inputs(track)]
        batches: dict[tuple[int, tuple[int, ...]], list[_ModelInput]] = {}
        for model_input in inputs:
            batches.setdefault((model_input.window.num_samples, model_input.layers), []).append(model_input)
        for batch in batches.values():
            for start in range(0, len(batch), self.settings.batch_size):
                self._run_batch(batch[start : start + self.settings.batch_size])

    def _run_batch(self, batch: list[_ModelInput]) -> None:
        """Run one batch; where the device refuses it, its halves, down to the single window that fails alone."""
        batch = [model_input for model_input in batch if model_input.track.error is None]
        if not batch:
            return
        try:
            hidden_states = self._compute_hidden_states(batch)
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # torch raises RuntimeError for all that a device refuses
            if isinstance(error, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(batch) == 1:
                batch[0].track.error = _describe_model_error(error)
                return
            half = len(batch) // 2
            self._run_batch(batch[:half])
            self._run_batch(batch[half:])
            return
        for index, model_input in enumerate(batch):
            window = model_input.window
            kept = slice(window.first_kept_frame, window.first_kept_frame + window.num_kept_frames)
            for layer in model_input.layers:
                frames = hidden_states[layer][index, kept]
                model_input.track.frames.setdefault((model_input.window_s, layer), []).append(frames)

    def _compute_hidden_states(self, batch: Sequence[_ModelInput]) -> dict[int, Tensor]:
        excerpts = []
        for model_input in batch:
            start, length = model_input.window.start_sample, model_input.window.num_samples
            excerpts.append(model_input.track.waveform[start : start + length])
        waveforms = torch.from_numpy(np.stack(excerpts)).to(self.device)
        with torch.inference_mode():
            return self.model.get_hidden_states(waveforms, batch[0].layers)

    def _pool_track(self, track: _Track) -> dict[str, np.ndarray]:
        """Pool a track's frames to all that is wanted of it.

        Raises:
            TrackError: The model failed on one of its windows, or its values are not finite.
        """
        if track.error is not None:
            raise track.error
        pooled = {}
        stitched = {source: torch.cat(frames) for source, frames in track.frames.items()}
        for name in track.wanted:
            features = pool_frames(stitched[self._source_of(name)], RESOLUTIONS[name.split("/")[1]])
            if not bool(torch.isfinite(features).all()):
                raise TrackError(
                    Stage.EMBED,
                    Reason.NON_FINITE_EMBEDDING,
                    f"the model's output for {name} has values that are not finite under precision "
                    f"{self.settings.precision}; try --precision float32",
                )
            pooled[name] = features.cpu().numpy()
        return pooled


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


def _read_track(row: pa.Table) -> _Track | None:
    """Return the track of a decoded row, or None where there is nothing to embed."""
    waveform = row.column("waveform").combine_chunks()
    if not row.column("stage")[0].as_py() and waveform.null_count == 0:
        return _Track(waveform.flatten().to_numpy(), row.column("wanted")[0].as_py())
    return None


def _describe_model_error(error: Exception) -> TrackError:
    out_of_memory = (
        isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error).lower()
    )
    reason = Reason.OUT_OF_MEMORY if out_of_memory else Reason.EMBED_FAILED
    detail = " ".join(str(error).split())[:300]
    return TrackError(
        Stage.EMBED, reason, f"the model failed on a single window: {type(error).__name__}: {detail}"
    )


def _as_embedded(row: pa.Table, pooled: Mapping[str, np.ndarray], error: TrackError | None) -> pa.Table:
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
    if pooled:
        windows = plan_windows(num_samples, window_length_s(RESOLUTIONS["25hz"], "shared"))
        num_frames = sum(window.num_kept_frames for window in windows)
    row = row.append_column("num_frames_25hz", pa.array([num_frames], pa.int32()))
    return row.append_column("pooled", _as_pooled_column(pooled)).select(EMBEDDED.names).cast(EMBEDDED)


def _as_pooled_column(pooled: Mapping[str, np.ndarray]) -> pa.Array:
    """Return features as a one-row column of ``schema.POOLED`` that shares the arrays' memory where it can."""
    values = [np.ascontiguousarray(features).reshape(-1) for features in pooled.values()]
    offsets = np.cumsum([0, *(len(flat) for flat in values)], dtype=np.int32)
    flat = np.concatenate(values) if values else np.empty(0, np.float32)
    items = pa.StructArray.from_arrays(
        [
            pa.array(list(pooled), pa.string()),
            pa.array([len(features) for features in pooled.values()], pa.int32()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
        ],
        fields=list(POOLED.value_type),
    )
    return pa.ListArray.from_arrays(pa.array([0, len(pooled)], pa.int32()), items).cast(POOLED)
