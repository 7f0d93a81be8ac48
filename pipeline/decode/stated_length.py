"""What a file says of its own length in its header, where the decoders do not tell.

libsndfile silently takes what is there of a wav, aiff, w64 or au file that was cut; FFmpeg replaces the header's
figure by an estimate from the bit rate where a wma or mp3 file was cut or its bit rate varies.
"""

from __future__ import annotations

import re
import struct

from pipeline.decode.wrapping import skip_tags

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

_PCM_ENCODINGS = (1, 3, 6, 7, 0xFFFE)  # integers, floating point, A-law, mu-law, and what says so elsewhere
_SAMPLE_BYTES = (1, 2, 3, 4, 8)  # that a sample of PCM may have

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"

# Of each container in chunks: the layout of a chunk's header, where the first chunk starts, to how many bytes
# chunks are aligned, and the name of the audio's.
_CHUNKS = {
    b"RIFF": ("<4sI", 12, 2, b"data"),
    b"RIFX": (">4sI", 12, 2, b"data"),
    b"RF64": ("<4sI", 12, 2, b"data"),
    b"BW64": ("<4sI", 12, 2, b"data"),
    b"FORM": (">4sI", 12, 2, b"SSND"),
    b"caff": (">4sq", 8, 1, b"data"),
    b"riff": ("<16sQ", 40, 8, _W64_DATA),
    b"FRM8": (">4sQ", 16, 2, b"DSD "),
    b"DSD ": ("<4sQ", 0, 1, b"data"),
}
_COUNT_THEIR_HEADER = (b"riff", b"DSD ")  # here a chunk's size counts the chunk's own header
IN_64_BITS = (b"RF64", b"BW64")  # the sizes that 32 bits cannot hold stand in a chunk "ds64"

# What programs write into a 32-bit size when they write to a pipe and cannot come back: 0, or what stands for 2 or
# 4 GiB, less a header and rounded down to whole frames (sox 0x7F000000 for aiff and 0x7FFFF000 for wav, GStreamer
# 0x7FFF0000, ALSA 0x80000000, FFmpeg 0xFFFFFFFF).
_UNKNOWN_SIZE_BYTES = 0x7F000000 - 2**16


def mp3_duration_s(data: bytes) -> float | None:
    """Return the duration that the Xing, Info or VBRI frame of an MPEG layer III stream states.

    It includes the encoder's delay and padding: up to 0.3 s more than a decoder gives.

    Args:
        data: The file.

    Returns:
        Seconds; None where the file has no such frame, or is no mp3.
    """
    start = skip_tags(data)
    match = _MP3_INFO.search(data, start, start + _SEARCH_BYTES)
    if not match:
        return None
    version, rate_index = match[1][0] >> 3 & 3, match[2][0] >> 2 & 3  # version 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    if rate_index == 3:
        return None
    sample_rate_hz = _MPEG1_RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    num_frames = int.from_bytes(match[3] or match[4], "big")
    return num_frames * (1152 if version == 3 else 576) / sample_rate_hz or None


def asf_duration_s(data: bytes) -> float | None:
    """Return the duration that the header of a wma or other ASF file states; None for a broadcast or no ASF."""
    start = data.find(_ASF_FILE_PROPERTIES, 0, _SEARCH_BYTES)
    if start < 0 or len(data) < start + 92:
        return None
    play_100ns, _, preroll_ms, flags = struct.unpack_from("<QQQI", data, start + 64)
    is_broadcast = flags & 1
    return None if is_broadcast else float(play_100ns / 1e7 - preroll_ms / 1e3)


def wav_duration_s(data: bytes) -> float | None:
    """Return the duration that the header of a wav, rf64, bw64 or w64 file states; of two, the shorter one.

    Of PCM it states the bytes of a second, beside the bits of a sample by which it is decoded. Of other encodings
    a ``fact`` chunk counts samples, and a mean of bytes a second may be stated ("Multimedia Programming Interface
    and Data Specifications 1.0", IBM and Microsoft, chapter 3).

    Args:
        data: The file.

    Returns:
        Seconds; None where the header states none, or contradicts itself, and for other formats.
    """
    start, size_bytes = find_audio_bytes(data)
    facts, layout = data.find(b"fact", 12, start), data.find(b"fmt ", 12, start)
    header_bytes = struct.calcsize(_CHUNKS[data[:4]][0]) if data[:4] in (b"RIFF", b"riff", *IN_64_BITS) else 0
    if not header_bytes or layout < 0 or start >= len(data) - 20 or is_unknown_size(data, size_bytes):
        return None
    layout += header_bytes
    encoding, num_channels, sample_rate_hz, bytes_per_s = struct.unpack_from("<HHII", data, layout)
    if encoding in _PCM_ENCODINGS:
        is_rate = bytes_per_s in [sample_rate_hz * num_channels * num_bytes for num_bytes in _SAMPLE_BYTES]
        return size_bytes / bytes_per_s if bytes_per_s and is_rate else None
    facts = facts + header_bytes if facts >= 0 else len(data)
    num_samples = int.from_bytes(data[facts : facts + 4], "little")
    if not (sample_rate_hz and num_samples):
        return None
    duration_s: float = num_samples / sample_rate_hz
    return min(duration_s, size_bytes / bytes_per_s) if bytes_per_s else duration_s


def compare_bytes(data: bytes) -> float:
    """Return how much of the audio that a header states is there, of wav, rf64, w64, aiff, caf, au, dsf and dff.

    Behind the audio, chunks, tags and zeros are no audio; anything else is more of it, or another recording.

    Args:
        data: The file.

    Returns:
        Bytes that are there by bytes that the header states; 1 for other formats, and where it states none.
    """
    start, size = find_audio_bytes(data)
    if is_unknown_size(data, size):
        return 1.0
    if start + size >= len(data):
        return (len(data) - start) / size
    return 1.0 if data[:4] == b".snd" else (size + _count_unexplained_bytes(data, start + size)) / size


def count_ogg_payload(data: bytes) -> int:
    """Return how many bytes of an ogg file are music, readable or not: all but page headers and codec headers.

    Source: RFC 3533, section 6. Pages of codec headers have the position 0.
    """
    payload = position = 0
    while (page := data.find(b"OggS\0", position)) >= 0:
        payload += page - position  # what chains to no page
        granule = data[page + 6 : page + 14]
        segments = data[page + 27 : page + 27 + data[page + 26]] if len(data) > page + 26 else b""
        size = sum(segments)
        position = page + 27 + len(segments) + size
        if position > len(data):  # cut in the midst of a page, which nobody can read
            return payload
        payload += size if any(granule) else 0
    return payload + len(data[position:].rstrip(b"\0"))


def is_unknown_size(data: bytes, size: int) -> bool:
    """Say whether the size that a header gives of its audio stands for none.

    Args:
        data: The file.
        size: From ``find_audio_bytes``.
    """
    limit = _UNKNOWN_SIZE_BYTES if data[:4] in (b"RIFF", b"RIFX", b"FORM", b".snd") else 2**62
    least = 4 if data[:4] == b"caff" else 0  # the number of an edit comes before the audio
    return size <= least or (size >= limit and len(data) < limit)


def find_recordings(data: bytes) -> list[int]:
    """Return where the streams of an ogg file begin: several at the same place, or one behind the other."""
    return [match.start() for match in re.finditer(rb"OggS\x00\x02", data)]


def _count_unexplained_bytes(data: bytes, position: int) -> int:
    """Return how many bytes behind the audio chunk belong neither to chunks nor to tags."""
    layout, _, alignment, _ = _CHUNKS[data[:4]]
    header_bytes = struct.calcsize(layout)
    end = len(data)
    position += -position % alignment
    while position + header_bytes <= end and data[position : position + 4] not in _CHUNKS:
        name, size = struct.unpack_from(layout, data, position)
        size -= header_bytes if data[:4] in _COUNT_THEIR_HEADER else 0
        is_name = len(name) == 16 or name.isascii()
        if not is_name or not 0 <= size <= end - position - header_bytes:
            break
        position += header_bytes + size + -size % alignment
    return len(data[position:end].strip(b"\0"))


def find_audio_bytes(data: bytes) -> tuple[int, int]:
    """Return where the audio starts and how many bytes of it the header states, of a container in chunks or au.

    Args:
        data: The file.

    Returns:
        The end of the file where there is no audio or the format is another; then 0 or less, as where no size is
        stated. See ``is_unknown_size`` for what else stands for none.
    """
    if data[:4] == b".snd" and len(data) >= 12:
        start, size = struct.unpack_from(">II", data, 4)
        return min(start, len(data)), size
    layout, position, alignment, audio_name = _CHUNKS.get(data[:4], ("<4sI", len(data), 1, b""))
    header_bytes = struct.calcsize(layout)
    long_size = 0
    while position + header_bytes <= len(data):
        name, size = struct.unpack_from(layout, data, position)
        start = position + header_bytes
        if data[:4] in _COUNT_THEIR_HEADER:
            size -= header_bytes
        if name == b"ds64" and len(data) >= start + 16:
            long_size = struct.unpack_from("<Q", data, start + 8)[0]
        if name == audio_name:
            return start, long_size if data[:4] in IN_64_BITS else size
        if size < 0:
            break
        position = start + size + -size % alignment
    return len(data), 0
