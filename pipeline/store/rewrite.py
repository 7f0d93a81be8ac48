"""Rewrite: some parts of ``frames`` become one that holds their live rows; what compaction is made of.

Where all rows are alive, row groups are carried over as they are. Where some are dead, values are encoded again,
some 64 MiB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.location import StoreLocation
from pipeline.schema import FRAMES, KEYS, PARTITION_COLUMNS
from pipeline.store.joining import DifferentSchemasError, join_parts
from pipeline.store.ledger import join_keys
from pipeline.store.parts import Part, cut_row_groups, write_row_groups
from pipeline.store.read_parts import stream_rows
from pipeline.store.segments import sort_rows

COLUMNS = tuple(name for name in FRAMES.names if name not in PARTITION_COLUMNS["frames"])


@dataclass(frozen=True)
class Rewrite:
    """Parts that are to become one.

    Args:
        parts: Of one partition, by their first track ids.
        live: Keys, as ``ledger.join_keys`` gives them, of the rows that stay; None where all do.
    """

    parts: Sequence[Part]
    live: pa.Array | None

    @property
    def size_bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.size_bytes for part in self.parts)


def rewrite_parts(rewrite: Rewrite, store: StoreLocation, run_id: str) -> Part | None:
    """Write one part of the live rows of several; they stay where they are.

    Args:
        rewrite: Which parts.
        store: Where they lie.
        run_id: The run that writes; part of the file's name.

    Returns:
        The new part, which no reader sees before a commit adds it; None where no row stays.

    Raises:
        StorageError: A part cannot be read or written.
    """
    url = store.table_url("frames")
    if rewrite.live is None and _follow_each_other(
        [(part.min_track_id, part.max_track_id) for part in rewrite.parts]
    ):
        try:
            return join_parts(rewrite.parts, url, run_id, store.options)
        except DifferentSchemasError:
            pass  # another tool has compacted the table: its files are read as any others
    empty = FRAMES.empty_table().select(list(KEYS))
    live_keys = [pa.concat_tables([empty, *_stream_live(part, KEYS, rewrite, store)]) for part in rewrite.parts]
    ids = [keys.column("track_id") for keys in live_keys if keys.num_rows]
    if not ids:
        return None
    tables: Iterator[pa.Table] = (
        rows for part in rewrite.parts for rows in _stream_live(part, COLUMNS, rewrite, store)
    )
    spans = [pc.min_max(each).as_py() for each in ids]
    if not _follow_each_other([(span["min"], span["max"]) for span in spans]):
        tables = iter([sort_rows(pa.concat_tables(tables))])
    partition = {"recipe": str(rewrite.parts[0].recipe), "resolution": str(rewrite.parts[0].resolution)}
    row_groups = (group for rows in tables for group in cut_row_groups("frames", rows))
    all_ids = pa.chunked_array([chunk for each in ids for chunk in each.chunks])
    return write_row_groups(row_groups, all_ids, "frames", url, partition, run_id, store.options)


def _follow_each_other(spans: Sequence[tuple[str | None, str | None]]) -> bool:
    """Say whether spans of track ids lie one after the other."""
    return all(
        before[1] is not None and after[0] is not None and before[1] < after[0]
        for before, after in pairwise(spans)
    )


def _stream_live(part: Part, columns: Sequence[str], rewrite: Rewrite, store: StoreLocation) -> Iterator[pa.Table]:
    """Yield the rows of a part that stay."""
    for rows in stream_rows(store, "frames", part.path, columns, use_threads=False):
        if rewrite.live is not None:
            rows = rows.filter(pc.is_in(join_keys(rows), rewrite.live))
        if rows.num_rows:
            yield rows
