"""The embedder as an actor holds it, fed with decoded clips: how busy the device is, what the host pays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.gpu.setting import Setting
from pipeline.config import DEFAULT_RESOLUTIONS
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.run.placement import CALLS_PER_GPU, TRACKS_PER_BLOCK_GPU
from pipeline.schema import DECODED

RECIPE = "musicfm-l7-benchmark"
SPREADS = {0: "equal lengths", 2400: "lengths up to 0.1 s apart"}  # in samples
NUM_DIFFERENT = 4


def measure_actor(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Feed clips of one length, and of lengths a few milliseconds apart, at two batch sizes."""
    blocks = {
        spread: [
            make_block(setting, first, min(TRACKS_PER_BLOCK_GPU, setting.num_clips - first), spread)
            for first in range(0, setting.num_clips, TRACKS_PER_BLOCK_GPU)
        ]
        for spread in SPREADS
    }
    for precision in ("bfloat16", "tf32"):
        for batch_size in (setting.batch_sizes[2], setting.batch_size):
            settings = EmbedderSettings(
                {RECIPE: setting.layer}, "shared", precision, "sdpa", str(setting.device), batch_size
            )
            embedder = Embedder(setting.checkpoint, settings)
            waveforms = setting.draw_waveforms(batch_size)
            model_s = setting.time(partial(embedder.model.get_latent, waveforms, setting.layer)) / batch_size
            for spread, name in SPREADS.items():
                row = feed(setting, embedder, blocks[spread])
                row["busy share"] = model_s * row["clips/s"]
                put(f"{precision}, batches of {batch_size}, {name}", row)


def feed(setting: Setting, embedder: Embedder, blocks: Sequence[pa.Table]) -> dict[str, float]:
    """Give an embedder all clips in blocks, from as many threads as an actor has, and time it."""
    lock = threading.Lock()

    def embed(block: pa.Table) -> int:
        rows = 0
        for table in embedder.embed_rows(block, lock):
            assert table.column("stage").null_count == table.num_rows, table.column("error_message")
            rows += table.num_rows
        return rows

    embed(blocks[0])
    setting.wait()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(CALLS_PER_GPU) as threads:
        num_clips = sum(threads.map(embed, blocks))
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return {"clips": num_clips, "clips/s": num_clips / seconds, "host core-ms a clip": 1e3 * cpu_s / num_clips}


def make_block(setting: Setting, first: int, num_tracks: int, spread: int) -> pa.Table:
    """Return decoded rows of random clips, each shorter than a window by up to ``spread`` samples."""
    generator = np.random.default_rng(first)
    noise = [generator.normal(0, 0.1, setting.num_samples).astype(np.float32) for _ in range(NUM_DIFFERENT)]
    waveforms = [
        noise[index % NUM_DIFFERENT][: setting.num_samples - int(generator.integers(0, spread + 1))]
        for index in range(num_tracks)
    ]
    offsets = np.cumsum([0, *(len(waveform) for waveform in waveforms)])
    values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(waveforms)))
    wanted = [f"{RECIPE}/{name}" for name in DEFAULT_RESOLUTIONS]
    known = {
        "track_id": pa.array([f"clip{first + index:06d}" for index in range(num_tracks)]),
        "wanted": pa.array([wanted] * num_tracks),
        "held": pa.array([[]] * num_tracks, pa.list_(pa.string())),
        "waveform": values,
    }
    columns = [known.get(field.name, pa.nulls(num_tracks, field.type)).cast(field.type) for field in DECODED]
    return pa.Table.from_arrays(columns, schema=DECODED)
