"""Members: tracks that lie inside larger files, addressed by the bytes that hold them.

A member's URI is its shard's, and where in it the member lies::

    s3://music/clips-0007.tar#bytes=1536-49748&member=a/b.mp3
    s3://music/fma_small.zip#bytes=0-40012&member=000/000002.mp3
    hf://datasets/marsyas/gtzan/train-0.parquet#bytes=4-81920000&row=17&member=blues.00017.wav

``bytes`` is first and past-the-last byte: of a tar member its content, of a zip member its local header and all up
to the next one, of a Parquet member what its row group holds of the audio column, in which it is the given row. So
whoever has a URI reads it with one request (and a Parquet file's footer with another), and several that lie
together with one as well. A repacked shard moves its members: two URIs mean one member where they are equal but
for their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

UNKNOWN_SIZE_BYTES = 8 * 2**20  # what a file of unknown size counts as: a song as mp3

_URI = re.compile(r"(?s)(.*\.((?i:tar|zip|parquet)))#bytes=(\d+)-(\d+)(?:&row=(\d+))?&member=(.*)")


@dataclass(frozen=True)
class Member:
    """Where a member lies.

    Args:
        shard: URL of its shard.
        kind: ``tar``, ``zip`` or ``parquet``.
        start: Its first byte in the shard; of Parquet, that of its row group's audio.
        stop: The byte after its last.
        name: What the shard calls it.
        row: In its row group; None where the shard is no Parquet file.
    """

    shard: str
    kind: str
    start: int
    stop: int
    name: str
    row: int | None = None

    @property
    def uri(self) -> str:
        """The member's URI."""
        row = "" if self.row is None else f"&row={self.row}"
        return f"{self.shard}#bytes={self.start}-{self.stop}{row}&member={self.name}"


def parse_member(uri: str) -> Member | None:
    """Return where a member lies by its URI; None of a URI that is that of a file."""
    if "#bytes=" not in uri:
        return None
    found = _URI.fullmatch(uri)
    if found is None or (found[5] is None) == (found[2].lower() == "parquet"):
        return None
    row = None if found[5] is None else int(found[5])
    return Member(found[1], found[2].lower(), int(found[3]), int(found[4]), found[6], row)


def forget_places(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return URIs without the bytes at which members lie: those of one member are then equal, wherever it was."""
    if not pc.any(pc.match_substring(uris, "#bytes=")).as_py():
        return uris
    return pc.replace_substring_regex(uris, r"#bytes=\d+-\d+(?:&row=\d+)?&member=", "#member=")


def group_by_chunk(uris: pa.ChunkedArray) -> pa.Array | None:
    """Return a number for each URI, the same for those that are read together or not at all.

    Of Parquet files these are the members of a row group.

    Args:
        uris: May hold nulls.

    Returns:
        Numbers in the order in which their first URI stands; None where each URI is read by itself.
    """
    if not pc.any(pc.match_substring(uris, "&row=")).as_py():
        return None
    places = pc.replace_substring_regex(uris, r"(\.(?i:parquet)#bytes=\d+-\d+)&row=\d+&member=.*", r"\1")
    # Repeated URIs may well be read together; those that name no file need no reading.
    return places.combine_chunks().dictionary_encode(null_encoding="encode").indices


def count_read_bytes(uris: Sequence[str | None], sizes_bytes: Sequence[int | None]) -> Iterator[int]:
    """Yield how many bytes have to be read for each of a run of URIs, beyond those that its last one took.

    Args:
        uris: Null of a track without a file.
        sizes_bytes: Of each; null where nobody knows.
    """
    last: tuple[str, int] | None = None
    for uri, size_bytes in zip(uris, sizes_bytes, strict=True):
        member = parse_member(uri) if uri is not None and "&row=" in uri else None
        if member is None:
            yield 0 if uri is None else UNKNOWN_SIZE_BYTES if size_bytes is None else size_bytes
            last = None
            continue
        yield 0 if last == (member.shard, member.start) else member.stop - member.start
        last = member.shard, member.start
