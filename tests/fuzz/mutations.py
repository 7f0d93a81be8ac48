"""What happens to files: bits and bytes, blocks, cuts, joins, line ends, tags, and headers that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from tests.encoders import make_id3_tag
from tests.fuzz.recordings import Recording

Random = np.random.Generator


def leave(recording: Recording, _: Random) -> bytes:
    """Change nothing."""
    return recording.data


def flip_bits(recording: Recording, random: Random) -> bytes:
    """Flip single bits anywhere."""
    data = bytearray(recording.data)
    for position in random.integers(0, len(data), random.integers(1, 30)):
        data[position] ^= 1 << int(random.integers(8))
    return bytes(data)


def flip_header_bits(recording: Recording, random: Random) -> bytes:
    """Flip bits among the first 200 bytes."""
    data = bytearray(recording.data)
    for position in random.integers(0, min(200, len(data)), random.integers(1, 4)):
        data[position] ^= 1 << int(random.integers(8))
    return bytes(data)


def overwrite(recording: Recording, random: Random) -> bytes:
    """Write noise over a part."""
    start, stop = _pick_range(recording.data, random)
    return recording.data[:start] + random.bytes(stop - start) + recording.data[stop:]


def zero(recording: Recording, random: Random) -> bytes:
    """Write zeros over a part."""
    start, stop = _pick_range(recording.data, random)
    return recording.data[:start] + bytes(stop - start) + recording.data[stop:]


def drop(recording: Recording, random: Random) -> bytes:
    """Leave out a part."""
    start, stop = _pick_range(recording.data, random)
    return recording.data[:start] + recording.data[stop:]


def repeat(recording: Recording, random: Random) -> bytes:
    """Put a part in twice."""
    start, stop = _pick_range(recording.data, random)
    return recording.data[:stop] + recording.data[start:]


def swap(recording: Recording, random: Random) -> bytes:
    """Exchange two neighbouring parts."""
    first, third = _pick_range(recording.data, random)
    second = (first + third) // 2
    data = recording.data
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def insert(recording: Recording, random: Random) -> bytes:
    """Put noise between bytes, once or at regular places."""
    every = int(random.choice([len(recording.data), 5_000, 1_253, 417]))
    start = int(random.integers(0, len(recording.data)))
    rubbish = random.bytes(int(random.integers(1, 60)))
    parts = [recording.data[at : at + every] for at in range(start, len(recording.data), every)]
    return recording.data[:start] + rubbish.join(parts)


def cut_end(recording: Recording, random: Random) -> bytes:
    """Cut off the end."""
    return recording.data[: int(len(recording.data) * random.uniform(0.05, 0.98))]


def cut_start(recording: Recording, random: Random) -> bytes:
    """Cut off the start."""
    return recording.data[int(len(recording.data) * random.uniform(0.001, 0.5)) :]


def join(recording: Recording, random: Random) -> bytes:
    """Put another recording behind, with or without a tag or zeros between."""
    between = (b"", make_id3_tag(int(random.integers(10, 200_000))), bytes(int(random.integers(1, 5_000))))
    return recording.data + between[random.integers(3)] + recording.other


def join_itself(recording: Recording, _: Random) -> bytes:
    """Put the recording behind itself."""
    return recording.data + recording.data


def convert_line_ends(recording: Recording, random: Random) -> bytes:
    """Convert line ends as a transfer of text does, one way or the other."""
    if random.integers(2):
        return recording.data.replace(b"\n", b"\r\n")
    return recording.data.replace(b"\r\n", b"\n")


def put_tag_before(recording: Recording, random: Random) -> bytes:
    """Put ID3v2 tags before, small or with a cover."""
    tags = b"".join(make_id3_tag(int(10 ** random.uniform(1, 6.4))) for _ in range(random.integers(1, 3)))
    return tags + recording.data


def put_tag_behind(recording: Recording, random: Random) -> bytes:
    """Put an ID3v1 tag or an APEv2 tag behind, or both."""
    size = int(10 ** random.uniform(1, 6))
    mark = struct.pack("<8sIII", b"APETAGEX", 2000, size + 32, 1)
    ape = mark + struct.pack("<I8x", 0xA0000000) + random.bytes(size) + mark + struct.pack("<I8x", 0x80000000)
    old = b"TAG" + bytes(125)
    return recording.data + (old, ape, ape + old)[random.integers(3)]


def lie_in_numbers(recording: Recording, random: Random) -> bytes:
    """Halve, double, clear or fill a number of 2, 4 or 8 bytes in the header."""
    data = bytearray(recording.data)
    layout = str(random.choice(["<I", ">I", "<H", ">H", "<Q", ">Q"]))
    size = struct.calcsize(layout)
    position = int(random.integers(0, min(300, len(data) - size)))
    (value,) = struct.unpack_from(layout, data, position)
    limit = 256**size - 1
    struct.pack_into(layout, data, position, (value // 2, min(value * 2, limit), 0, limit)[random.integers(4)])
    return bytes(data)


Mutation = Callable[[Recording, Random], bytes]

MUTATIONS: tuple[Mutation, ...] = (
    *(leave, flip_bits, flip_header_bits, overwrite, zero, drop, repeat, swap, insert, cut_end, cut_start),
    *(join, join_itself, convert_line_ends, put_tag_before, put_tag_behind, lie_in_numbers),
)


def _pick_range(data: bytes, random: Random) -> tuple[int, int]:
    """Pick a part of a file: from some bytes to a half."""
    size = int(len(data) * 10 ** random.uniform(-4, -0.3))
    start = int(random.integers(0, len(data) - size))
    return start, start + max(1, size)
