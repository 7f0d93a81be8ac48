import numpy as np
import pytest

pytest.importorskip("madmom_infer", reason="madmom-infer is not installed: pip install '.[dbn]'")

import mir_eval.beat

from pipeline.probing.dbn import track_beats
from pipeline.probing.decoding import pick_peaks


def draw_activations(rate_hz: float, period_s: float, beats_per_bar: int, missing: set[int]) -> np.ndarray:
    """Return peaks at beats over noise, as wide as a head is taught them; some beats are not heard at all."""
    activations = np.random.default_rng(0).uniform(0, 0.15, (round(20 * rate_hz), 2))
    for number, time_s in enumerate(np.arange(0.31, 19.9, period_s)):
        if number not in missing:
            frame, num_columns = int(time_s * rate_hz), 2 if number % beats_per_bar == 0 else 1
            activations[frame - 1 : frame + 2, :num_columns] = np.array([[0.4], [0.7], [0.4]])
    return activations


@pytest.mark.parametrize(("rate_hz", "period_s", "beats_per_bar"), [(25, 0.5, 4), (50, 0.43, 3)])
def test_beats_that_no_frame_shows_are_inferred(rate_hz: float, period_s: float, beats_per_bar: int) -> None:
    missing = {9, 14, 22, 31}
    activations = draw_activations(rate_hz, period_s, beats_per_bar, missing)
    reference_s = np.arange(0.31, 19.9, period_s)
    tracked = track_beats(activations, rate_hz)
    times_s = np.array([time_s for time_s, _ in tracked.beats])
    assert mir_eval.beat.f_measure(reference_s, times_s) > 0.98
    downbeats_s = np.array([time_s for time_s, place in tracked.beats if place == 1])
    assert mir_eval.beat.f_measure(reference_s[::beats_per_bar], downbeats_s) > 0.9
    assert len(tracked.beat_scores) == len(times_s)
    peaks_s = (pick_peaks(activations[:, 0], rate_hz, 0.2, 0.5) + 0.5) / rate_hz
    assert mir_eval.beat.f_measure(reference_s, peaks_s) < mir_eval.beat.f_measure(reference_s, times_s)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_activations_of_nothing_and_of_everything_are_survived(value: float) -> None:
    tracked = track_beats(np.full((250, 2), value), 25)
    assert all(np.isfinite(tracked.beat_scores))
