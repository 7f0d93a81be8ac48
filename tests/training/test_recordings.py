"""Chroma and duplicates, against tones whose pitch is known and against real music."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly

from tests.corpus import encode_clip, load_music
from training.recordings import Recording, find_duplicates, measure_chroma, read_recording

RATE = 44_100
CLIPS = ("caribbean.ogg", "desert.flac", "caves-later.ogg", "crossroads.wav")


def make_recording(waveform: NDArray[np.float32], rate: int = RATE, content_hash: str = "") -> Recording:
    chroma = measure_chroma(waveform, rate)
    return Recording("", "", "", "", len(waveform) / rate, content_hash or str(hash(waveform.tobytes())), chroma)


def load_mono(clip: str, seconds: float = 25.0) -> NDArray[np.float32]:
    mono: NDArray[np.float32] = load_music(clip, seconds).mean(axis=1)
    return mono


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_a_tone_sounds_in_its_pitch_class(rate: int) -> None:
    times_s = np.arange(4 * rate) / rate
    hz = np.where(times_s < 2, 440.0, 440 * 2 ** (3 / 12))  # A, then C
    chroma = measure_chroma(np.sin(2 * np.pi * np.cumsum(hz) / rate).astype(np.float32), rate)
    assert (chroma[:18].argmax(axis=1) == 0).all()
    assert (chroma[22:38].argmax(axis=1) == 3).all()
    assert not chroma[40:].any()
    assert np.linalg.norm(chroma) == pytest.approx(1)


def test_the_same_music_is_found_through_silence_gain_and_another_rate() -> None:
    music = load_mono(CLIPS[0])
    later = np.concatenate([np.zeros(RATE, np.float32), 0.3 * music])
    lower = resample_poly(music, 1, 2).astype(np.float32)
    recordings = [make_recording(music), make_recording(later), make_recording(lower, RATE // 2)]
    assert find_duplicates(recordings) == {1: 0, 2: 0}


def test_different_music_is_kept() -> None:
    assert find_duplicates([make_recording(load_mono(clip)) for clip in CLIPS]) == {}


def test_equal_bytes_are_the_same_however_they_sound() -> None:
    first, second = (make_recording(load_mono(clip), content_hash="same") for clip in CLIPS[:2])
    assert find_duplicates([first, second]) == {1: 0}


def test_a_file_tells_its_length_and_its_name_stands_for_a_missing_title(tmp_path: Path) -> None:
    path = tmp_path / "Long Way.flac"
    encode_clip(path, load_music(CLIPS[0], 3.0), RATE)
    recording = read_recording(path)
    assert (recording.title, recording.duration_s) == ("Long Way", 3.0)
