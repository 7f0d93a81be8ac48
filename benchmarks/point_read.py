"""Reading one track's 16 Hz frames by its id, in a store of 1 k and of 100 k tracks, on disk and over S3.

    .venv/bin/python -m benchmarks.point_read [--sizes 1000,100000]

Parts hold as many 30 s tracks as make 128 MB, and the ledger as many rows as a run of an hour commits. The part
that is read from is real: 480 frames of 1024 dimensions a track; to spare the disk, the tracks of the others have
two frames of four. The S3 server is a real one on this machine, behind a proxy that counts requests.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.ledger import RECIPE, build_catalog, build_ledger_parts, take_time
from pipeline.location import StoreLocation
from pipeline.schema import FRAMES
from pipeline.store.parts import write_part
from pipeline.store.read import FeatureStore
from pipeline.store.tables import create_tables
from pipeline.store.writer import StoreWriter
from tests.fault_proxy import run_fault_proxy
from tests.s3_server import STORE, STORE_BUCKET, S3Server, find_server, run_s3_server

TRACKS_PER_PART = 145
NUM_READS = 30
NUM_FRAMES, EMBED_DIM = 480, 1024


def main() -> None:
    """Print one line per size and place, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,100000")
    flags = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}")
    print(f"{'tracks':>8} {'place':>6} {'open ms':>8} {'median ms':>10} {'p95 ms':>7} {'requests':>9}")
    rows = [row for size in flags.sizes.split(",") for row in measure(int(size))]
    print(json.dumps(rows))


def measure(num_tracks: int) -> Iterator[dict[str, Any]]:
    """Build a store on disk and one on S3, and read from both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        local = StoreLocation(str(folder / "store"))
        ids = build_store(local, num_tracks)
        yield show({"tracks": num_tracks, "place": "disk", **time_reads(local, ids), "requests": None})
        program = find_server()
        if program is None:
            print("no S3 server here: the development extra installs one")
            return
        with run_s3_server(program, folder) as server:
            remote = StoreLocation(f"s3://{STORE_BUCKET}/bench", server.options(STORE))
            ids = build_store(remote, num_tracks)
            times = time_reads(remote, ids)
            requests = count_requests(server, remote, ids[0], folder / "log")
            yield show({"tracks": num_tracks, "place": "S3", **times, "requests": requests})


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Print one measurement."""
    print(
        f"{row['tracks']:>8} {row['place']:>6} {row['open_ms']:>8.1f} {row['median_ms']:>10.1f} "
        f"{row['p95_ms']:>7.1f} {row['requests'] or '':>9}",
        flush=True,
    )
    return row


def build_store(store: StoreLocation, num_tracks: int) -> list[str]:
    """Make a store of so many tracks; returns the ids of those with real features."""
    create_tables(store)
    catalog = build_catalog(num_tracks)
    ledger = pa.concat_tables(build_ledger_parts(catalog))
    writer = StoreWriter(store, "build")
    parts = []
    real = num_tracks // 2 // TRACKS_PER_PART
    for position, start in enumerate(range(0, num_tracks, TRACKS_PER_PART)):
        rows = build_frames(ledger.slice(start, TRACKS_PER_PART), position == real)
        partition = {"recipe": RECIPE, "resolution": "16hz"}
        parts.append(write_part(rows, "frames", store.table_url("frames"), partition, "build", store.options))
    writer.commit("frames", [part.as_add_action() for part in parts], "append")
    parts = [
        write_part(rows, "tracks", store.table_url("tracks"), {"recipe": RECIPE}, "build", store.options)
        for rows in (ledger.slice(start, 10_000) for start in range(0, num_tracks, 10_000))
    ]
    writer.commit_ledger([part.as_add_action() for part in parts], "close")
    ids: list[str] = ledger.column("track_id").slice(real * TRACKS_PER_PART, TRACKS_PER_PART).to_pylist()
    return ids


def build_frames(ledger: pa.Table, real: bool) -> pa.Table:
    """Return ``frames`` rows of some tracks."""
    num_frames, embed_dim = (NUM_FRAMES, EMBED_DIM) if real else (2, 4)
    num_tracks = ledger.num_rows
    values = np.random.default_rng(0).standard_normal(num_tracks * num_frames * embed_dim).astype(np.float16)
    flat = pa.array(values.astype(np.float32))
    vectors = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, embed_dim, dtype=np.int32), flat)
    tracks = pa.ListArray.from_arrays(np.arange(0, len(vectors) + 1, num_frames, dtype=np.int32), vectors)
    columns: dict[str, Any] = {
        "recipe": ledger.column("recipe"),
        "resolution": pa.repeat("16hz", num_tracks),
        "track_id": ledger.column("track_id"),
        "content_hash": ledger.column("content_hash"),
        "event_time": pa.repeat(pa.scalar(datetime.now(UTC), FRAMES.field("event_time").type), num_tracks),
        "num_frames": pa.repeat(pa.scalar(num_frames, pa.int32()), num_tracks),
        "frame_rate_hz": pa.repeat(16.0, num_tracks),
        "embeddings": tracks,
    }
    return pa.table(columns, schema=FRAMES)


def time_reads(store: StoreLocation, ids: list[str]) -> dict[str, float]:
    """Open the store, and read single tracks after one another; the first read warms nothing but the process."""
    snapshot, open_s = take_time(lambda: FeatureStore(store.url, options=store.options))
    snapshot.frames([ids[-1]], "16hz")
    times_ms = []
    for track_id in ids[:NUM_READS]:
        start_s = time.perf_counter()
        frames = snapshot.frames([track_id], "16hz")
        times_ms.append(1000 * (time.perf_counter() - start_s))
        assert frames.column("num_frames").to_pylist() == [NUM_FRAMES]
    return {
        "open_ms": 1000 * open_s,
        "median_ms": float(np.median(times_ms)),
        "p95_ms": float(np.percentile(times_ms, 95)),
    }


def count_requests(server: S3Server, store: StoreLocation, track_id: str, log: Path) -> int:
    """Count the requests of one read from a store that is open already."""
    with run_fault_proxy(server.url, log) as proxy:
        snapshot = FeatureStore(store.url, options=server.options(STORE, proxy.url))
        before = len(proxy.read_requests())
        snapshot.frames([track_id], "16hz")
        return len(proxy.read_requests()) - before


if __name__ == "__main__":
    main()
