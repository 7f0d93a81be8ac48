"""Estimate: what a planned run will read, write and take, from a few of its files tried on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import SAMPLE_RATE_HZ, SHARED_WINDOW_S, Recipe, RunSettings
from pipeline.decode import decode_tracks
from pipeline.embed import Embedder, EmbedderSettings, choose_batch_size, choose_device
from pipeline.placement import place_actors
from pipeline.schema import DECODED
from pipeline.write import WriteSettings, write_parts

NUM_PROBED = 8
WARM_UP_S = 2.0
LEDGER_ROW_BYTES = 300  # of `tracks` without the vector, in parts of a thousand rows
VECTOR_BYTES_PER_VALUE = 1.8  # at ten mantissa bits


@dataclass(frozen=True)
class RunEstimate:
    """What a run over planned tracks comes to, were it done on this machine.

    Args:
        num_probed: Files that were read and decoded for it; none gives zeros below.
        num_failed: How many of those cannot be embedded.
        audio_s: Seconds of audio in all planned tracks.
        bytes_read: Bytes of their files.
        bytes_written: Bytes of the parts that hold their features.
        decode_s: Core-seconds of reading, decoding and resampling.
        model_s: Seconds of one model on this machine's device.
        seconds: Wall time of the run, its start not counted.
    """

    num_probed: int = 0
    num_failed: int = 0
    audio_s: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    decode_s: float = 0.0
    model_s: float = 0.0
    seconds: float = 0.0


def estimate_run(
    planned: pa.Table, checkpoint: Checkpoint, recipes: Mapping[str, Recipe], settings: RunSettings
) -> RunEstimate:
    """Try a few planned tracks, evenly spaced, and extrapolate; nothing is written to the store.

    Args:
        planned: Rows of ``schema.PLAN``.
        checkpoint: The model.
        recipes: Recipes of the run, by id.
        settings: What the run would compute.
    """
    if planned.num_rows == 0:
        return RunEstimate()
    rows = planned.take(np.unique(np.linspace(0, planned.num_rows - 1, NUM_PROBED, dtype=np.int64)))
    start_s = time.process_time()
    decoded = pa.concat_tables(decode_tracks(rows, settings.audio_options, settings.max_duration_s))
    decode_s = (time.process_time() - start_s) / rows.num_rows * planned.num_rows
    sound = decoded.filter(pc.is_valid(decoded.column("duration_s")))
    probed = RunEstimate(
        num_probed=rows.num_rows,
        num_failed=rows.num_rows - sound.num_rows,
        bytes_read=_sum_sizes(planned),
        decode_s=decode_s,
    )
    if sound.num_rows == 0:
        return probed
    scale = probed.bytes_read / _sum_sizes(rows) if _sum_sizes(rows) else planned.num_rows / rows.num_rows
    audio_s = pc.sum(sound.column("duration_s")).as_py() * scale
    model_rate, bytes_per_s = _probe_model(sound, checkpoint, recipes, settings)
    row_bytes = LEDGER_ROW_BYTES + VECTOR_BYTES_PER_VALUE * checkpoint.config.embed_dim
    num_ledger_rows = len(recipes) * sound.num_rows / rows.num_rows * planned.num_rows
    return replace(
        probed,
        audio_s=audio_s,
        bytes_written=int(bytes_per_s * audio_s + row_bytes * num_ledger_rows),
        model_s=model_rate * audio_s,
        seconds=_combine(decode_s, model_rate * audio_s, settings.device or choose_device()),
    )


def _sum_sizes(rows: pa.Table) -> int:
    """Sum the sizes of files; those that no listing told count as the mean of the others."""
    sizes = rows.column("size_bytes")
    return int((pc.mean(sizes).as_py() or 0.0) * len(sizes))


def _probe_model(
    sound: pa.Table, checkpoint: Checkpoint, recipes: Mapping[str, Recipe], settings: RunSettings
) -> tuple[float, float]:
    """Embed one batch of up to one window's length of the longest probed track.

    Returns:
        The model's seconds, and the bytes of the frames' parts, for a second of audio.
    """
    device = settings.device or choose_device()
    size = settings.batch_size or choose_batch_size(device, settings.precision)
    layers = {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()}
    embedder = Embedder(
        checkpoint,
        EmbedderSettings(layers, settings.windows, settings.precision, settings.attention, device, size),
    )
    row = sound.slice(int(np.argmax(sound.column("duration_s").to_numpy())), 1)
    waveform = row.column("waveform")[0].values.to_numpy()[: int(SHARED_WINDOW_S * SAMPLE_RATE_HZ)]
    _embed(embedder, row, waveform[: int(WARM_UP_S * SAMPLE_RATE_HZ)])
    start_s = time.perf_counter()
    embedded = _embed(embedder, pa.concat_tables([row] * size), waveform)
    model_s = (time.perf_counter() - start_s) / size
    mantissa_bits = {recipe_id: recipe.mantissa_bits for recipe_id, recipe in recipes.items()}
    with tempfile.TemporaryDirectory() as folder:
        written = write_parts(embedded.slice(0, 1), WriteSettings(folder, mantissa_bits, "estimate"))
        frame_bytes = sum(part["size_bytes"] for part in written.column("parts")[0].as_py())
    audio_s = len(waveform) / SAMPLE_RATE_HZ
    return model_s / audio_s, frame_bytes / audio_s


def _embed(embedder: Embedder, rows: pa.Table, waveform: np.ndarray) -> pa.Table:
    """Embed the same waveform for each of the rows."""
    position = rows.schema.get_field_index("waveform")
    column = pa.array([waveform] * rows.num_rows, DECODED.field("waveform").type)
    return pa.concat_tables(embedder.embed_rows(rows.set_column(position, DECODED.field("waveform"), column)))


def _combine(decode_s: float, model_s: float, device: str) -> float:
    """Return the wall time of stages that run side by side: on a GPU beside the CPU, else on the same cores."""
    num_cpus = os.cpu_count() or 1
    if device == "cpu":
        return model_s + decode_s / num_cpus
    num_gpus = torch.cuda.device_count()
    placement = place_actors([{"CPU": num_cpus, "GPU": num_gpus}], device)
    return max(model_s / placement.num_actors, decode_s / max(1, num_cpus - placement.num_actors))
