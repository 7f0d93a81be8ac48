"""A Parquet file's footer, read and written as it stands, so that row groups can be carried from file to file.

The footer is a struct in Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md), as
parquet-format's ``parquet.thrift`` lays it out. Field by field it is kept as found; only where column chunks
lie is known here by name. pyarrow reads footers, but cannot say that a row group lies further down in a file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

MAGIC = b"PAR1"
_TAIL_BYTES = 8  # the footer's length and the magic behind it

# A struct is a dict of field id to (type, value); a list is (type of its items, items); all integers are int.
Struct = dict[int, tuple[int, Any]]
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)  # i16, i32, i64, all as zigzag varints

# parquet.thrift: FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _KEY_VALUES, _COLUMN_ORDERS = 2, 3, 4, 5, 7
_COLUMNS, _GROUP_OFFSET, _ORDINAL = 1, 5, 7
_CHUNK_OFFSETS, _META_DATA = (2, 4, 6), 3  # file_offset, offset_index_offset, column_index_offset
_PAGE_OFFSETS = (9, 10, 11, 14)  # data pages, index page, dictionary page, bloom filter


def split_file(data: bytes) -> tuple[memoryview, Struct]:
    """Split a Parquet file into what lies between its first magic and its footer, and the footer.

    Args:
        data: The whole file.

    Raises:
        ValueError: It is no Parquet file, or one that is encrypted or cut off.
    """
    end = len(data) - _TAIL_BYTES
    start = end - int.from_bytes(data[end : end + 4], "little")
    if data[:4] != MAGIC or data[-4:] != MAGIC or start < len(MAGIC):
        raise ValueError(f"expected a Parquet file between two {MAGIC!r}, found {data[:4]!r} and {data[-4:]!r}")
    try:
        footer, stop = _read_struct(data, start)
    except (IndexError, struct.error):
        stop = len(data)
    if stop != end or not {_SCHEMA, _NUM_ROWS, _ROW_GROUPS} <= footer.keys():
        raise ValueError(f"expected a Parquet footer of {end - start} bytes, found other bytes")
    return memoryview(data)[len(MAGIC) : start], footer


def join_footers(footers: Sequence[Struct], shifts: Sequence[int]) -> bytes | None:
    """Return the end of a file that holds several files' row groups one after the other.

    Args:
        footers: Of the files; what they hold is moved along.
        shifts: How many bytes further down each file's row groups lie now.

    Returns:
        Footer, its length and the magic; None where the files are not of one schema.
    """
    first = footers[0]
    groups: list[Struct] = []
    for footer, shift in zip(footers, shifts, strict=True):
        if any(footer.get(name) != first.get(name) for name in (_SCHEMA, _KEY_VALUES, _COLUMN_ORDERS)):
            return None
        for group in footer[_ROW_GROUPS][1][1]:
            _move(group, shift, len(groups))
            groups.append(group)
    joined = dict(first)
    kind, (item_kind, _) = first[_ROW_GROUPS]
    joined[_ROW_GROUPS] = (kind, (item_kind, groups))
    joined[_NUM_ROWS] = (first[_NUM_ROWS][0], sum(footer[_NUM_ROWS][1] for footer in footers))
    out = bytearray()
    _write_struct(out, joined)
    return bytes(out) + len(out).to_bytes(4, "little") + MAGIC


def _move(group: Struct, shift: int, ordinal: int) -> None:
    """Let a row group be the one of a number, so many bytes further down."""
    if ordinal < 2**15:
        _change(group, _ORDINAL, lambda _: ordinal)
    else:  # it is an i16, and optional
        group.pop(_ORDINAL, None)
    _change(group, _GROUP_OFFSET, lambda offset: offset + shift)
    for chunk in group[_COLUMNS][1][1]:
        places = [(chunk, name) for name in _CHUNK_OFFSETS]
        if _META_DATA in chunk:
            places += [(chunk[_META_DATA][1], name) for name in _PAGE_OFFSETS]
        for place, name in places:
            _change(place, name, lambda offset: offset and offset + shift)  # 0 says nothing


def _change(place: Struct, name: int, change: Callable[[int], int]) -> None:
    if name in place:
        kind, value = place[name]
        place[name] = (kind, change(value))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _read_struct(data: bytes, at: int) -> tuple[Struct, int]:
    fields: Struct = {}
    name = 0
    while head := data[at]:
        at += 1
        kind = head & 0x0F
        if head >> 4:
            name += head >> 4
        else:
            zigzag, at = _read_varint(data, at)
            name = (zigzag >> 1) ^ -(zigzag & 1)
        if kind in (_TRUE, _FALSE):
            fields[name] = (kind, None)
        else:
            value, at = _read_value(data, at, kind)
            fields[name] = (kind, value)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        zigzag, at = _read_varint(data, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return data[at : at + length], at + length
    if kind == _STRUCT:
        return _read_struct(data, at)
    if kind in (_LIST, _SET):
        head = data[at]
        at += 1
        length, item_kind = head >> 4, head & 0x0F
        if length == 15:
            length, at = _read_varint(data, at)
        items = []
        for _ in range(length):
            item, at = _read_value(data, at, item_kind)
            items.append(item)
        return (item_kind, items), at
    if kind in (_TRUE, _FALSE, _BYTE):  # in a list a boolean is a byte
        return data[at], at + 1
    if kind == _DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    raise ValueError(f"expected a Parquet footer, found a field of Thrift's type {kind}")


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_struct(out: bytearray, fields: Struct) -> None:
    last = 0
    for name in sorted(fields):
        kind, value = fields[name]
        if 0 < name - last < 16:
            out.append((name - last) << 4 | kind)
        else:
            out.append(kind)
            _write_varint(out, name << 1 ^ name >> 63)
        last = name
        if kind not in (_TRUE, _FALSE):
            _write_value(out, kind, value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_varint(out, value << 1 ^ value >> 63)
    elif kind == _BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == _STRUCT:
        _write_struct(out, value)
    elif kind in (_LIST, _SET):
        item_kind, items = value
        out.append(min(len(items), 15) << 4 | item_kind)
        if len(items) >= 15:
            _write_varint(out, len(items))
        for item in items:
            _write_value(out, item_kind, item)
    elif kind == _DOUBLE:
        out += struct.pack("<d", value)
    else:
        out.append(value)
