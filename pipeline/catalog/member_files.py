"""Reading members of shards: those that lie together in one request, each cut out of what came."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog.members import Member, parse_member
from pipeline.catalog.row_groups import (
    FOOTER_BYTES,
    Chunk,
    Pieces,
    find_audio_column,
    list_chunks,
    read_chunk,
    read_footer,
)
from pipeline.storage import Options, open_filesystem

MAX_GAP_BYTES = 2**20  # between members that are read together: less than another request is worth
MAX_RANGE_BYTES = 2**28  # of one request
MAX_CHUNK_BYTES = 2**30  # of a row group's audio: whoever reads it holds it three times over

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT, section 4.3.7
_STORED, _DEFLATED = 0, 8
_HAS_DESCRIPTOR, _IS_ENCRYPTED = 8, 1


def read_files(uris: Sequence[str], options: Options | None = None) -> list[bytes | Exception]:
    """Read files and members as ``storage.read_files`` reads files: members that lie together in one request.

    Args:
        uris: URLs, local paths and URIs of members, in any order.
        options: File system options.

    Returns:
        For each URI its bytes, or the exception that reading it raised; in order.

    Raises:
        StorageError: The scheme is unknown.
    """
    shards: defaultdict[str, list[tuple[int, Member]]] = defaultdict(list)
    loose = []
    for position, uri in enumerate(uris):
        member = parse_member(uri)
        if member is None:
            loose.append(position)
        else:
            shards[member.shard].append((position, member))
    files = storage.read_files([uris[position] for position in loose], options)
    bodies_at = dict(zip(loose, files, strict=True))
    for shard, placed in shards.items():
        contents = _read_members(shard, [member for _, member in placed], options)
        bodies_at.update(zip((position for position, _ in placed), contents, strict=True))
    return [bodies_at[position] for position in range(len(uris))]


def _read_members(shard: str, members: Sequence[Member], options: Options | None) -> list[bytes | Exception]:
    ranges = plan_ranges(members)
    if members[0].kind == "parquet":
        return _read_rows(shard, members, ranges, options)
    fs, path = open_filesystem(shard, options)
    starts, stops = [span.start for span, _ in ranges], [span.stop for span, _ in ranges]
    bodies = fs.cat_ranges([path] * len(ranges), starts, stops, on_error="return")
    bodies_at: dict[int, bytes | Exception] = {}
    for (span, positions), body in zip(ranges, bodies, strict=True):
        for position in positions:
            bodies_at[position] = (
                body if isinstance(body, Exception) else _cut(members[position], body, span.start)
            )
    return [bodies_at[position] for position in range(len(members))]


def fetch_pieces(url: str, spans: Sequence[tuple[int, int]], options: Options | None = None) -> Pieces:
    """Fetch some ranges of a file, those that lie together with one request.

    Args:
        url: URL or path.
        spans: First byte of each, and the byte after its last.
        options: File system options.

    Raises:
        OSError: It cannot be read.
    """
    fs, path = open_filesystem(url, options)
    members = [Member(url, "", start, stop, "") for start, stop in spans]
    ranges = [span for span, _ in plan_ranges(members)]
    starts, stops = [span.start for span in ranges], [span.stop for span in ranges]
    return Pieces(
        list(zip(starts, fs.cat_ranges([path] * len(ranges), starts, stops, on_error="raise"), strict=True))
    )


def _read_rows(
    shard: str, members: Sequence[Member], ranges: Sequence[tuple[range, list[int]]], options: Options | None
) -> list[bytes | Exception]:
    """Read members of a Parquet file: its footer and the row groups that hold them, at once."""
    fs, path = open_filesystem(shard, options)
    wanted = [span for span, _ in ranges if len(span) <= MAX_CHUNK_BYTES]
    starts, stops = [span.start for span in wanted], [span.stop for span in wanted]
    *bodies, tail = fs.cat_ranges(
        [path] * (len(wanted) + 1), [*starts, -FOOTER_BYTES], [*stops, None], on_error="return"
    )
    try:
        if isinstance(tail, Exception):
            raise tail
        metadata = read_footer(shard, options, tail)
    except (OSError, pa.ArrowException) as error:
        return [OSError(f"cannot read the footer of {shard}: {error}")] * len(members)
    chunks = {chunk.start: chunk for chunk in list_chunks(metadata, f"{find_audio_column(metadata)}.bytes")}
    body_at = dict(zip(starts, bodies, strict=True))
    bodies_at: dict[int, bytes | Exception] = {}
    for span, positions in ranges:
        body = body_at.get(span.start, _explain_large(shard, len(span)))
        positions_by_start: defaultdict[int, list[int]] = defaultdict(list)
        for position in positions:
            positions_by_start[members[position].start].append(position)
        for start, places in positions_by_start.items():
            rows = [members[position].row or 0 for position in places]
            if isinstance(body, Exception):
                contents: list[bytes | Exception] = [body] * len(rows)
            else:
                contents = _pick_rows(Pieces([(span.start, body)]), metadata, chunks.get(start), rows, shard)
            bodies_at.update(zip(places, contents, strict=True))
    return [bodies_at[position] for position in range(len(members))]


def _explain_large(shard: str, size_bytes: int) -> OSError:
    return OSError(
        f"expected at most {MAX_CHUNK_BYTES / 2**20:.0f} MiB of audio in a row group of {shard}, found "
        f"{size_bytes / 2**20:.0f}: write the file with fewer rows in each, such as 100"
    )


def _pick_rows(
    pieces: Pieces, metadata: pq.FileMetaData, chunk: Chunk | None, rows: Sequence[int], shard: str
) -> list[bytes | Exception]:
    """Return the audio in some rows of a row group."""
    if chunk is None:
        error = OSError(f"expected a row group at its listed place in {shard}, found none: the shard was changed")
        return [error] * len(rows)
    bodies_at: dict[int, bytes | Exception] = {}
    damage: Exception = OSError(f"expected more rows in row group {chunk.group} of {shard}: the shard was changed")
    try:
        for row, value in zip(range(max(rows) + 1), read_chunk(pieces, metadata, chunk), strict=False):
            if row in rows:
                missing = FileNotFoundError(f"row {row} in row group {chunk.group} of {shard} has no bytes")
                bodies_at[row] = value.as_py() if value.is_valid else missing
    except OSError as error:
        damage = OSError(f"{error}; of {shard}")
    return [bodies_at.get(row, damage) for row in rows]


def _cut(member: Member, data: bytes, start: int) -> bytes | Exception:
    try:
        return cut_member(member, data, start)
    except OSError as error:
        return error


def plan_ranges(members: Sequence[Member]) -> list[tuple[range, list[int]]]:
    """Plan how to read members of one shard: as few requests as their places allow.

    Returns:
        Ranges of bytes, and the positions of the members that lie in each.
    """
    ranges: list[tuple[range, list[int]]] = []
    for position in sorted(range(len(members)), key=lambda position: members[position].start):
        member = members[position]
        if ranges:
            last, inside = ranges[-1]
            stop = max(last.stop, member.stop)
            is_near = member.start - last.stop <= MAX_GAP_BYTES and stop - last.start <= MAX_RANGE_BYTES
            if is_near or stop == last.stop:  # the latter of another row of the same row group
                ranges[-1] = range(last.start, stop), [*inside, position]
                continue
        ranges.append((range(member.start, member.stop), [position]))
    return ranges


def cut_member(member: Member, data: bytes, start: int) -> bytes:
    """Return a member's content.

    Args:
        member: The member.
        data: Bytes of its shard.
        start: Where in the shard they begin.

    Raises:
        OSError: The shard is cut off, damaged here, or packed in a way that is not read.
    """
    content = data[member.start - start : member.stop - start]
    if len(content) < member.stop - member.start:
        where = f"{member.name} at byte {member.start} of {member.shard}"
        raise OSError(
            f"expected {member.stop - member.start} bytes of {where}, found {len(content)}: it is cut off"
        )
    return _unzip(member, content) if member.kind == "zip" else content


def _unzip(member: Member, data: bytes) -> bytes:
    where = f"{member.name} at byte {member.start} of {member.shard}"
    if len(data) < _LOCAL_HEADER.size or not data.startswith(b"PK\x03\x04"):
        raise OSError(f"expected the header of {where}, found other bytes: the shard was changed or is damaged")
    _, _, flags, method, _, _, checksum, packed, _, name_length, extra_length = _LOCAL_HEADER.unpack_from(data)
    if flags & _IS_ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise OSError(f"expected {where} stored or deflated, found it encrypted or packed by method {method}")
    begin = _LOCAL_HEADER.size + name_length + extra_length
    if method == _STORED:
        # Sizes that the header leaves to a descriptor or a zip64 field are known from the next header's place.
        size_bytes = packed if packed not in (0, 2**32 - 1) else _count_stored(data, begin, flags)
        content = data[begin : begin + size_bytes]
    else:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(data[begin:])
        except zlib.error as error:
            raise OSError(f"cannot unpack {where}: {error}; the shard is damaged") from error
        if flags & _HAS_DESCRIPTOR:
            checksum = _read_descriptor(unpacker.unused_data)
    if zlib.crc32(content) != checksum and not (method == _STORED and flags & _HAS_DESCRIPTOR):
        raise OSError(f"expected {where} to have the checksum {checksum:08x}, found another: it is damaged")
    return content


def _count_stored(data: bytes, begin: int, flags: int) -> int:
    """Count the bytes of a stored member up to its descriptor, if it has one: 12 bytes and perhaps a signature."""
    if not flags & _HAS_DESCRIPTOR:
        return len(data) - begin
    return len(data) - begin - (16 if data[-16:-12] == b"PK\x07\x08" else 12)


def _read_descriptor(data: bytes) -> int:
    """Read the checksum in a member's descriptor, before which a signature may stand."""
    data = data.removeprefix(b"PK\x07\x08")
    return int.from_bytes(data[:4], "little")
