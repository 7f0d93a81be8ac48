"""What a report reads of the store: bounded samples of the ledger and the vectors, and the failures on record.

A catalog of a million tracks is not read for a page of pictures: a few row groups, spread evenly over a table's
files, stand for it, and the report says how many tracks they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.location import StoreLocation, open_arrow_filesystem
from pipeline.schema import KEYS, TABLES, TRACKS
from pipeline.storage import join_url
from pipeline.store.ledger import list_table_files
from pipeline.store.read_parts import keep_live, read_tracks_of
from pipeline.store.snapshot import find_versions
from pipeline.store.tables import open_table, read_columns

MAX_SAMPLED = 6000
MAX_FILES = 64  # opened for a sample
MAX_FILES_AT_ONCE = 8
MAX_EXAMPLES = 3  # of each reason

SAMPLE_COLUMNS = (
    *("track_id", "title", "artist", "genre", "codec", "source_sample_rate_hz", "num_channels"),
    *("duration_s", "rms", "peak", "clipped_share", "silent_share"),
)
NAME_COLUMNS = ("track_id", "title", "artist", "genre")


@dataclass(frozen=True)
class Sample:
    """Some of a recipe's tracks.

    Args:
        rows: ``SAMPLE_COLUMNS`` of them.
        num_total: How many tracks the recipe has.
    """

    rows: pa.Table
    num_total: int


def sample_tracks(store: StoreLocation, version: int, recipe: str, max_rows: int = MAX_SAMPLED) -> Sample:
    """Read some rows of the ledger, spread evenly over its files; all of them where they are few.

    Args:
        store: The store.
        version: Version of ``tracks``.
        recipe: Recipe id.
        max_rows: How many at most.

    Raises:
        StorageError: The table cannot be read.
        OSError: A file cannot be read.
    """
    files = list_table_files(open_table(store, "tracks", version), "tracks", recipe)
    num_total = sum(int(file["num_records"]) for file in files)
    return Sample(_sample_rows(store, "tracks", files, SAMPLE_COLUMNS, max_rows), num_total)


def sample_vectors(
    store: StoreLocation, version: int, recipe: str, max_rows: int = MAX_SAMPLED, run_id: str | None = None
) -> tuple[npt.NDArray[np.float32], pa.Table]:
    """Read some tracks' global vectors, spread evenly over the files that hold them; all where they are few.

    Args:
        store: The store.
        version: Version of ``tracks``.
        recipe: Recipe id.
        max_rows: How many at most; fewer come of it where files hold what the ledger names no longer.
        run_id: Only vectors that this run wrote.

    Returns:
        float32 of shape (num_vectors, embed_dim), and ``NAME_COLUMNS`` of their tracks, a row each; (0, 0) where
        there are none.

    Raises:
        StorageError: A table cannot be read.
        OSError: A file cannot be read.
    """
    _, frames_version = find_versions(store, version)
    frames = open_table(store, "frames", frames_version)
    files = [
        file
        for file in list_table_files(frames, "frames", recipe)
        if file["partition.resolution"] == "global" and (run_id is None or f"part-{run_id}-" in file["path"])
    ]
    parts = list_table_files(open_table(store, "tracks", version), "tracks", recipe)
    nothing = np.empty((0, 0), np.float32), pa.schema([TRACKS.field(name) for name in NAME_COLUMNS]).empty_table()
    if not files or not parts:
        return nothing
    found = _sample_rows(store, "frames", files, (*KEYS, "embeddings"), max_rows)
    ids, columns = found.column("track_id").to_pylist(), [*NAME_COLUMNS, "content_hash"]
    ledger = read_tracks_of(store, "tracks", pa.Table.from_pylist(parts), ids, columns)
    found = keep_live(found, ledger)
    if not found.num_rows:
        return nothing
    place = pc.index_in(found.column("track_id"), ledger.column("track_id"))
    flat = pc.list_flatten(pc.list_flatten(found.column("embeddings"))).to_numpy()
    vectors = np.asarray(flat, np.float32).reshape(found.num_rows, -1)
    return vectors, ledger.take(place).select(list(NAME_COLUMNS))


def _sample_rows(
    store: StoreLocation, table_name: str, files: list[dict[str, Any]], columns: Sequence[str], max_rows: int
) -> pa.Table:
    """Read some columns of so many rows at most, spread evenly over files and the row groups in them."""
    num_total = sum(int(file["num_records"]) for file in files)
    if len(files) > MAX_FILES and num_total > max_rows:
        files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MAX_FILES).astype(int))]
    num_reached = sum(int(file["num_records"]) for file in files)
    share = min(1.0, max_rows / max(1, num_reached))
    fs, root = open_arrow_filesystem(store.table_url(table_name), store.options)

    def read(file: dict[str, Any]) -> pa.Table:
        with fs.open_input_file(join_url(root, file["path"])) as source:
            return _read_evenly(pq.ParquetFile(source), columns, round(share * int(file["num_records"])))

    empty = pa.schema([TABLES[table_name].field(name) for name in columns]).empty_table()
    with ThreadPoolExecutor(max_workers=MAX_FILES_AT_ONCE) as pool:
        parts = [rows.cast(empty.schema) for rows in pool.map(read, files)]
    return pa.concat_tables([empty, *parts])


def _read_evenly(file: pq.ParquetFile, columns: Sequence[str], num_rows: int) -> pa.Table:
    """Read so many rows of a file, from as few of its row groups as hold twice that."""
    num_groups, num_all = file.num_row_groups, file.metadata.num_rows
    num_needed = min(num_groups, int(np.ceil(2 * num_groups * num_rows / max(1, num_all)))) if num_rows else 0
    groups = np.unique(np.linspace(0, num_groups - 1, num_needed).round().astype(int)).tolist()
    # Without threads: pyarrow's now and then abort the process as it exits (apache/arrow issue 34314).
    rows = file.read_row_groups(groups, list(columns), use_threads=False)
    chosen = np.unique(np.linspace(0, rows.num_rows - 1, min(num_rows, rows.num_rows)).astype(int))
    return rows if len(chosen) == rows.num_rows else rows.take(pa.array(chosen))


def summarise_failures(store: StoreLocation, recipes: Sequence[str], run_id: str) -> list[dict[str, Any]]:
    """Count the failures on record by stage and reason, with a few examples of each.

    Args:
        store: The store.
        recipes: The run's recipes; a track that fails for several of them counts once.
        run_id: The run, whose own failures come first among the examples.

    Returns:
        For each stage and reason, most frequent first: stage, reason, number, num_new and examples (track_id,
        uri, message).

    Raises:
        StorageError: The table cannot be read.
    """
    table = open_table(store, "failures")
    facts = read_columns(table, ["recipe", "track_id", "stage", "error_type", "run_id"])
    is_new_by_failure: dict[tuple[str, str], dict[str, bool]] = {}
    for row in facts.to_pylist():
        if row["recipe"] in recipes:
            is_new = is_new_by_failure.setdefault((row["stage"], row["error_type"]), {})
            is_new[row["track_id"]] = is_new.get(row["track_id"], False) or row["run_id"] == run_id
    chosen = {
        key: sorted(is_new, key=lambda name: (not is_new[name], name))[:MAX_EXAMPLES]
        for key, is_new in is_new_by_failure.items()
    }
    wanted = sorted({track_id for ids in chosen.values() for track_id in ids})
    columns = ["track_id", "stage", "error_type", "uri", "error_message"]
    told = read_columns(table, columns, track_ids=wanted).to_pylist() if wanted else []
    messages = {(row["stage"], row["error_type"], row["track_id"]): row for row in told}
    return [
        {
            "stage": stage,
            "reason": reason,
            "number": len(is_new),
            "num_new": sum(is_new.values()),
            "examples": [
                {"track_id": track_id, "uri": row["uri"], "message": row["error_message"]}
                for track_id in chosen[stage, reason]
                if (row := messages.get((stage, reason, track_id)))
            ],
        }
        for (stage, reason), is_new in sorted(is_new_by_failure.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
