"""What parts of ``frames`` come to: objects, commits and opening after so many tracks, and what joining costs.

    .venv/bin/python -m benchmarks.scale --log 1000000 --join 4 --compact 8

The log is real and grown by the run's own committer, of clips of 30 s at the default resolutions and the published
width. The files that it names are tiny, for nobody reads them. ``--join`` writes so many real
blocks at 16 Hz, joins them, and encodes them again as one, which is the other way to make one part of them.
``--compact`` rewrites so many groups of parts, half of whose rows are dead, with one worker and with two: both
twice, of which the better counts.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import ray
from deltalake import DeltaTable

from pipeline.config import DEFAULT_RESOLUTIONS, RESOLUTIONS, Recipe
from pipeline.location import StoreLocation
from pipeline.run.tasks import map_on_cluster
from pipeline.schema import FRAMES, TRACKS
from pipeline.store.commit import Join, RunCommitter
from pipeline.store.joining import join_parts
from pipeline.store.ledger import join_keys, read_rows
from pipeline.store.parts import STORED_BYTES_PER_VALUE, Part, round_mantissa, write_part
from pipeline.store.rewrite import Rewrite, rewrite_parts
from pipeline.store.tables import create_tables

RECIPE = Recipe("00" * 32, 7).recipe_id
BLOCK = 64  # tracks
CLIP_S, EMBED_DIM = 30, 1024
BLOCKS_PER_COMMIT = 281  # of one GPU that embeds 300 clips a second, at a commit a minute
MAX_COMMITS = 60  # larger logs grow in larger steps
REPEATED = {
    "50hz": 1.26e6 / (1500 * EMBED_DIM)
}  # bytes a value, of frames that stand there twice (docs/decisions/0011)


def measure_log(num_tracks: int, is_joined: bool) -> dict[str, float]:
    """Grow the log of ``frames`` by so many tracks, and say what it holds and what commits and opening cost."""
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(str(Path(folder) / "store"))
        create_tables(store)
        committer = RunCommitter(store, "scale", {RECIPE: Recipe("00" * 32, 7)})
        num_blocks = -(-num_tracks // BLOCK)
        step = max(BLOCKS_PER_COMMIT, num_blocks // MAX_COMMITS)
        commit_cpu_s = []
        for start in range(0, num_blocks, step):
            blocks = range(start, min(start + step, num_blocks))
            committer.take_over([part for block in blocks for part in list_parts(block)], TRACKS.empty_table())
            if is_joined:
                committer.join_pending(pretend_to_join)
            _, cpu_s = take_cpu_time(committer.commit)
            commit_cpu_s.append(cpu_s)
        url = store.table_url("frames")
        paths = DeltaTable(url).file_uris()
        write_files(paths, Path(folder))
        row: dict[str, float] = {"tracks": num_tracks, "joined": is_joined, "objects": len(paths)}
        row |= {"commits": len(commit_cpu_s)}
        row |= {"last_commits_cpu_s": float(np.median(commit_cpu_s[-5:])), **measure_opening(url)}
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return row


def list_parts(block: int) -> list[Part]:
    """Return the parts that the write task of a block of clips leaves."""
    first, last = f"TR{block * BLOCK:016d}", f"TR{(block + 1) * BLOCK - 1:016d}"
    parts = []
    for name in DEFAULT_RESOLUTIONS:
        num_values = CLIP_S * (RESOLUTIONS[name].frame_rate_hz or 1 / CLIP_S) * EMBED_DIM
        size_bytes = round(BLOCK * num_values * REPEATED.get(name, STORED_BYTES_PER_VALUE))
        path = f"recipe={RECIPE}/resolution={name}/part-scale-{block:032x}.parquet"
        parts.append(Part(RECIPE, name, path, size_bytes, BLOCK, first, last))
    return parts


def pretend_to_join(join: Join, groups: Sequence[Sequence[Part]]) -> list[Part]:  # noqa: ARG001
    """Return what joining would: the parts are not there."""
    return [
        Part(
            group[0].recipe,
            group[0].resolution,
            group[0].path.replace("scale", "joined"),
            sum(part.size_bytes for part in group),
            sum(part.num_rows for part in group),
            group[0].min_track_id,
            group[-1].max_track_id,
        )
        for group in groups
    ]


def write_files(paths: Sequence[str], folder: Path) -> None:
    """Let there be a file for each path."""
    part = write_part(build_block(0, 1, 8.0, 4), "frames", str(folder), {}, "tiny")
    tiny = (folder / part.path).read_bytes()
    for path in (Path(path.removeprefix("file://")) for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny)


def measure_opening(url: str) -> dict[str, float]:
    """Return seconds until each library knows what the table holds."""
    openings: dict[str, Callable[[], Any]] = {
        "delta_rs_s": lambda: DeltaTable(url).get_add_actions(flatten=True),
        "polars_s": lambda: pl.scan_delta(url).collect_schema(),
        "duckdb_s": lambda: duckdb.read_parquet(DeltaTable(url).file_uris(), hive_partitioning=True).columns,
    }
    seconds = {}
    for name, call in openings.items():
        start_s = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - start_s
    return seconds


def measure_joining(num_blocks: int) -> dict[str, float]:
    """Return processor milliseconds a clip to join blocks at 16 Hz, and to encode them again as one part."""
    with tempfile.TemporaryDirectory() as folder:
        partition = {"recipe": RECIPE, "resolution": "16hz"}
        parts = [
            write_part(build_block(block, BLOCK, 16.0, EMBED_DIM), "frames", folder, partition, "scale")
            for block in range(num_blocks)
        ]

        def encode_again() -> Part:
            store = StoreLocation(folder)
            link = Path(folder) / "frames"
            link.symlink_to(folder, target_is_directory=True)
            files = [{"path": part.path, **{f"partition.{k}": v for k, v in partition.items()}} for part in parts]
            rows = pa.concat_tables([read_rows("frames", store, file) for file in files])
            return write_part(rows.sort_by("track_id"), "frames", folder, partition, "again")

        joined, join_s = take_cpu_time(lambda: join_parts(parts, folder, "joined"))
        again, encode_s = take_cpu_time(encode_again)
    clip_ms = 1e3 / (num_blocks * BLOCK)
    row = {"mb": joined.size_bytes / 1e6, "join_cpu_ms": join_s * clip_ms, "encode_cpu_ms": encode_s * clip_ms}
    row |= {"join_mb_per_cpu_s": row["mb"] / join_s, "encode_mb_per_cpu_s": again.size_bytes / 1e6 / encode_s}
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return row


def measure_compaction(num_groups: int) -> dict[str, float]:
    """Return what one worker, and two, take to rewrite groups of two blocks at 8 Hz, half of whose rows are dead.

    A worker has one CPU: alone, it is kept to one of the two, which a thread of Arrow's would share else.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(folder)
        rewrites = []
        for group in range(num_groups):
            blocks = [build_block(2 * group + number, BLOCK, 8.0, EMBED_DIM) for number in range(2)]
            partition = {"recipe": RECIPE, "resolution": "8hz"}
            parts = [write_part(rows, "frames", store.table_url("frames"), partition, "scale") for rows in blocks]
            rewrites.append(Rewrite(parts, pa.concat_arrays([join_keys(rows)[::2] for rows in blocks])))
        size_bytes = sum(each.size_bytes for each in rewrites)
        row: dict[str, float] = {"mb": size_bytes / 1e6}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        for num_workers in (1, 2, 1, 2):  # where each task asks for both CPUs, one runs at a time
            rewrite = partial(rewrite_timed, store=store, num_cpus=num_workers)
            list(map_on_cluster(rewrite, rewrites[:2], num_cpus=2 / num_workers))  # starts workers
            start_s = time.perf_counter()
            cpu_s = sum(map_on_cluster(rewrite, rewrites, num_cpus=2 / num_workers))
            found = {"seconds": time.perf_counter() - start_s, "cpu_s": cpu_s}
            for name, value in found.items():
                row[f"{name}_with_{num_workers}"] = min(row.get(f"{name}_with_{num_workers}", math.inf), value)
        ray.shutdown()
    row["ratio"] = row["seconds_with_1"] / row["seconds_with_2"]
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return row


def rewrite_timed(rewrite: Rewrite, store: StoreLocation, num_cpus: int) -> float:
    """Rewrite parts on the first so many CPUs of this machine, and return the processor seconds that it took."""
    usable = sorted(os.sched_getaffinity(os.getppid()))[:num_cpus]
    for thread in os.listdir("/proc/self/task"):  # Arrow's threads are there already
        os.sched_setaffinity(int(thread), usable)
    return take_cpu_time(lambda: rewrite_parts(rewrite, store, "again"))[1]


def build_block(block: int, num_tracks: int, rate_hz: float, embed_dim: int) -> pa.Table:
    """Return rows of ``frames`` that are noise, rounded as stored values are."""
    num_frames = round(CLIP_S * rate_hz)
    shape = (num_tracks * num_frames, embed_dim)
    values = round_mantissa(np.random.default_rng(block).standard_normal(shape, np.float32), 10)
    vectors = pa.ListArray.from_arrays(
        pa.array(np.arange(0, values.size + 1, embed_dim), pa.int32()), pa.array(values.reshape(-1))
    )
    offsets = pa.array(np.arange(0, len(values) + 1, num_frames), pa.int32())
    columns: dict[str, Any] = {
        "recipe": [RECIPE] * num_tracks,
        "resolution": ["16hz"] * num_tracks,
        "track_id": [f"TR{block * BLOCK + number:016d}" for number in range(num_tracks)],
        "content_hash": [f"{block * BLOCK + number:064x}" for number in range(num_tracks)],
        "start_frame": [0] * num_tracks,
        "event_time": [0] * num_tracks,
        "num_frames": [num_frames] * num_tracks,
        "frame_rate_hz": [rate_hz] * num_tracks,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in FRAMES if field.name in columns]
    return pa.table([*arrays, pa.ListArray.from_arrays(offsets, vectors)], schema=FRAMES)


def take_cpu_time(call: Callable[[], Any]) -> tuple[Any, float]:
    """Call, and return the result with the processor seconds that it took."""
    start_s = time.process_time()
    result = call()
    return result, time.process_time() - start_s
