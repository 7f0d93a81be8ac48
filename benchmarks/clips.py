"""Real music as mp3 files, cut from the demo's clips: what decoding and whole runs are measured on."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from demo.make_clips import encode_clip, encode_with_ffmpeg
from tests.corpus import load_music

CLIP_S = 30.0
PREVIEW_RATE_HZ = 22_050  # mono, 64 kbit/s: what the previews of the Million Song Dataset are
_SOURCES = ("mountain.mp3", "ocean.mp3", "hunting.mp3", "caribbean.ogg", "caves-later.ogg", "desert.flac")
_SHIFT_S = 0.7  # of one file against the next from the same clip: no two files are alike, nor are their frames
_PACKET_SAMPLES = 576  # of the mp3 of that rate
_SHIFT_PACKETS = 25  # 0.65 s; prime to the 1,148 packets of a clip


def cut_clip(number: int, seconds: float = CLIP_S, sample_rate: int = PREVIEW_RATE_HZ) -> NDArray[np.float32]:
    """Return excerpt ``number`` of the demo's music, mono, (seconds · sample_rate,); repeated where too short."""
    source = _SOURCES[number % len(_SOURCES)]
    music = _load_mono(source, seconds, sample_rate)
    return np.roll(music, -round(number // len(_SOURCES) * _SHIFT_S * sample_rate))


@functools.lru_cache(maxsize=len(_SOURCES))
def _load_mono(source: str, seconds: float, sample_rate: int) -> NDArray[np.float32]:
    music: NDArray[np.float32] = load_music(source, seconds, sample_rate).mean(axis=1)
    return music


def write_clips(folder: Path, num_clips: int, seconds: float = CLIP_S) -> None:
    """Write that many different mp3 files of 22.05 kHz mono into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_clips):
        clip = cut_clip(number, seconds)
        encode_clip(folder / f"clip{number:05d}.mp3", clip[:, None], PREVIEW_RATE_HZ, 64_000)


def write_thousands(folder: Path, num_clips: int, seconds: float = CLIP_S) -> None:
    """Write many such files in seconds; they have no header that says how long they are.

    Each source is encoded once, without the reservoir by which a packet leans on those before it. A file is its
    packets from another one on, the first ones after the last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_clips):
        packets = _encode_packets(number % len(_SOURCES), seconds)
        first = number // len(_SOURCES) * _SHIFT_PACKETS % len(packets)
        (folder / f"clip{number:05d}.mp3").write_bytes(b"".join(packets[first:] + packets[:first]))


@functools.lru_cache(maxsize=len(_SOURCES))
def _encode_packets(source: int, seconds: float) -> list[bytes]:
    packets = encode_packets(cut_clip(source, seconds)[:, None], PREVIEW_RATE_HZ, 64_000)
    return packets[: int(seconds * PREVIEW_RATE_HZ / _PACKET_SAMPLES)]  # the encoder's delay would make it longer


def encode_packets(waveform: NDArray[np.float32], sample_rate: int, bit_rate: int) -> list[bytes]:
    """Return the mp3 packets of a waveform, (num_samples, num_channels), none of which needs another."""
    encoded = io.BytesIO()
    options, codec_options = {"write_xing": "0", "id3v2_version": "0"}, {"reservoir": "0"}
    encode_with_ffmpeg(
        encoded, waveform, sample_rate, "libmp3lame", bit_rate, options, "mp3", codec_options=codec_options
    )
    encoded.seek(0)
    with av.open(encoded, "r") as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
