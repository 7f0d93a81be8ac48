"""Files that no ordinary encoder call gives: in memory, without headers, with tags, with rubbish."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from demo.make_clips import encode_with_ffmpeg


def encode_bytes(waveform: NDArray[Any], sample_rate: int, **arguments: str) -> bytes:
    """Encode through libsndfile; arguments are those of ``soundfile.write``."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, **arguments)
    return buffer.getvalue()


def encode_in_container(
    waveform: NDArray[Any], sample_rate: int, container: str, codec: str, bit_rate: int = 96_000, **options: str
) -> bytes:
    """Encode (num_samples, num_channels) through FFmpeg into any of its containers; an mp4 in fragments."""
    options = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else options
    buffer = io.BytesIO()
    encode_with_ffmpeg(buffer, waveform, sample_rate, codec, bit_rate, options, container)
    return buffer.getvalue()


def encode_mp3_without_length(waveform: NDArray[Any], sample_rate: int, bit_rate: int) -> bytes:
    """Encode a bare mp3 stream at a constant bit rate: no tag, no Xing frame."""
    return encode_in_container(
        waveform, sample_rate, "mp3", "libmp3lame", bit_rate, write_xing="0", id3v2_version="0"
    )


def make_id3_tag(num_bytes: int) -> bytes:
    """Return an empty ID3v2.3 tag of a size, which is written in four times seven bits."""
    size = bytes(num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + bytes(num_bytes)


def make_id3v2(encoding: int, frames: Mapping[str, str], codec: str, version: int = 3) -> bytes:
    """Return an ID3v2.3 or 2.4 tag as the specifications (id3.org, 4.2) have it, its texts in one encoding."""
    body = b""
    for name, text in frames.items():
        content = bytes([encoding]) + text.encode(codec)
        assert len(content) < 128  # up to there sizes of both versions look alike
        body += name.encode() + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes((len(body) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3" + bytes([version, 0, 0]) + size + body


def make_id3v1(title: str, artist: str, album: str, codec: str) -> bytes:
    """Return an ID3v1 tag of 128 bytes, which names no encoding; its genre is 8, Jazz."""
    texts = [text.encode(codec).ljust(30, b"\0") for text in (title, artist, album)]
    return b"TAG" + b"".join(texts) + b"1997" + bytes(28) + b"\0\x05" + b"\x08"


def strip_id3v2(data: bytes) -> bytes:
    """Return an mp3 without the ID3v2 tag at its start."""
    if data[:3] != b"ID3":
        return data
    return data[10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True)) :]


def damage(data: bytes, at: float, num_bytes: int) -> bytes:
    """Overwrite bytes with noise, beginning at a share of the file."""
    start = int(len(data) * at)
    return data[:start] + np.random.default_rng(2).bytes(num_bytes) + data[start + num_bytes :]
