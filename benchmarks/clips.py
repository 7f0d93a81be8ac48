"""Real music as mp3 files, cut from the demo's clips: what decoding and whole runs are measured on."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.make_clips import encode_clip
from tests.corpus import load_music

CLIP_S = 30.0
PREVIEW_RATE_HZ = 22_050  # mono, 64 kbit/s: what the previews of the Million Song Dataset are
_SOURCES = ("mountain.mp3", "ocean.mp3", "hunting.mp3", "caribbean.ogg", "caves-later.ogg", "desert.flac")
_SHIFT_S = 0.7  # of one file against the next from the same clip: no two files are alike, nor are their frames


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
