"""Real music in every codec and container that can be encoded here, as the files that are then damaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.corpus import load_music
from tests.encoders import encode_bytes, encode_in_container

SECONDS, OTHER_SECONDS = 4.0, 2.0

# Container, encoder and options of FFmpeg; or container and subtype of libsndfile, in capitals.
KINDS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mp3", "libmp3lame", {}),
    ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    ("mp2", "mp2", {}),
    ("adts", "aac", {}),
    ("ac3", "ac3", {}),
    ("flac", "flac", {}),
    ("FLAC", "PCM_24", {}),
    ("wv", "wavpack", {}),
    ("tta", "tta", {}),
    ("ogg", "flac", {}),
    ("OGG", "VORBIS", {}),
    ("ogg", "libopus", {}),
    ("mp4", "aac", {}),
    ("mp4", "alac", {}),
    ("mov", "aac", {}),
    ("matroska", "aac", {}),
    ("matroska", "flac", {"live": "1"}),
    ("webm", "libopus", {}),
    ("asf", "wmav2", {}),
    ("asf", "wmav1", {}),
    ("mpegts", "aac", {}),
    ("flv", "libmp3lame", {}),
    ("avi", "libmp3lame", {}),
    ("nut", "libopus", {}),
    ("caf", "alac", {}),
    ("WAV", "PCM_16", {}),
    ("WAV", "PCM_24", {}),
    ("WAV", "FLOAT", {}),
    ("WAV", "IMA_ADPCM", {}),
    ("wav", "libmp3lame", {}),
    ("wav", "pcm_s16le", {"rf64": "always"}),
    ("W64", "PCM_16", {}),
    ("AIFF", "PCM_16", {}),
    ("aiff", "pcm_s24be", {}),
    ("AU", "PCM_16", {}),
    ("CAF", "PCM_16", {}),
    ("voc", "pcm_s16le", {}),
)
_RATES_HZ = {"libopus": (48_000, 24_000), "ac3": (48_000, 44_100)}
_CLIPS = ("caves-later.ogg", "caribbean.ogg", "mountain.mp3", "ocean.mp3")


@dataclass(frozen=True)
class Recording:
    """A sound file.

    Args:
        name: Container and codec.
        data: The file.
        other: Another piece of music, as an encoder with the same settings writes it.
    """

    name: str
    data: bytes
    other: bytes


def encode_recordings() -> list[Recording]:
    """Encode every kind at two rates, mono and stereo in turn."""
    recordings: list[Recording] = []
    for number, (container, codec, options) in enumerate(KINDS):
        for rate in _RATES_HZ.get(codec, (44_100, 22_050)):
            num_channels = 1 + (number + len(recordings)) % 2
            clips = (_CLIPS[(len(recordings) + step) % len(_CLIPS)] for step in (0, 1))
            music, other = (
                load_music(clip, seconds, rate)[:, :num_channels]
                for clip, seconds in zip(clips, (SECONDS, OTHER_SECONDS), strict=True)
            )
            data, behind = (_encode(samples, rate, container, codec, options) for samples in (music, other))
            name = "-".join([container, codec, *options, f"{rate}x{num_channels}"])
            recordings.append(Recording(name, data, behind))
    return recordings


def _encode(samples: NDArray[np.float32], rate: int, container: str, codec: str, options: dict[str, str]) -> bytes:
    if container.isupper():
        return encode_bytes(samples, rate, format=container, subtype=codec)
    return encode_in_container(samples, rate, container, codec, 96_000, **options)
