"""Parts: the Parquet files that the tables consist of, how they are encoded and how Delta Lake is told of them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from pipeline.schema import PARTITION_COLUMNS
from pipeline.storage import Options, join_url, write_file
from pipeline.store.long_rows import ZSTD_LEVEL, encode_long_rows

FLOAT32_MANTISSA_BITS = 23
ROW_GROUP_BYTES = 2_500_000  # the smallest read of one track: measured best at 1–3 MB, local and over S3
STORED_BYTES_PER_VALUE = 1.8  # at 10 mantissa bits, on real embeddings
MAX_ROWS_PER_GROUP = 1024
_ROUNDED_AT_ONCE = 2**15  # values whose bits and carries stay in a core's cache

_VECTOR_LEAVES = {
    "tracks": "embedding.list.element",
    "frames": "embeddings.list.element.list.element",
}


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table, written and perhaps not yet committed (``schema.PART``)."""

    recipe: str | None
    resolution: str | None
    path: str
    size_bytes: int
    num_rows: int
    min_track_id: str
    max_track_id: str

    def as_row(self) -> dict[str, str | int | None]:
        """Return the part as a row of ``schema.PART``."""
        return asdict(self)

    def as_add_action(self) -> AddAction:
        """Return the Delta Lake action that adds the part to its table.

        The minimum and maximum of ``track_id`` are what finds a track's file without an index.
        """
        partition = {"recipe": self.recipe, "resolution": self.resolution}
        values = {name: value for name, value in partition.items() if value is not None}
        stats = {
            "numRecords": self.num_rows,
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
    rounded[...] = values
    dropped = FLOAT32_MANTISSA_BITS - mantissa_bits
    if dropped == 0:
        return rounded
    half, mask = np.uint32((1 << (dropped - 1)) - 1), np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    bits = rounded.reshape(-1).view(np.uint32)
    for start in range(0, bits.size, _ROUNDED_AT_ONCE):
        block = bits[start : start + _ROUNDED_AT_ONCE]
        # Adding just under half of the last kept unit, plus that unit's own bit, carries exactly when it should.
        carry = block >> np.uint32(dropped)
        carry &= np.uint32(1)
        carry += half
        block += carry
        block &= mask
    return rounded


def choose_rows_per_group(num_values: int, num_rows: int) -> int:
    """Return rows a row group: about one read's worth of bytes, so that a point read decodes little else.

    Args:
        num_values: float32 values in all rows.
        num_rows: Rows.

    Returns:
        1 where rows are long enough to be written by ``long_rows``.
    """
    row_bytes = STORED_BYTES_PER_VALUE * num_values / max(1, num_rows)
    return int(min(MAX_ROWS_PER_GROUP, max(1, ROW_GROUP_BYTES // max(1.0, row_bytes))))


def encode_part(table_name: str, rows: pa.Table) -> bytes:
    """Encode rows as one Parquet file.

    BYTE_STREAM_SPLIT puts the bytes of equal weight side by side, which is what lets zstd see the rounded
    mantissas; no Arrow schema is stored, because readers that find one expect its extension types; no smallest and
    largest value of the embeddings, by which nobody looks for a track.

    Args:
        table_name: Key of ``schema.TABLES``.
        rows: Rows of that table, sorted by track_id where it has one.

    Returns:
        The file's bytes. Partition columns are left out: Delta Lake keeps them in its log.
    """
    stored = rows.drop_columns(PARTITION_COLUMNS[table_name])
    rows_per_group = choose_rows_per_group(_count_values(table_name, rows), rows.num_rows)
    if table_name == "frames" and rows_per_group == 1:
        return encode_long_rows(rows.drop_columns(["embeddings"]), ([row] for row in list_vectors(rows)))
    leaf = _VECTOR_LEAVES.get(table_name)
    options: dict[str, object] = {}
    if leaf is not None:
        scalars = [field.name for field in stored.schema if not pa.types.is_list(field.type)]
        options = {"use_dictionary": scalars, "use_byte_stream_split": [leaf], "write_statistics": scalars}
    buffer = pa.BufferOutputStream()  # in Arrow's own memory: a Python file is handed a copy of every page
    pq.write_table(
        stored,
        buffer,
        row_group_size=rows_per_group,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        store_schema=False,
        **options,
    )
    data: bytes = buffer.getvalue().to_pybytes()
    return data


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
        rows: Rows of one partition, sorted by track_id.
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
    data = encode_part(table_name, rows)
    return store_part(data, rows.column("track_id"), table_url, partition, run_id, options)


def store_part(
    data: bytes,
    track_ids: pa.ChunkedArray,
    table_url: str,
    partition: Mapping[str, str],
    run_id: str,
    options: Options | None = None,
) -> Part:
    """Write an encoded file as ``write_part`` does.

    Args:
        data: The file's bytes.
        track_ids: Its rows' ids.
        table_url: Where the table lies.
        partition: Values of the partition columns.
        run_id: The run that writes.
        options: File system options.

    Returns:
        The part.

    Raises:
        StorageError: It cannot be written.
    """
    folders = [f"{name}={value}" for name, value in partition.items()]
    path = "/".join([*folders, f"part-{run_id}-{uuid.uuid4().hex}.parquet"])
    write_file(join_url(table_url, path), data, options)
    span = pc.min_max(track_ids).as_py()
    return Part(
        partition.get("recipe"),
        partition.get("resolution"),
        path,
        len(data),
        len(track_ids),
        span["min"],
        span["max"],
    )


def list_vectors(rows: pa.Table) -> Iterator[np.ndarray]:
    """Yield the embeddings of rows of ``frames``: float32, shape (num_frames, embed_dim), views of the column."""
    for row in rows.column("embeddings"):
        yield row.values.flatten().to_numpy().reshape(len(row), -1)


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


def _count_values(table_name: str, rows: pa.Table) -> int:
    if table_name == "frames":
        return len(pc.list_flatten(pc.list_flatten(rows.column("embeddings"))))
    return len(pc.list_flatten(rows.column("embedding"))) if table_name == "tracks" else 0
