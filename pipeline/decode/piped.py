"""Files that were written to a pipe: the writer could not come back to write the length into the header.

FFmpeg reads a wav, aiff, au or caf of unknown length to its end, but plays what is no audio there; and it reads
nothing of an rf64, bw64 or w64.
"""

from __future__ import annotations

import struct

from pipeline.decode.stated_length import IN_64_BITS, find_audio_bytes, is_unknown_size

_LAST_CHUNKS = (b"LIST", b"id3 ")  # what writers of wav put behind the audio
_LAST_BYTES = 2**20  # such a chunk begins this near to the end


def mend_piped(data: bytes) -> bytes:
    """Return a file of unknown length as its writer would have left it on a disk; any other as it is.

    Args:
        data: The file.
    """
    start, size = find_audio_bytes(data)
    if start >= len(data) or not is_unknown_size(data, size):
        return data
    data = _cut_last_chunk(_cut_repeated_headers(data), start)
    return _fill_in_length(data, start)


def _cut_repeated_headers(data: bytes) -> bytes:
    """Cut off copies of the header: libsndfile, and sox with it, writes a w64 or caf file's three times."""
    start, _ = find_audio_bytes(data)
    header_bytes = start + (4 if data[:4] == b"caff" else 0)

    def is_header(position: int) -> bool:
        copy = data[position : position + header_bytes + 1]  # and a byte of what follows
        return copy[:4] == data[:4] and find_audio_bytes(copy + b"\0")[0] == start

    first, end = 0, len(data)
    while is_header(first + header_bytes):
        first += header_bytes
    while end - header_bytes > first and is_header(end - header_bytes):
        end -= header_bytes
    return data[first:end]


def _cut_last_chunk(data: bytes, start: int) -> bytes:
    """Cut off a chunk behind the audio of a wav file: it is known by its size, which reaches to the file's end."""
    if data[:4] != b"RIFF":
        return data
    for name in _LAST_CHUNKS:
        position = data.rfind(name, max(start, len(data) - _LAST_BYTES))
        if 0 <= position <= len(data) - 8:
            (size,) = struct.unpack_from("<I", data, position + 4)
            if position + 8 + size + size % 2 == len(data):
                return data[:position]
    return data


def _fill_in_length(data: bytes, start: int) -> bytes:
    """Write the length into the header of an rf64, bw64 or w64 file."""
    if data[:4] not in (*IN_64_BITS, b"riff"):
        return data
    filled = bytearray(data)
    if data[:4] == b"riff":
        struct.pack_into("<Q", filled, 16, len(data))
        struct.pack_into("<Q", filled, start - 8, len(data) - start + 24)
    else:
        sizes = data.find(b"ds64", 0, start) + 8
        struct.pack_into("<QQ", filled, sizes, len(data) - 8, len(data) - start)
    return bytes(filled)
