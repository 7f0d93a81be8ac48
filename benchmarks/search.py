"""Search side by side: this index and plain faiss with the same parameters, on the same vectors, in one run.

    .venv/bin/python -m benchmarks.search [--sizes 100000] [--data realistic,isotropic] [--hnsw-below 200000]

For each set of vectors: its estimated dimension, then size, build time, recall@10 and latency of one query on one
thread, queries being rows left out of their own results. Then 5 % of the tracks are added, 5 % changed and 5 %
deleted: the follow-up's time against the rebuild's. Last, on paper, what larger catalogs need. With ``--clips``
the dimension of a store's own embeddings is estimated first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.search_data import (
    CHUNK_ROWS,
    EMBED_DIM,
    Matrix,
    change_store,
    count_participation,
    estimate_two_nn,
    make_isotropic,
    make_realistic,
    make_store,
    name_tracks,
)
from pipeline.index.build import build_index
from pipeline.index.codes import CODE_BITS, choose_num_lists, normalise_rows
from pipeline.index.draft import IndexSettings
from pipeline.index.manifest import IndexManifest
from pipeline.index.quality import K, leave_out, measure_quality, one_thread
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.store.read import FeatureStore

NUM_QUERIES = 200
HEADER = (
    f"{'':26}{'build s':>8} {'memory MB':>10} {'share':>6} {'mapped MB':>10} {'recall':>7} {'ms':>6} {'p95':>6}"
)
PAPER_SIZES = (1_000_000, 10_000_000, 100_000_000)
MAKERS: dict[str, Callable[[int, int], Matrix]] = {"realistic": make_realistic, "isotropic": make_isotropic}
_faiss: Any = faiss

Row = dict[str, Any]


def main() -> None:
    """Print tables, then everything as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000", help="comma-separated, such as 100000,1000000")
    parser.add_argument("--data", default="realistic,isotropic", help="comma-separated, of the two")
    parser.add_argument("--hnsw-below", type=int, default=200_000, help="larger sets take HNSW hours on two cores")
    parser.add_argument("--clips", metavar="STORE", help="estimate the dimension of a store's embeddings as well")
    flags = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, faiss {faiss.__version__}")
    report: dict[str, Any] = {"clips": measure_clips(flags.clips) if flags.clips else [], "sets": []}
    for size in (int(text) for text in flags.sizes.split(",")):
        for data in flags.data.split(","):
            report["sets"].append(measure_set(data, size, flags.hnsw_below))
    report["paper"] = estimate_on_paper()
    print(json.dumps(report))


def measure_set(data: str, size: int, hnsw_below: int) -> dict[str, Any]:
    """Measure one set of vectors in every way."""
    sample = MAKERS[data](CHUNK_ROWS, 0)
    dimension = {"participation": count_participation(sample), "two_nn": estimate_two_nn(sample)}
    print(f"\n{data}, {size} × {EMBED_DIM}: participation ratio {dimension['participation']:.0f}, ", end="")
    print(f"TwoNN {dimension['two_nn']:.0f} (over {CHUNK_ROWS} vectors)")
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(f"{folder}/store", iterate_chunks(data, size))
        rows, ivf = [], None
        for kind in ("exact", "ivf"):
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            manifest = build_index(store, IndexSettings(kind=kind, rebuild=True))
            seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
            quality = measure_quality(VectorIndex.open(store), NUM_QUERIES, seed=7)
            rows.append(print_row(describe(f"index, {kind}", seconds, manifest, quality)))
            ivf = (manifest, seconds, cpu_s, quality)
        assert ivf is not None
        rows += measure_plain(VectorIndex.open(store), size < hnsw_below)
        follow = measure_follow_up(store, data, size, *ivf)
    return {"data": data, "size": size, "dimension": dimension, "rows": rows, "follow_up": follow}


def describe(name: str, seconds: float, manifest: IndexManifest, quality: Row) -> Row:
    """Return a row of the table for one of our kinds; the system may drop its copy of mapped rows at any time."""
    return {
        "name": name,
        "build_s": seconds,
        "memory_bytes": manifest.sizes["memory_bytes"],
        "float32_bytes": manifest.sizes["float32_bytes"],
        "mapped_bytes": manifest.sizes["mapped_bytes"],
        "disk_bytes": manifest.sizes["disk_bytes"],
        "recall": quality["recall_at_10"],
        "median_ms": quality["median_ms"],
        "p95_ms": quality["p95_ms"],
        "parameters": manifest.parameters,
    }


def measure_plain(index: VectorIndex, with_hnsw: bool) -> list[Row]:
    """Measure plain faiss over the vectors of an index, with that index's parameters."""
    chosen = index.manifest.parameters
    queries = np.sort(np.random.default_rng(7).choice(index.num_rows, NUM_QUERIES, replace=False))
    vectors = index.vectors_at(queries)
    truth, _ = leave_out(*index.search_exactly(vectors, K + 1), queries)
    inverted = (
        f"PCAR{chosen['code_dim']},IVF{chosen['num_lists']},RaBitQ{CODE_BITS}"
        if chosen["code_dim"] < EMBED_DIM
        else f"RR,IVF{chosen['num_lists']},RaBitQ{CODE_BITS}"
    )
    rows = []
    for name, key in (("faiss SQfp16", "SQfp16"), (f"faiss {inverted}", f"{inverted},Refine(SQfp16)")):
        plain = _faiss.index_factory(EMBED_DIM, key, faiss.METRIC_L2)  # of unit rows: the order of the cosine
        params = None
        if "IVF" in key:
            _faiss.extract_index_ivf(plain.base_index).nprobe = chosen["nprobe"]
            plain.k_factor = chosen["depth"] / (K + 1)
        rows.append(print_row(measure_faiss(name, plain, params, index, vectors, queries, truth)))
        del plain
    if with_hnsw:
        plain = _faiss.IndexHNSWFlat(EMBED_DIM, 32, faiss.METRIC_INNER_PRODUCT)
        start = time.perf_counter()
        fill(plain, index)
        seconds = time.perf_counter() - start
        for ef in (64, 128, 256, 512):
            params = _faiss.SearchParametersHNSW(efSearch=ef)
            row = measure_faiss(f"faiss HNSW32, ef {ef}", plain, params, index, vectors, queries, truth, seconds)
            rows.append(print_row(row))
    return rows


def measure_faiss(
    name: str,
    plain: Any,
    params: Any,
    index: VectorIndex,
    vectors: Matrix,
    queries: npt.NDArray[np.int64],
    truth: Matrix,
    seconds: float | None = None,
) -> Row:
    """Fill a faiss index, unless it is filled, and measure it as ours are measured."""
    if seconds is None:
        start_s = time.perf_counter()
        fill(plain, index)
        seconds = time.perf_counter() - start_s
    latency_ms, found = [], []
    with one_thread():
        plain.search(vectors[:1], K + 1, params=params)
        for vector in vectors:
            start_s = time.perf_counter()
            found.append(plain.search(vector[None], K + 1, params=params)[1])
            latency_ms.append((time.perf_counter() - start_s) * 1000)
    rows = np.concatenate(found)
    pairs = zip(np.maximum(rows, 0), vectors, strict=True)
    exact = np.array([index.vectors_at(place) @ vector for place, vector in pairs])
    scores, _ = leave_out(exact, rows, queries)
    with tempfile.NamedTemporaryFile() as file:
        _faiss.write_index(plain, file.name)
        size_bytes = os.path.getsize(file.name)
    return {
        "name": name,
        "build_s": seconds,
        "memory_bytes": size_bytes,
        "float32_bytes": 4 * index.num_rows * EMBED_DIM,
        "mapped_bytes": 0,
        "disk_bytes": size_bytes,
        "recall": float((scores >= truth[:, K - 1 : K] - 1e-5).sum(axis=1).clip(max=K).mean() / K),
        "median_ms": float(np.median(latency_ms)),
        "p95_ms": float(np.percentile(latency_ms, 95)),
    }


def fill(plain: Any, index: VectorIndex) -> None:
    """Train a faiss index on as many rows as ours takes, and add all."""
    num_rows = index.num_rows
    if not plain.is_trained:
        wanted = min(num_rows, max(20_000, 32 * choose_num_lists(num_rows)))
        plain.train(index.vectors_at(np.sort(np.random.default_rng(0).choice(num_rows, wanted, replace=False))))
    for first in range(0, num_rows, CHUNK_ROWS):
        plain.add(index.vectors_at(np.arange(first, min(num_rows, first + CHUNK_ROWS))))


def measure_follow_up(
    store: StoreLocation, data: str, size: int, manifest: IndexManifest, seconds: float, cpu_s: float, quality: Row
) -> Row:
    """Add, change and delete 5 % of the tracks each, follow, and compare with the rebuild that was."""
    order = np.random.default_rng(3).permutation(size)
    share = size // 20
    gone = name_tracks(order[:share])
    numbers = np.concatenate([order[share : 2 * share], np.arange(size, size + share)])
    change_store(store, gone, numbers, MAKERS[data](len(numbers), 999), "second")
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    followed = build_index(store, IndexSettings(kind="ivf"))
    follow_s, follow_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    index = VectorIndex.open(store)
    after = measure_quality(index, NUM_QUERIES, seed=7)
    assert not set(gone) & set(index.tracks.column("track_id").to_pylist())
    assert len(followed.segments) == len(manifest.segments) + 1, "it was rebuilt"
    row = {
        "follow_s": follow_s,
        "rebuild_s": seconds,
        "ratio": follow_s / seconds,
        "cpu_ratio": follow_cpu_s / cpu_s,
        "recall_before": quality["recall_at_10"],
        "recall_after": after["recall_at_10"],
    }
    print(
        f"5 % added, changed and deleted each: {follow_s:.1f} s, {row['ratio']:.3f} of the rebuild "
        f"({row['cpu_ratio']:.3f} of its CPU seconds); recall@10 {row['recall_before']:.3f} before, "
        f"{row['recall_after']:.3f} after"
    )
    return row


def measure_clips(url: str) -> list[Row]:
    """Estimate the dimension of a store's embeddings of real music; the demo's model is not trained."""
    store = FeatureStore(url)
    rows = []
    for resolution in ("0.5hz", "8hz"):
        _, vectors = store.vectors(resolution)
        unit = normalise_rows(vectors)
        row = {
            "resolution": resolution,
            "num_vectors": len(unit),
            "embed_dim": unit.shape[1],
            "participation": count_participation(unit),
            "two_nn": estimate_two_nn(unit),
        }
        rows.append(row)
        print(
            f"{url} at {resolution}: {row['num_vectors']} × {row['embed_dim']}, participation ratio "
            f"{row['participation']:.1f}, TwoNN {row['two_nn']:.1f}"
        )
    return rows


def estimate_on_paper(code_dim: int = 128) -> list[Row]:
    """Say what catalogs of some sizes need, from the layout of the files alone; nothing is measured.

    Codes of ``code_dim`` to all dimensions: two bits each and factors, with eight bytes of id a code; the
    centroids of the lists and the rotation are float32. A row of the table of tracks takes about 300 bytes.
    """
    print(f"\non paper, {EMBED_DIM} dimensions, one vector a track, GB:")
    print(f"{'tracks':>12} {'lists':>6} {'codes':>16} {'rows on disk':>13} {'table of tracks':>16}")
    rows = []
    for size in PAPER_SIZES:
        num_lists = choose_num_lists(size)
        low, high = (paper_bytes(size, num_lists, dim) for dim in (code_dim, EMBED_DIM))
        row = {
            "tracks": size,
            "num_lists": num_lists,
            "codes_bytes_low": low,
            "codes_bytes_high": high,
            "rows_bytes": 2 * size * EMBED_DIM,
            "tracks_bytes": 300 * size,
        }
        rows.append(row)
        codes = f"{low / 1e9:.2f} to {high / 1e9:.2f}"
        on_disk = f"{row['rows_bytes'] / 1e9:>13.1f} {row['tracks_bytes'] / 1e9:>16.2f}"
        print(f"{size:>12} {num_lists:>6} {codes:>16} {on_disk}")
    return rows


def paper_bytes(size: int, num_lists: int, code_dim: int) -> int:
    """Return the bytes of codes, ids, centroids and rotation."""
    codes = _faiss.IndexIVFRaBitQ(_faiss.IndexFlatL2(code_dim), code_dim, 1, _faiss.METRIC_L2, False, CODE_BITS)
    return int(size * (codes.code_size + 8) + 4 * code_dim * (num_lists + EMBED_DIM))


def iterate_chunks(data: str, size: int) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
    """Draw a set of vectors by chunks, each with its track numbers."""
    for first in range(0, size, CHUNK_ROWS):
        numbers = np.arange(first, min(size, first + CHUNK_ROWS))
        yield numbers, MAKERS[data](len(numbers), first + 1)


def print_row(row: Row) -> Row:
    """Print a row of the table, and return it."""
    share = row["memory_bytes"] / row["float32_bytes"]
    print(
        f"{row['name']:26.26}{row['build_s']:>8.1f} {row['memory_bytes'] / 1e6:>10.1f} {share:>6.1%} "
        f"{row['mapped_bytes'] / 1e6:>10.1f} {row['recall']:>7.3f} {row['median_ms']:>6.2f} {row['p95_ms']:>6.2f}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
