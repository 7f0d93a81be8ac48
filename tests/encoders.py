"""Files that no ordinary encoder call gives: in memory, without headers, with tags, with rubbish."""

from __future__ import annotations

import io
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


def damage(data: bytes, at: float, num_bytes: int) -> bytes:
    """Overwrite bytes with noise, beginning at a share of the file."""
    start = int(len(data) * at)
    return data[:start] + np.random.default_rng(2).bytes(num_bytes) + data[start + num_bytes :]
