import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.alignment import align, measure_lateness

BEAT_S = 0.5


def draw_onsets(seed: int, length_s: float = 130) -> npt.NDArray[np.float64]:
    """Draw notes on eighths and sixteenths of a piece at 120 beats a minute."""
    random = np.random.default_rng(seed)
    return np.sort(random.choice(np.arange(0, length_s, BEAT_S / 4), round(length_s * 3), replace=False))


def play_clicks(onsets_s: npt.NDArray[np.float64], offset_s: float) -> npt.NDArray[np.float32]:
    """Return short tones at the onsets, over a little noise."""
    samples = np.random.default_rng(9).standard_normal(140 * 24_000).astype(np.float32) * 1e-3
    places = np.arange(2_400)
    tone = (np.sin(places * 0.2) * np.exp(-places / 600)).astype(np.float32)
    for onset_s in onsets_s + offset_s:
        first = round(onset_s * 24_000)
        if first >= 0:
            samples[first : first + len(tone)] += tone
    return samples


@pytest.mark.parametrize("offset_s", [-0.12, 0.1])
def test_an_offset_is_found_to_ten_milliseconds(offset_s: float) -> None:
    found = align(draw_onsets(0), np.ones(390), BEAT_S, play_clicks(draw_onsets(0), offset_s))
    assert found.offset_s == pytest.approx(offset_s, abs=0.01)
    assert found.is_sure
    assert found.num_stretches == 4


def test_another_piece_is_not_sure() -> None:
    assert not align(draw_onsets(1), np.ones(390), BEAT_S, play_clicks(draw_onsets(0) * 1.013, 0.1)).is_sure


def test_a_recording_that_drifts_away_from_its_score_is_not_sure() -> None:
    assert not align(draw_onsets(0), np.ones(390), BEAT_S, play_clicks(draw_onsets(0) * 1.002, 0.0)).is_sure


def test_a_piece_with_hardly_a_note_is_not_sure() -> None:
    onsets_s = draw_onsets(0)[::30]
    assert align(onsets_s, np.ones(len(onsets_s)), BEAT_S, play_clicks(onsets_s, 0.1)).num_stretches == 0


def test_what_the_louder_notes_contradict_is_not_sure() -> None:
    onsets_s = np.arange(0, 130, BEAT_S / 2)  # half a beat off they fit as well
    loudness = np.where(np.arange(len(onsets_s)) % 2, 1.0, 100.0)
    waveform = play_clicks(onsets_s[::2], 0.1) + 0.9 * play_clicks(onsets_s[1::2], 0.1)
    assert align(onsets_s, loudness, BEAT_S, waveform).offset_s % (BEAT_S / 2) == pytest.approx(0.1, abs=0.01)
    swapped = np.where(np.arange(len(onsets_s)) % 2, 100.0, 1.0)
    sure = [align(onsets_s, weights, BEAT_S, waveform).is_sure for weights in (loudness, swapped)]
    assert sum(sure) <= 1


@pytest.mark.parametrize("late_s", [-0.04, 0.0, 0.055])
def test_notes_that_are_late_by_a_constant_are_measured(late_s: float) -> None:
    jitter_s = np.random.default_rng(2).normal(0, 0.004, len(draw_onsets(0)))
    assert measure_lateness(draw_onsets(0) + late_s + jitter_s, BEAT_S) == pytest.approx(late_s, abs=0.003)
    assert measure_lateness(np.array([0.25]), BEAT_S) == 0
