"""Members: tracks that lie inside larger files, addressed by the bytes that hold them.

A member's URI is its shard's, and where in it the member lies::

    s3://music/clips-0007.tar#bytes=1536-49748&member=a/b.mp3
    s3://music/fma_small.zip#bytes=0-40012&member=000/000002.mp3

``bytes`` is first and past-the-last byte: of a tar member its content, of a zip member its local header and all up
to the next one. So whoever has a URI reads it with one request, and several that lie together with one as well.
A repacked shard moves its members: two URIs mean one member where they are equal but for their bytes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.storage import Options, open_filesystem

MAX_GAP_BYTES = 2**20  # between members that are read together: less than another request is worth
MAX_RANGE_BYTES = 2**28  # of one request

_URI = re.compile(r"(?s)(.*\.((?i:tar|zip)))#bytes=(\d+)-(\d+)&member=(.*)")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT, section 4.3.7
_STORED, _DEFLATED = 0, 8
_HAS_DESCRIPTOR, _IS_ENCRYPTED = 8, 1


@dataclass(frozen=True)
class Member:
    """Where a member lies.

    Args:
        shard: URL of its shard.
        kind: ``tar`` or ``zip``.
        start: Its first byte in the shard.
        stop: The byte after its last.
        name: What the shard calls it.
    """

    shard: str
    kind: str
    start: int
    stop: int
    name: str

    @property
    def uri(self) -> str:
        """The member's URI."""
        return f"{self.shard}#bytes={self.start}-{self.stop}&member={self.name}"


def parse_member(uri: str) -> Member | None:
    """Return where a member lies by its URI; None of a URI that is that of a file."""
    if "#bytes=" not in uri:
        return None
    found = _URI.fullmatch(uri)
    return Member(found[1], found[2].lower(), int(found[3]), int(found[4]), found[5]) if found else None


def forget_places(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return URIs without the bytes at which members lie: those of one member are then equal, wherever it was."""
    if not pc.any(pc.match_substring(uris, "#bytes=")).as_py():
        return uris
    return pc.replace_substring_regex(uris, r"#bytes=\d+-\d+&member=", "#member=")


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
    found = dict(zip(loose, files, strict=True))
    for shard, placed in shards.items():
        contents = _read_members(shard, [member for _, member in placed], options)
        found.update(zip((position for position, _ in placed), contents, strict=True))
    return [found[position] for position in range(len(uris))]


def _read_members(shard: str, members: Sequence[Member], options: Options | None) -> list[bytes | Exception]:
    fs, path = open_filesystem(shard, options)
    ranges = plan_ranges(members)
    starts, stops = [span.start for span, _ in ranges], [span.stop for span, _ in ranges]
    bodies = fs.cat_ranges([path] * len(ranges), starts, stops, on_error="return")
    found: dict[int, bytes | Exception] = {}
    for (span, positions), body in zip(ranges, bodies, strict=True):
        for position in positions:
            found[position] = body if isinstance(body, Exception) else _cut(members[position], body, span.start)
    return [found[position] for position in range(len(members))]


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
            if member.start - last.stop <= MAX_GAP_BYTES and stop - last.start <= MAX_RANGE_BYTES:
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
