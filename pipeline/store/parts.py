"""Parts: the Parquet files that the tables consist of, how they are encoded and how Delta Lake is told of them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from pipeline.schema import PARTITION_COLUMNS, TABLES
from pipeline.storage import Options, create_file, join_url

FLOAT32_MANTISSA_BITS = 23
ZSTD_LEVEL = 1
STORED_BYTES_PER_VALUE = 1.8  # at 10 mantissa bits, on real embeddings
# The smallest read of one track: measured best at 1–3 MB, local and over S3.
ROW_GROUP_VALUES = round(2_500_000 / STORED_BYTES_PER_VALUE)
MAX_ROWS_PER_GROUP = 1024
_ROUNDED_AT_ONCE = 2**16  # values whose bits and carries stay in a core's cache

_VECTOR_LEAF = "embeddings.list.element.list.element"  # of ``frames``


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table, written and perhaps not yet committed (``schema.PART``)."""

    recipe: str | None
    resolution: str | None
    path: str
    size_bytes: int
    num_rows: int
    min_track_id: str | None  # of a table that has none
    max_track_id: str | None

    def as_row(self) -> dict[str, str | int | None]:
        """Return the part as a row of ``schema.PART``."""
        return asdict(self)

    def as_add_action(self) -> AddAction:
        """Return the Delta Lake action that adds the part to its table.

        The minimum and maximum of ``track_id`` are what finds a track's file without an index.
        """
        partition = {"recipe": self.recipe, "resolution": self.resolution}
        values = {name: value for name, value in partition.items() if value is not None}
        stats: dict[str, object] = {"numRecords": self.num_rows}
        if self.min_track_id is not None:
            stats |= {
                "minValues": {"track_id": self.min_track_id},
                "maxValues": {"track_id": self.max_track_id},
                "nullCount": {"track_id": 0},
            }
        now_ms = int(time.time() * 1000)
        return AddAction(self.path, self.size_bytes, values, now_ms, True, json.dumps(stats))


def round_mantissa(values: np.ndarray, mantissa_bits: int, out: np.ndarray | None = None) -> np.ndarray:
    """Round float32 values to fewer mantissa bits, to nearest with ties to even.

    The bits that fall away become zero, which zstd stores in next to nothing; the exponent keeps float32's
    range, so that nothing overflows as it would in half precision.

    Args:
        values: float32, any shape, finite.
        mantissa_bits: Bits to keep, 1 to 23; 23 keeps all.
        out: float32 of the same shape, contiguous: where the rounded values go. By default a new array.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: mantissa_bits is out of range.
    """
    if not 1 <= mantissa_bits <= FLOAT32_MANTISSA_BITS:
        raise ValueError(f"expected 1 to 23 mantissa bits, found {mantissa_bits}")
    rounded = np.empty(values.shape, np.float32) if out is None else out
    dropped = FLOAT32_MANTISSA_BITS - mantissa_bits
    if dropped == 0:
        rounded[...] = values
        return rounded
    half, mask = np.uint32((1 << (dropped - 1)) - 1), np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    rounded_bits = rounded.reshape(-1).view(np.uint32)
    carries = np.empty(min(bits.size, _ROUNDED_AT_ONCE), np.uint32)
    for start in range(0, bits.size, _ROUNDED_AT_ONCE):
        block = bits[start : start + _ROUNDED_AT_ONCE]
        # Adding just under half of the last kept unit, plus that unit's own bit, carries exactly when it should.
        carry = np.right_shift(block, np.uint32(dropped), out=carries[: block.size])
        carry &= np.uint32(1)
        carry += half
        carry += block
        np.bitwise_and(carry, mask, out=rounded_bits[start : start + block.size])
    return rounded


def plan_row_groups(num_values: Iterable[int]) -> Iterator[slice]:
    """Gather rows to row groups of about one read's worth, so that a point read decodes little else.

    Args:
        num_values: Of each row, its float32 values.

    Yields:
        The rows of each row group.
    """
    start = num_rows = in_group = 0
    for in_row in num_values:
        if num_rows - start == MAX_ROWS_PER_GROUP or (num_rows > start and in_group + in_row > ROW_GROUP_VALUES):
            yield slice(start, num_rows)
            start, in_group = num_rows, 0
        in_group += in_row
        num_rows += 1
    if num_rows > start:
        yield slice(start, num_rows)


def encode_row_groups(table_name: str, row_groups: Iterable[pa.Table], file: IO[bytes]) -> None:
    """Encode row groups as one Parquet file; each is let go of before the next is asked for.

    BYTE_STREAM_SPLIT puts the bytes of equal weight side by side, which is what lets zstd see the rounded
    mantissas; no Arrow schema is stored, because readers that find one expect its extension types; no smallest and
    largest value of the embeddings, by which nobody looks for a track.

    Args:
        table_name: Key of ``schema.TABLES``.
        row_groups: Rows of that table without partition columns, which Delta Lake keeps in its log; sorted by
            track_id where it has one, and by start_frame.
        file: Where the bytes go.
    """
    schema = _drop_partition_columns(table_name)
    options: dict[str, object] = {}
    if table_name == "frames":
        scalars = [field.name for field in schema if not pa.types.is_list(field.type)]
        options = {"use_dictionary": scalars, "use_byte_stream_split": [_VECTOR_LEAF], "write_statistics": scalars}
    with pq.ParquetWriter(
        file, schema, compression="zstd", compression_level=ZSTD_LEVEL, store_schema=False, **options
    ) as writer:
        for rows in row_groups:
            writer.write_table(rows, row_group_size=rows.num_rows)
            del rows  # before the next is made


def write_part(
    rows: pa.Table,
    table_name: str,
    table_url: str,
    partition: Mapping[str, str],
    run_id: str,
    options: Options | None = None,
) -> Part:
    """Write rows as one new file of a table; no reader sees it before a commit adds it.

    Args:
        rows: Rows of one partition, sorted as ``encode_row_groups`` wants them; at least one.
        table_name: Key of ``schema.TABLES``.
        table_url: Where the table lies.
        partition: Values of the partition columns; empty for a table without.
        run_id: The run that writes; part of the file's name.
        options: File system options.

    Returns:
        The part, with the span of its track ids.

    Raises:
        StorageError: It cannot be written.
    """
    row_groups = cut_row_groups(table_name, rows)
    no_ids = pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    track_ids = rows.column("track_id") if "track_id" in rows.column_names else no_ids
    return write_row_groups(row_groups, track_ids, table_name, table_url, partition, run_id, options)


def write_row_groups(
    row_groups: Iterable[pa.Table],
    track_ids: pa.ChunkedArray,
    table_name: str,
    table_url: str,
    partition: Mapping[str, str],
    run_id: str,
    options: Options | None = None,
) -> Part:
    """Write row groups as ``write_part`` does rows.

    Args:
        row_groups: As ``encode_row_groups`` takes them.
        track_ids: Of all their rows.
        table_name: Key of ``schema.TABLES``.
        table_url: Where the table lies.
        partition: Values of the partition columns.
        run_id: The run that writes.
        options: File system options.

    Returns:
        The part.

    Raises:
        StorageError: It cannot be written.
    """
    path = name_part(partition, run_id)
    with create_file(join_url(table_url, path), options) as file:
        encode_row_groups(table_name, row_groups, file)
        size_bytes = file.tell()
    span = pc.min_max(track_ids).as_py()
    return Part(
        partition.get("recipe"),
        partition.get("resolution"),
        path,
        size_bytes,
        len(track_ids),
        span["min"],
        span["max"],
    )


def cut_row_groups(table_name: str, rows: pa.Table) -> Iterator[pa.Table]:
    """Yield rows of a table as row groups, without its partition columns."""
    schema = _drop_partition_columns(table_name)
    stored = rows.select(schema.names).cast(schema)
    yield from (stored[group] for group in plan_row_groups(_count_values(table_name, rows)))


def name_part(partition: Mapping[str, str], run_id: str) -> str:
    """Return a path for a new file of a partition, relative to its table."""
    folders = [f"{name}={value}" for name, value in partition.items()]
    return "/".join([*folders, f"part-{run_id}-{uuid.uuid4().hex}.parquet"])


def to_ipc(table: pa.Table) -> bytes:
    """Serialise a small table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Read a table back from an Arrow IPC stream."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _drop_partition_columns(table_name: str) -> pa.Schema:
    schema = TABLES[table_name]
    return pa.schema([field for field in schema if field.name not in PARTITION_COLUMNS[table_name]])


def _count_values(table_name: str, rows: pa.Table) -> list[int]:
    """Count the float32 values of each row."""
    if table_name == "frames":
        return [len(row.values.flatten()) if row.is_valid else 0 for row in rows.column("embeddings")]
    return [0] * rows.num_rows
