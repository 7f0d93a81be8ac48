"""Parts of one snapshot, read with Arrow alone: whole, or only the row groups of some tracks.

Not with delta-rs's ``to_pyarrow_dataset``: it takes a column without statistics for one that matches nothing,
and its file system in Python now and then aborts the process at its end (apache/arrow issue 34314).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipeline.errors import StorageError
from pipeline.location import StoreLocation, open_arrow_filesystem
from pipeline.schema import TABLES
from pipeline.storage import join_url
from pipeline.store.segments import join_rows

FRAME_COLUMNS = ("track_id", "content_hash", "start_frame", "num_frames", "frame_rate_hz", "embeddings")
READ_BYTES = 64 * 2**20  # of a part's values that are in memory at once, where it is read from end to end
MAX_PARTS_AT_ONCE = 8  # read by one call: over S3 a part is mostly waiting
_PARQUET = pyarrow.dataset.ParquetFileFormat()


@dataclass(frozen=True)
class FrameParts:
    """The parts of one resolution in one snapshot, readable without Delta Lake's own reader.

    That reader must not be used in a forked process (its runtime refuses), so this is what workers of a
    ``DataLoader`` are given.

    Args:
        location: The store.
        paths: Parts, relative to ``frames``, in the order of their first tracks.
        live: track_id and content_hash of the ledger's rows, sorted by track_id.
    """

    location: StoreLocation
    paths: tuple[str, ...]
    live: pa.Table

    def read(self, path: str) -> pa.Table:
        """Return the live tracks of one part, a row each, with ``FRAME_COLUMNS``; raises as ``stream`` does."""
        empty = TABLES["frames"].empty_table().select(list(FRAME_COLUMNS))
        return pa.concat_tables([empty, *self.stream(path)])

    def stream(self, path: str) -> Iterator[pa.Table]:
        """Yield the live tracks of one part, a row each, with ``FRAME_COLUMNS``: some whole tracks at a time.

        Where another tool than this one has rewritten the table, a long track may stand in several parts.

        Raises:
            StorageError: It cannot be read, or a vacuum took it.
        """
        waiting: pa.Table | None = None
        for rows in stream_rows(self.location, "frames", path, FRAME_COLUMNS):
            if waiting is not None:
                ids = waiting.column("track_id").to_numpy()
                num_whole = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))[-1]  # the last track may go on
                if num_whole:
                    yield self._keep_live(waiting[:num_whole])
                rows = pa.concat_tables([waiting[num_whole:], rows])
            waiting = rows
        if waiting is not None and waiting.num_rows:
            yield self._keep_live(waiting)

    def _keep_live(self, frames: pa.Table) -> pa.Table:
        # Only the ledger's rows of their span: to hash a million ids takes longer than to read a part.
        span = pc.min_max(frames.column("track_id")).as_py()
        ids = self.live.column("track_id")
        first = bisect_left(ids, span["min"], key=pa.StringScalar.as_py)
        stop = bisect_right(ids, span["max"], key=pa.StringScalar.as_py)
        return join_rows(keep_live(frames, self.live.slice(first, stop - first)))


def stream_rows(
    location: StoreLocation, table_name: str, path: str, columns: Sequence[str], use_threads: bool = True
) -> Iterator[pa.Table]:
    """Yield the rows of one part, as many row groups at a time as come to some 64 MiB of values.

    Args:
        location: The store.
        table_name: Key of ``schema.TABLES``.
        path: The part, relative to its table.
        columns: Of the file, so no partition columns.
        use_threads: Whether more than one CPU may be used.

    Raises:
        StorageError: It cannot be read, or a vacuum took it.
    """
    with explain_unreadable(location.table_url(table_name)):
        (part,) = open_parts(location, table_name, [path]).get_fragments()
        numbers = [group.id for group in part.row_groups]
        ends = np.cumsum([group.total_byte_size for group in part.row_groups]) // READ_BYTES
        for _, groups in groupby(zip(numbers, ends, strict=True), key=itemgetter(1)):
            chosen = part.subset(row_group_ids=[number for number, _ in groups])
            yield chosen.to_table(TABLES[table_name], columns=list(columns), use_threads=use_threads)


def read_tracks_of(
    location: StoreLocation,
    table_name: str,
    files: pa.Table,
    track_ids: Sequence[str],
    columns: Sequence[str],
    condition: pc.Expression | None = None,
) -> pa.Table:
    """Read the rows of some tracks: only parts, and row groups, whose span of ids holds one of them.

    Args:
        location: The store.
        table_name: Key of ``schema.TABLES``.
        files: Parts as the table's log lists them: path, size_bytes, min.track_id, max.track_id.
        track_ids: Which tracks.
        columns: Of the files, so no partition columns.
        condition: Only rows that meet it; row groups none of whose rows can are not read.

    Raises:
        StorageError: A part cannot be read, or a vacuum took it.
    """
    names = ("path", "size_bytes", "min.track_id", "max.track_id")
    wanted = sorted(set(track_ids))
    fs, root = open_arrow_filesystem(location.table_url(table_name), location.options)

    def read(path: str, size_bytes: int, ids: Sequence[str]) -> pa.Table:
        # A range beside the set: row groups are skipped by their minimum and maximum.
        track_id = pc.field("track_id")
        where = (track_id >= ids[0]) & (track_id <= ids[-1]) & track_id.isin(ids)
        where = where if condition is None else where & condition
        # The log knows the file's size: nobody has to ask for it.
        part = _PARQUET.make_fragment(join_url(root, path), fs, file_size=size_bytes)
        return part.to_table(TABLES[table_name], columns=list(columns), filter=where, use_threads=False)

    asked = []
    for path, size_bytes, low, high in zip(*(files.column(name).to_pylist() for name in names), strict=True):
        # A file without statistics may hold anything.
        ids = wanted if low is None else wanted[bisect_left(wanted, low) : bisect_right(wanted, high)]
        if ids:
            asked.append((path, size_bytes, ids))
    empty = TABLES[table_name].empty_table().select(list(columns))
    with (
        ThreadPoolExecutor(max_workers=MAX_PARTS_AT_ONCE) as pool,
        explain_unreadable(location.table_url(table_name)),
    ):
        return pa.concat_tables([empty, *pool.map(lambda part: read(*part), asked)])


def open_parts(
    location: StoreLocation, table_name: str, paths: Sequence[str], partitions: list[pc.Expression] | None = None
) -> pyarrow.dataset.Dataset:
    """Open parts as one dataset.

    Args:
        location: The store.
        table_name: Key of ``schema.TABLES``.
        paths: Relative to the table.
        partitions: What each part's partition columns hold, for the columns that files leave out.
    """
    fs, root = open_arrow_filesystem(location.table_url(table_name), location.options)
    return pyarrow.dataset.FileSystemDataset.from_paths(
        [join_url(root, path) for path in paths],
        schema=TABLES[table_name],
        format=_PARQUET,
        filesystem=fs,
        partitions=partitions,
    )


@contextmanager
def explain_unreadable(table_url: str) -> Iterator[None]:
    """Say of files of a table that cannot be read whose they are, and what to do.

    Args:
        table_url: The table.

    Raises:
        StorageError: In place of what Arrow raises.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"expected all files of the version of {table_url} that was opened, found one gone "
            f"({_as_one_line(error)}): a vacuum takes those of earlier versions; open the newest, and bring "
            "indexes up to date with musicfm index. What the newest lacks musicfm check says"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read the files of {table_url}: {_as_one_line(error)}; check the credentials and the network; "
            "musicfm check --deep finds damaged files"
        ) from error


def _as_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def keep_live(frames: pa.Table, live: pa.Table) -> pa.Table:
    """Keep the rows whose content the ledger names."""
    position = pc.index_in(frames.column("track_id"), live.column("track_id"))
    named = live.column("content_hash").take(position)
    return frames.filter(pc.fill_null(pc.equal(frames.column("content_hash"), named), False))
