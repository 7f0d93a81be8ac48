"""What a report reads of the store: a bounded sample of the ledger, and the failures on record.

A catalog of a million tracks is not read for a page of pictures: a few row groups, spread evenly over the
ledger's files, stand for it, and the report says how many tracks they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.location import StoreLocation, open_arrow_filesystem
from pipeline.schema import TRACKS
from pipeline.storage import join_url
from pipeline.store.ledger import list_table_files
from pipeline.store.tables import open_table, read_columns

MAX_SAMPLED = 6000
MAX_FILES = 64  # opened for a sample
MAX_FILES_AT_ONCE = 8
MAX_EXAMPLES = 3  # of each reason

SAMPLE_COLUMNS = (
    *("track_id", "title", "artist", "genre", "codec", "source_sample_rate_hz", "num_channels"),
    *("duration_s", "rms", "peak", "clipped_share", "silent_share", "run_id", "embedding"),
)


@dataclass(frozen=True)
class Sample:
    """Some of a recipe's tracks.

    Args:
        rows: ``SAMPLE_COLUMNS`` of them.
        num_total: How many tracks the recipe has.
    """

    rows: pa.Table
    num_total: int


def sample_tracks(
    store: StoreLocation, version: int, recipe: str, max_rows: int = MAX_SAMPLED, run_id: str | None = None
) -> Sample:
    """Read some rows of the ledger, spread evenly over its files; all of them where they are few.

    Args:
        store: The store.
        version: Version of ``tracks``.
        recipe: Recipe id.
        max_rows: How many at most.
        run_id: Only files that this run wrote, and rows that it embedded.

    Raises:
        StorageError: The table cannot be read.
        OSError: A file cannot be read.
    """
    files = list_table_files(open_table(store, "tracks", version), "tracks", recipe)
    if run_id is not None:  # it is part of the names of a run's files
        files = [file for file in files if f"part-{run_id}-" in file["path"]]
    num_total = sum(int(file["num_records"]) for file in files)
    if len(files) > MAX_FILES and num_total > max_rows:
        files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MAX_FILES).astype(int))]
    num_reached = sum(int(file["num_records"]) for file in files)
    share = min(1.0, max_rows / max(1, num_reached))
    fs, root = open_arrow_filesystem(store.table_url("tracks"), store.options)

    def read(file: dict[str, Any]) -> pa.Table:
        with fs.open_input_file(join_url(root, file["path"])) as source:
            return _read_evenly(pq.ParquetFile(source), round(share * int(file["num_records"])))

    empty = pa.schema([TRACKS.field(name) for name in SAMPLE_COLUMNS]).empty_table()
    with ThreadPoolExecutor(max_workers=MAX_FILES_AT_ONCE) as pool:
        parts = [rows.cast(empty.schema) for rows in pool.map(read, files)]
    rows = pa.concat_tables([empty, *parts])
    return Sample(rows if run_id is None else rows.filter(pc.equal(rows.column("run_id"), run_id)), num_total)


def _read_evenly(file: pq.ParquetFile, num_rows: int) -> pa.Table:
    """Read so many rows of a file, from as few of its row groups as hold twice that."""
    num_groups, num_all = file.num_row_groups, file.metadata.num_rows
    num_needed = min(num_groups, int(np.ceil(2 * num_groups * num_rows / max(1, num_all)))) if num_rows else 0
    groups = np.unique(np.linspace(0, num_groups - 1, num_needed).round().astype(int)).tolist()
    # Without threads: pyarrow's now and then abort the process as it exits (apache/arrow issue 34314).
    rows = file.read_row_groups(groups, list(SAMPLE_COLUMNS), use_threads=False)
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
