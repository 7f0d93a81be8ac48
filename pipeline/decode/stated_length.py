"""What a file says of its own length in its header, where the decoders do not tell.

libsndfile silently takes what is there of a wav, aiff, w64 or au file that was cut; FFmpeg replaces the header's
figure by an estimate from the bit rate where a wma or mp3 file was cut or its bit rate varies.
"""

from __future__ import annotations

import re
import struct

_SEARCH_BYTES = 2**16  # headers stand within the first 64 KiB after any tag

# The first frame of an mp3: sync word with version and layer III, then rate; then after its side information
# "Xing" or "Info" (mp3infotag specification, G. Bouvigne), or "VBRI" (Fraunhofer), with the number of frames.
_MP3_INFO = re.compile(
    rb"\xff([\xe2\xe3\xf2\xf3\xfa\xfb])(.)."
    rb"(?:(?:.{9}|.{11}|.{17}|.{19}|.{32}|.{34})(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})"
    rb"|.{32}VBRI.{10}(.{4}))",
    re.DOTALL,
)
_MPEG1_RATES_HZ = (44_100, 48_000, 32_000)

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # ASF specification, section 3.2

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"

# Of each container in chunks: the layout of a chunk's header, where the first chunk starts, to how many bytes
# chunks are aligned, and the name of the audio's.
_CHUNKS = {
    b"RIFF": ("<4sI", 12, 2, b"data"),
    b"RIFX": (">4sI", 12, 2, b"data"),
    b"RF64": ("<4sI", 12, 2, b"data"),
    b"FORM": (">4sI", 12, 2, b"SSND"),
    b"caff": (">4sq", 8, 1, b"data"),
    b"riff": ("<16sQ", 40, 8, _W64_DATA),
}

# What programs write into a 32-bit size when they write to a pipe and cannot come back: 0, or 2 GiB and more
# (sox 0x7FFFF000 and above, FFmpeg 0xFFFFFFFF).
_UNKNOWN_SIZE_BYTES = 0x7FFFF000


def mp3_duration_s(data: bytes) -> float | None:
    """Return the duration that the Xing, Info or VBRI frame of an MPEG layer III stream states.

    It includes the encoder's delay and padding: up to 0.3 s more than a decoder gives.

    Args:
        data: The file.

    Returns:
        Seconds; None where the file has no such frame, or is no mp3.
    """
    start = _skip_id3_tags(data)
    found = _MP3_INFO.search(data, start, start + _SEARCH_BYTES)
    if not found:
        return None
    version, rate_index = (
        found[1][0] >> 3 & 3,
        found[2][0] >> 2 & 3,
    )  # version 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    if rate_index == 3:
        return None
    sample_rate_hz = _MPEG1_RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    num_frames = int.from_bytes(found[3] or found[4], "big")
    return num_frames * (1152 if version == 3 else 576) / sample_rate_hz or None


def asf_duration_s(data: bytes) -> float | None:
    """Return the duration that the header of a wma or other ASF file states; None for a broadcast or no ASF."""
    at = data.find(_ASF_FILE_PROPERTIES, 0, _SEARCH_BYTES)
    if at < 0 or len(data) < at + 92:
        return None
    play_100ns, _, preroll_ms, flags = struct.unpack_from("<QQQI", data, at + 64)
    is_broadcast = flags & 1
    return None if is_broadcast else float(play_100ns / 1e7 - preroll_ms / 1e3)


def find_present_share(data: bytes) -> float:
    """Return how much of the audio that the header of a wav, rf64, w64, aiff, caf or au file states is there.

    Args:
        data: The file.

    Returns:
        Share of the stated bytes, 0 to 1; 1 for other formats, and where the header says nothing.
    """
    start, size = _find_audio_bytes(data)
    if size <= 0 or (size >= _UNKNOWN_SIZE_BYTES and data[:4] in (b"RIFF", b"RIFX", b"FORM", b".snd")):
        return 1.0
    return min(1.0, (len(data) - start) / size)


def cut_leading_tags(data: bytes) -> bytes:
    """Cut off ID3v2 tags before a container that starts with its own name, such as a wav.

    libsndfile skips them, and then misses as much at the end; FFmpeg does not know such files at all.
    """
    start = _skip_id3_tags(data)
    return data[start:] if start and data[start : start + 4] in _CHUNKS else data


def _find_audio_bytes(data: bytes) -> tuple[int, int]:
    """Return where the audio starts and how many bytes of it the header states; 0 or less if it does not."""
    if data[:4] == b".snd" and len(data) >= 12:
        start, size = struct.unpack_from(">II", data, 4)
        return min(start, len(data)), size
    layout, position, alignment, audio_name = _CHUNKS.get(data[:4], ("<4sI", len(data), 1, b""))
    header_bytes = struct.calcsize(layout)
    long_size = 0
    while position + header_bytes <= len(data):
        name, size = struct.unpack_from(layout, data, position)
        start = position + header_bytes
        if data[:4] == b"riff":  # W64 counts a chunk's header in its size
            size -= header_bytes
        if name == b"ds64" and len(data) >= start + 16:  # RF64 keeps the sizes that 32 bits cannot hold here
            long_size = struct.unpack_from("<Q", data, start + 8)[0]
        if name == audio_name:
            return start, long_size if data[:4] == b"RF64" else size
        if size < 0:
            break
        position = start + size + -size % alignment
    return len(data), 0


def _skip_id3_tags(data: bytes) -> int:
    """Return where the audio starts behind any number of ID3v2 tags."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:  # 28 bits in four bytes (ID3v2.3.0, section 3.1)
            size = size << 7 | byte & 0x7F
        has_footer = data[start + 5] & 0x10
        start += 10 + size + (10 if has_footer else 0)
    return start
