"""Real music for tests, in any codec, and one file of each kind that must fail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from demo.make_clips import MUSIC, encode_clip

__all__ = ["MUSIC", "encode_clip", "load_music", "make_failures"]


def load_music(
    name: str = "caves-later.ogg", seconds: float = 3.0, sample_rate: int = 44_100
) -> NDArray[np.float32]:
    """Return the start of a demo clip, at any rate, repeated where it is shorter.

    Args:
        name: A file in ``demo/music`` that libsndfile reads.
        seconds: Length.
        sample_rate: Rate of the result.

    Returns:
        Float32 samples, (round(seconds · sample_rate), num_channels of the clip), at most 0.9 of full scale, so
        that no encoder clips them.
    """
    num_samples = round(seconds * sample_rate)
    clip_rate = soundfile.info(MUSIC / name).samplerate
    num_needed = math.ceil(seconds * clip_rate) + 1
    samples, _ = soundfile.read(MUSIC / name, frames=num_needed, dtype="float32", always_2d=True)
    samples = np.tile(samples, (math.ceil(num_needed / len(samples)), 1))
    common = math.gcd(clip_rate, sample_rate)
    resampled = resample_poly(samples, sample_rate // common, clip_rate // common, axis=0)[:num_samples]
    music: NDArray[np.float32] = (0.9 * resampled / np.abs(resampled).max()).astype(np.float32)
    return music


def make_failures(folder: Path) -> dict[str, str]:
    """Write one file of each kind that cannot be embedded.

    Args:
        folder: Where to; must exist.

    Returns:
        File name to the reason that ``failures.error_type`` must give.
    """
    music = load_music(seconds=4.0)
    reasons = {}
    for name in ("cut_wav.wav", "cut_aiff.aiff", "cut_flac.flac", "cut_m4a.m4a", "cut_mp3.mp3", "cut_wma.wma"):
        encode_clip(folder / name, music, 44_100)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        reasons[name] = "truncated"
    rng = np.random.default_rng(0)
    texts = {
        "noise_bytes.mp3": rng.bytes(20_000),
        "web_page.mp3": b"<html><body>404 Not Found</body></html>\n",
        "text.wav": b"This was never a sound.\n" * 100,
        "before_the_index.m4a": (folder / "cut_m4a.m4a").read_bytes()[:30],
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
        reasons[name] = "unreadable"
    (folder / "empty.mp3").write_bytes(b"")
    broken = music.copy()
    broken[50_000] = np.nan
    soundfile.write(folder / "not_finite.wav", broken, 44_100, subtype="FLOAT")
    soundfile.write(folder / "too_short.wav", music[:500], 44_100)
    soundfile.write(folder / "silent.flac", np.zeros_like(music), 44_100)
    soundfile.write(folder / "cancelled.wav", music[:, :1] * np.array([1, -1]), 44_100)
    return {
        **reasons,
        "empty.mp3": "empty_file",
        "not_finite.wav": "non_finite_audio",
        "too_short.wav": "too_short",
        "silent.flac": "silent",
        "cancelled.wav": "silent",
    }
