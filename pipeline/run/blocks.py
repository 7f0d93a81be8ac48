"""Blocks: how many tracks one task takes, and how a stage's rows travel to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipeline.catalog.members import UNKNOWN_SIZE_BYTES, count_read_bytes, group_by_chunk
from pipeline.run.cluster import set_up
from pipeline.run.passes import plan_blocks
from pipeline.run.placement import CLIP_BYTES
from pipeline.run.ray_private import share_rows

BLOCK_FILE_BYTES = 2**28  # of a block's files: one bulk read
BLOCK_BYTES = 192 * 2**20  # of what travels together at least: waveforms of 64 clips are 176 MiB, their frames 188
SHARED_ROWS = 2**14  # of the plan in one object, some 6 MB, of which every task takes its rows
SHARD_TRACKS = 32  # members of shards that a block has at least: they are read in one request
PAYLOADS = ("waveform", "features")  # columns that are nearly all of a row's bytes, and are never copied


def share_plan(
    rows: pa.Table, tracks_per_block: int, known_sizes_bytes: pa.Array | None = None
) -> ray.data.Dataset:
    """Return planned rows as a dataset; arguments as of ``passes.plan_blocks``."""
    if tracks_per_block > 1 and pc.any(pc.match_substring(rows.column("uri"), "#bytes=")).as_py():
        tracks_per_block = max(tracks_per_block, SHARD_TRACKS)
    chunks = group_by_chunk(rows.column("uri")) if tracks_per_block > 1 else None
    if chunks is None:
        read_bytes = pc.fill_null(rows["size_bytes"], UNKNOWN_SIZE_BYTES).to_numpy()
        planned = plan_blocks(rows["size_bytes"], tracks_per_block, known_sizes_bytes)
    else:
        rows, chunks = sort_by_chunk(rows, chunks)
        counted = count_read_bytes(rows["uri"].to_pylist(), rows["size_bytes"].to_pylist())
        read_bytes = np.fromiter(counted, np.int64)
        planned = cut_between_chunks(chunks, tracks_per_block)
    blocks: list[range] = []
    for block in planned:
        # Of files that the store likely knows, which make longer blocks, little but the hash is wanted.
        is_cut = chunks is not None or len(block) <= tracks_per_block
        blocks += cut_by_bytes(block, read_bytes, BLOCK_FILE_BYTES) if is_cut else [block]
    dataset = share_rows(_group_blocks(rows, blocks))
    # What a stage joins stays together.
    dataset.context.target_max_block_size = count_block_bytes(tracks_per_block)
    # A part holds a block, whose ids follow each other, in whatever order parts come.
    set_up(dataset, keeps_order=False)
    return dataset


def count_block_bytes(tracks_per_block: int) -> int:
    """Return how much travels together, so that a block of clips does."""
    return max(BLOCK_BYTES, tracks_per_block * CLIP_BYTES)


def sort_by_chunk(rows: pa.Table, chunks: pa.Array) -> tuple[pa.Table, npt.NDArray[np.int32]]:
    """Let rows that are read together follow each other, in the order of the first of each; return theirs too."""
    numbers = chunks.to_numpy()
    order = np.argsort(numbers, kind="stable")
    return rows.take(pa.array(order)), numbers[order]


def cut_between_chunks(chunks: npt.NDArray[np.int32], tracks_per_block: int) -> Iterator[range]:
    """Cut planned rows into blocks that end where a row group does, so that no other block reads it again.

    Args:
        chunks: A number for each row, from ``members.group_by_chunk``, equal ones together.
        tracks_per_block: A block ends with the row group that brings it so many.
    """
    ends = np.flatnonzero(np.diff(chunks, append=-1)) + 1
    start = 0
    while start < len(chunks):
        stop = int(ends[np.searchsorted(ends, min(start + tracks_per_block, len(chunks)))])
        yield range(start, stop)
        start = stop


def _group_blocks(rows: pa.Table, blocks: Sequence[range]) -> Iterator[tuple[pa.Table, list[range]]]:
    """Yield pieces of the plan that are shared as one object, and the rows of their blocks in them."""
    group: list[range] = []
    for block in blocks:
        group.append(block)
        first = group[0].start
        if block.stop - first >= SHARED_ROWS or block.stop == rows.num_rows:
            own = [range(each.start - first, each.stop - first) for each in group]
            yield rows.slice(first, block.stop - first), own
            group = []


def cut_by_bytes(block: range, read_bytes: Sequence[int] | npt.NDArray[np.int64], max_bytes: int) -> list[range]:
    """Cut a block of planned rows where its files are too large to be read together.

    Args:
        block: Which rows.
        read_bytes: What has to be read for each row; 0 where it comes with the row before.
        max_bytes: Of the files of a block; a larger file is a block of its own.
    """
    blocks, start, total_bytes = [], block.start, 0
    for row in block:
        own_bytes = int(read_bytes[row])
        if row > start and own_bytes > 0 and total_bytes + own_bytes > max_bytes:
            blocks.append(range(start, row))
            start, total_bytes = row, 0
        total_bytes += own_bytes
    return [*blocks, range(start, block.stop)]


def join_tables(tables: Iterable[pa.Table], max_bytes: int) -> Iterator[pa.Table]:
    """Join what a stage yields into tables of so many bytes; facts are one chunk each, payloads are not copied.

    Ray packs and unpacks every chunk of every column in Python, which costs more than to carry a track's samples.

    Args:
        tables: Rows of one schema.
        max_bytes: A table is passed on once it has so many.
    """
    waiting: list[pa.Table] = []
    size_bytes = 0
    for table in tables:
        waiting.append(table)
        size_bytes += table.nbytes
        del table
        if size_bytes >= max_bytes:
            yield _join(waiting)
            waiting, size_bytes = [], 0
    if waiting:
        yield _join(waiting)


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    joined = pa.concat_tables(tables)
    columns = [
        column if name in PAYLOADS else column.combine_chunks()
        for name, column in zip(joined.column_names, joined.columns, strict=True)
    ]
    return pa.table(columns, schema=joined.schema)
