"""Long rows: Parquet files of ``frames`` whose rows are written page by page, from features made on the way.

pyarrow makes one page of a row, whatever its length, and holds a row's values and levels several times to do so:
an hour of 1024 dimensions at 50 Hz is 0.7 GB and takes 4.7. The format itself lets a row go on over pages of its
first version (docs/decisions/0018). What is written here is what ``parts.encode_part`` has pyarrow write of
shorter rows: the same schema, types, encodings and statistics, a row a row group.

Source: apache/parquet-format (README.md, Encodings.md, LogicalTypes.md, and parquet.thrift for all numbers below).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from thrift.protocol.TCompactProtocol import TCompactProtocol, writeVarint
from thrift.Thrift import TType
from thrift.transport.TTransport import TMemoryBuffer

from pipeline.schema import PARTITION_COLUMNS, TIMESTAMP

PAGE_VALUES = 2**18  # 1 MiB of float32, the size of pyarrow's pages
ZSTD_LEVEL = 1

_MAGIC = b"PAR1"
_CREATED_BY = "music-feature-store version 0.1.0"  # readers trust statistics only of a writer named in this form
_VECTORS = ("embeddings", "list", "element", "list", "element")
_PRESENT = 5  # definition level of a value whose column, row, frame and self are not null
_NEW_ROW, _NEW_FRAME, _SAME_FRAME = 0, 1, 2  # repetition levels of a value, by what it begins

_DATA_PAGE, _ZSTD = 0, 6  # PageType, CompressionCodec
_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9  # Encoding
_REQUIRED, _OPTIONAL, _REPEATED = 0, 1, 2  # FieldRepetitionType
_INT32, _INT64, _FLOAT, _DOUBLE, _BYTE_ARRAY = 1, 2, 4, 5, 6  # Type
# What a type means, as ConvertedType and as LogicalType, by the fields of a SchemaElement.
_TEXT: dict[int, Any] = {6: 0, 10: {1: {}}}
_UTC_MICROS: dict[int, Any] = {6: 10, 10: {8: {1: True, 2: {2: {}}}}}
_NESTED: dict[int, Any] = {6: 3, 10: {3: {}}}
_TYPES: dict[pa.DataType, tuple[int, dict[int, Any]]] = {
    pa.string(): (_BYTE_ARRAY, _TEXT),
    TIMESTAMP: (_INT64, _UTC_MICROS),
    pa.int32(): (_INT32, {}),
    pa.float64(): (_DOUBLE, {}),
}


class I64(int):
    """An integer that Parquet's structures declare as i64; a plain one is an i32."""


def encode_long_rows(facts: pa.Table, vectors: Iterable[Iterable[np.ndarray]]) -> bytes:
    """Encode rows of ``frames`` as one Parquet file.

    Args:
        facts: All columns of ``schema.FRAMES`` but the embeddings, sorted by track_id.
        vectors: For each row its embeddings, in pieces of any number of frames: float32, shape
            (num_frames, embed_dim). Each piece is let go of before the next is asked for.

    Returns:
        The file's bytes. Partition columns are left out: Delta Lake keeps them in its log.
    """
    facts = facts.drop_columns(PARTITION_COLUMNS["frames"])
    sink = io.BytesIO()
    sink.write(_MAGIC)
    row_groups = []
    for row, pieces in zip(facts.to_pylist(), vectors, strict=True):
        start = sink.tell()
        chunks = [_write_fact(sink, field, row[field.name]) for field in facts.schema]
        chunks.append(_write_vectors(sink, pieces))
        sizes = {2: I64(sum(chunk[6] for chunk in chunks)), 3: I64(1), 5: I64(start), 6: I64(sink.tell() - start)}
        row_groups.append({1: [{2: I64(0), 3: chunk} for chunk in chunks], **sizes})
    footer = _encode_struct(
        {
            1: 2,
            2: _describe_schema(facts.schema),
            3: I64(facts.num_rows),
            4: row_groups,
            6: _CREATED_BY,
            7: [{1: {}}] * (len(facts.schema) + 1),  # smallest and largest values compare as their types do
        }
    )
    sink.write(footer + struct.pack("<I", len(footer)) + _MAGIC)
    return sink.getvalue()


def _describe_schema(facts: pa.Schema) -> list[dict[int, Any]]:
    """Return the elements of the schema, depth first."""
    elements: list[dict[int, Any]] = [{3: _REQUIRED, 4: "schema", 5: len(facts) + 1}]
    for field in facts:
        physical, meaning = _TYPES[field.type]
        elements.append({1: physical, 3: _OPTIONAL if field.nullable else _REQUIRED, 4: field.name, **meaning})
    for outer, inner in (_VECTORS[:2], _VECTORS[2:4]):
        elements += [{3: _OPTIONAL, 4: outer, 5: 1, **_NESTED}, {3: _REPEATED, 4: inner, 5: 1}]
    return [*elements, {1: _FLOAT, 3: _OPTIONAL, 4: _VECTORS[-1]}]


def _write_fact(sink: io.BytesIO, field: pa.Field, value: Any) -> dict[int, Any]:
    """Write a column's single value as a page; return its ColumnMetaData."""
    start = sink.tell()
    data = b"" if value is None else _encode_plain(value)
    length = struct.pack("<I", len(data)) if isinstance(value, str) else b""
    levels = _pack_levels(_encode_run(1, int(value is not None))) if field.nullable else b""
    raw_bytes = _write_page(sink, levels + length + data, 1, _PLAIN)
    bounds = {} if value is None else {5: data, 6: data}
    chunk = _describe_chunk(sink, start, raw_bytes, _TYPES[field.type][0], _PLAIN, (field.name,), 1)
    return {**chunk, 12: {3: I64(value is None), **bounds}}


def _encode_plain(value: str | int | float | datetime) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, datetime):
        return struct.pack("<q", pa.scalar(value, TIMESTAMP).value)
    return struct.pack("<i" if isinstance(value, int) else "<d", value)


def _write_vectors(sink: io.BytesIO, pieces: Iterable[np.ndarray]) -> dict[int, Any]:
    """Write a row's embeddings, page by page; return their ColumnMetaData."""
    start, num_values, raw_bytes = sink.tell(), 0, 0
    for piece in pieces:
        frames_per_page = max(1, PAGE_VALUES // piece.shape[1])
        for first in range(0, len(piece), frames_per_page):
            page = piece[first : first + frames_per_page]
            levels = _encode_repetition(page.shape, _NEW_ROW if num_values == 0 else _NEW_FRAME)
            levels += _pack_levels(_encode_run(page.size, _PRESENT))
            by_byte = np.ascontiguousarray(page, "<f4").view(np.uint8).reshape(-1, 4).T
            raw_bytes += _write_page(sink, levels + by_byte.tobytes(), page.size, _BYTE_STREAM_SPLIT)
            num_values += page.size
    return _describe_chunk(sink, start, raw_bytes, _FLOAT, _BYTE_STREAM_SPLIT, _VECTORS, num_values)


def _encode_repetition(shape: Sequence[int], first_level: int) -> bytes:
    """Encode the repetition levels of a page of whole frames."""
    num_frames, embed_dim = shape
    rest = _encode_run(embed_dim - 1, _SAME_FRAME) if embed_dim > 1 else b""
    later = (_encode_run(1, _NEW_FRAME) + rest) * (num_frames - 1)
    return _pack_levels(_encode_run(1, first_level) + rest + later)


def _encode_run(length: int, level: int) -> bytes:
    """Encode a run of one level: RLE of the RLE/bit-packing hybrid, whose varints are Thrift's."""
    run = TMemoryBuffer()
    writeVarint(run, length << 1)
    run.write(bytes([level]))
    return bytes(run.getvalue())


def _pack_levels(runs: bytes) -> bytes:
    return struct.pack("<I", len(runs)) + runs


def _write_page(sink: io.BytesIO, body: bytes, num_values: int, encoding: int) -> int:
    """Write a data page of the first version; return its bytes before compression."""
    packed = pa.Codec("zstd", ZSTD_LEVEL).compress(body, asbytes=True)
    values = {1: num_values, 2: encoding, 3: _RLE, 4: _RLE}
    header = _encode_struct({1: _DATA_PAGE, 2: len(body), 3: len(packed), 5: values})
    sink.write(header)
    sink.write(packed)
    return len(header) + len(body)


def _describe_chunk(
    sink: io.BytesIO,
    start: int,
    raw_bytes: int,
    physical: int,
    encoding: int,
    path: Sequence[str],
    num_values: int,
) -> dict[int, Any]:
    """Return the ColumnMetaData of the pages that were written from ``start`` on."""
    return {
        1: physical,
        2: [_RLE, encoding],
        3: list(path),
        4: _ZSTD,
        5: I64(num_values),
        6: I64(raw_bytes),
        7: I64(sink.tell() - start),
        9: I64(start),
    }


def _encode_struct(fields: Mapping[int, Any]) -> bytes:
    """Encode a structure, given by its field ids, in Thrift's compact protocol."""
    buffer = TMemoryBuffer()
    _write_value(TCompactProtocol(buffer), fields)
    return bytes(buffer.getvalue())


def _write_value(protocol: TCompactProtocol, value: Any) -> None:
    kind = _type_of(value)
    if kind == TType.STRUCT:
        protocol.writeStructBegin("")
        for field_id, each in value.items():
            protocol.writeFieldBegin("", _type_of(each), field_id)
            _write_value(protocol, each)
            protocol.writeFieldEnd()
        protocol.writeFieldStop()
        protocol.writeStructEnd()
    elif kind == TType.LIST:
        protocol.writeListBegin(_type_of(value[0]), len(value))
        for each in value:
            _write_value(protocol, each)
        protocol.writeListEnd()
    else:
        write: dict[int, Callable[[Any], None]] = {
            TType.BOOL: protocol.writeBool,
            TType.I32: protocol.writeI32,
            TType.I64: protocol.writeI64,
            TType.STRING: protocol.writeBinary,
        }
        write[kind](value.encode() if isinstance(value, str) else value)


def _type_of(value: Any) -> int:
    types: list[tuple[type, int]] = [
        (bool, TType.BOOL),
        (I64, TType.I64),
        (int, TType.I32),
        (str, TType.STRING),
        (bytes, TType.STRING),
        (list, TType.LIST),
        (dict, TType.STRUCT),
    ]
    return next(kind for python_type, kind in types if isinstance(value, python_type))
