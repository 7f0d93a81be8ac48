"""How planning, opening and committing grow with the ledger: 10 k, 100 k and 1 M tracks, nothing to do.

    .venv/bin/python -m benchmarks.ledger [--sizes 10000,100000,1000000]
    .venv/bin/python -m benchmarks.ledger --sizes 100000 --changed 0.01 [--embed-dim 1024]

The ledger is synthetic: real columns. Each size runs in a process of its own, so that its peak memory is its own.

With ``--changed`` such a share of the tracks, drawn at random, is embedded anew with global vectors, and committed
in the order of ids. It prints the bytes that are written for it as a share of those of the ledger and all global
vectors, and how much of them are ledger rows written anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Recipe
from pipeline.location import StoreLocation
from pipeline.run.prepare import plan_against_store
from pipeline.schema import CATALOG, FEATURE_LIST, TRACKS
from pipeline.store.commit import RunCommitter
from pipeline.store.maintain import TARGET_LEDGER_BYTES
from pipeline.store.parts import Part, round_mantissa, write_part
from pipeline.store.read import FeatureStore
from pipeline.store.tables import create_tables
from pipeline.store.upgrade import build_vector_rows
from pipeline.store.writer import StoreWriter

ROWS_PER_PART = 50_000
FACTS_BYTES = 110  # of a row
RECIPE = Recipe("00" * 32, 7).recipe_id
RESOLUTIONS = ("50hz", "16hz", "8hz", "0.5hz", "global")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    """Print one line per size, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument(
        "--changed", type=float, default=0.0, help="measure this share of the tracks embedded anew"
    )
    parser.add_argument("--embed-dim", type=int, default=1024, help="of the vectors, with --changed")
    parser.add_argument("--commits", type=int, default=1, help="of the changed tracks, with --changed")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.changed:
        sizes = [int(size) for size in flags.sizes.split(",")]
        print(json.dumps([measure_change(size, flags.changed, flags.embed_dim, flags.commits) for size in sizes]))
        return
    if flags.one is not None:
        print(json.dumps(measure(flags.one)))
        return
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}")
    print(f"{'tracks':>10} {'plan s':>8} {'open s':>8} {'commit s':>9} {'peak GiB':>9}")
    rows = []
    for size in flags.sizes.split(","):
        command = [sys.executable, "-m", "benchmarks.ledger", "--one", size]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['tracks']:>10} {row['plan_s']:>8.2f} {row['open_s']:>8.3f} {row['commit_s']:>9.3f} "
            f"{row['peak_bytes'] / 2**30:>9.2f}"
        )
    print(json.dumps(rows))


def measure(num_tracks: int) -> dict[str, Any]:
    """Build a ledger, plan a refresh with nothing to do, open the store and commit to it."""
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(str(Path(folder) / "store"))
        create_tables(store)
        catalog = build_catalog(num_tracks)
        writer = StoreWriter(store, "build")
        parts = [
            write_part(rows, "tracks", store.table_url("tracks"), {"recipe": RECIPE}, "build")
            for rows in build_ledger_parts(catalog)
        ]
        writer.commit_ledger([part.as_add_action() for part in parts], "close")
        plan, plan_s = take_time(lambda: plan_against_store(catalog, store, [RECIPE], RESOLUTIONS))
        assert plan.num_unchanged == num_tracks, "the plan has something to do"
        _, open_s = take_time(lambda: FeatureStore(store.url))
        _, commit_s = take_time(lambda: writer.commit_ledger([], "close"))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tracks": num_tracks,
        "plan_s": plan_s,
        "open_s": open_s,
        "commit_s": commit_s,
        "peak_bytes": peak_bytes,
    }


def measure_change(num_tracks: int, changed_share: float, embed_dim: int, num_commits: int) -> dict[str, float]:
    """Let tracks be embedded anew, in a ledger of parts as compaction leaves them, and say what that writes."""
    rows_per_part = TARGET_LEDGER_BYTES // FACTS_BYTES
    random = np.random.default_rng(0)
    changed = np.sort(random.choice(num_tracks, round(changed_share * num_tracks), replace=False))
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(str(Path(folder) / "store"))
        create_tables(store)
        catalog = build_catalog(num_tracks)
        url, partition = store.table_url("tracks"), {"recipe": RECIPE}
        parts = []
        frames = []
        for start in range(0, num_tracks, rows_per_part):
            rows = build_random_rows(catalog.slice(start, rows_per_part), random)
            parts.append(write_part(rows, "tracks", url, partition, "build"))
            frames.append(write_vectors(store, rows, embed_dim, random, "build"))
        writer = StoreWriter(store, "build")
        writer.commit("frames", [part.as_add_action() for part in frames], "append")
        writer.commit_ledger([part.as_add_action() for part in parts], "close")
        ledger_bytes, all_bytes = (sum(part.size_bytes for part in some) for some in (parts, [*parts, *frames]))
        before = FeatureStore(store.url)
        committer = RunCommitter(store, "refresh", {RECIPE: Recipe("00" * 32, 7)})
        cpu_s, new_bytes = 0.0, 0
        for some in np.array_split(changed, num_commits):
            rows = build_random_rows(catalog.take(some), random)
            new = write_vectors(store, rows, embed_dim, random, "refresh")
            committer.take_over([new], rows)
            start_s = time.process_time()
            committer.commit()
            cpu_s += time.process_time() - start_s
            new_bytes += new.size_bytes
        committer.close()
        after = FeatureStore(store.url)
        assert before.tracks(["run_id"]).num_rows == after.tracks(["run_id"]).num_rows == num_tracks
    row = {
        "tracks": num_tracks,
        "embed_dim": embed_dim,
        "changed": len(changed),
        "commits": num_commits,
        "ledger_parts": len(parts),
        "ledger_mb": ledger_bytes / 1e6,
        "ledger_and_vectors_mb": all_bytes / 1e6,
        "written_share": committer.bytes_written / all_bytes,
        "of_it_ledger_mb": (committer.bytes_written - new_bytes) / 1e6,
        "cpu_s": cpu_s,
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return row


def write_vectors(
    store: StoreLocation, ledger: pa.Table, embed_dim: int, random: np.random.Generator, run_id: str
) -> Part:
    """Write global vectors of ledger rows, noise as real ones are to a codec."""
    values = round_mantissa(random.standard_normal(ledger.num_rows * embed_dim, np.float32), 10)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), embed_dim).cast(FEATURE_LIST)
    partition = {"recipe": RECIPE, "resolution": "global"}
    return write_part(build_vector_rows(ledger, lists), "frames", store.table_url("frames"), partition, run_id)


def build_random_rows(catalog: pa.Table, random: np.random.Generator) -> pa.Table:
    """Return ledger rows of a catalog: hashes and measures are noise, as real ones are to a codec."""
    size = catalog.num_rows
    own: dict[str, Any] = {
        "recipe": pa.repeat(RECIPE, size),
        "etag": [random.bytes(16).hex() for _ in range(size)],
        "content_hash": [random.bytes(32).hex() for _ in range(size)],
        "codec": pa.repeat("mp3", size),
        "source_sample_rate_hz": np.full(size, 44_100, np.int32),
        "num_channels": np.full(size, 2, np.int32),
        "duration_s": 30 + random.integers(0, 2000, size) / 44_100,
        **{name: random.random(size, np.float32) for name in ("rms", "peak", "clipped_share", "silent_share")},
        "num_frames_25hz": random.integers(740, 760, size, np.int32),
        "resolutions": [list(RESOLUTIONS)] * size,
        "event_time": pa.repeat(pa.scalar(NOW, TRACKS.field("event_time").type), size),
        "run_id": pa.repeat("build", size),
    }
    columns = {
        field.name: own[field.name] if field.name in own else catalog.column(field.name) for field in TRACKS
    }
    return pa.table(columns, schema=TRACKS)


def build_catalog(num_tracks: int) -> pa.Table:
    """Return a catalog of MSD-like ids with sizes and times."""
    ids = [f"TR{number:016d}" for number in range(num_tracks)]
    columns: dict[str, Any] = {
        "track_id": ids,
        "uri": [f"s3://bucket/msd/{track_id[2]}/{track_id[3]}/{track_id[4]}/{track_id}.mp3" for track_id in ids],
        "size_bytes": np.arange(num_tracks) + 400_000,
        "etag": [f"{number:032x}" for number in range(num_tracks)],
        "modified_time": pa.repeat(pa.scalar(NOW, CATALOG.field("modified_time").type), num_tracks),
        "title": [f"title {number}" for number in range(num_tracks)],
        "artist": [f"artist {number // 10}" for number in range(num_tracks)],
    }
    unknown = {field.name: pa.nulls(num_tracks, field.type) for field in CATALOG if field.name not in columns}
    return pa.table({**columns, **unknown}, schema=CATALOG)


def build_ledger_parts(catalog: pa.Table) -> list[pa.Table]:
    """Return ledger rows of a catalog, some tens of thousands a part."""
    parts = []
    for start in range(0, catalog.num_rows, ROWS_PER_PART):
        rows = catalog.slice(start, ROWS_PER_PART)
        size = rows.num_rows
        own: dict[str, Any] = {
            "recipe": pa.repeat(RECIPE, size),
            "content_hash": [f"{number:064x}" for number in range(start, start + size)],
            "resolutions": [list(RESOLUTIONS)] * size,
            "num_frames_25hz": [750] * size,
        }
        columns = {
            field.name: rows.column(field.name)
            if field.name in CATALOG.names
            else pa.array(own.get(field.name, [None] * size), field.type)
            for field in TRACKS
        }
        parts.append(pa.table(columns, schema=TRACKS))
    return parts


def take_time(call: Callable[[], Any]) -> tuple[Any, float]:
    """Call, and return the result with the seconds that it took."""
    start_s = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start_s


if __name__ == "__main__":
    main()
