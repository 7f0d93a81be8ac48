import numpy as np
import pytest

pytest.importorskip("madmom_infer", reason="madmom-infer is not installed: pip install '.[dbn]'")

import mir_eval.beat
import pyarrow as pa

from pipeline.location import StoreLocation
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.dbn import track_beats
from pipeline.probing.decoding import PEAK_PICKER, pick_peaks
from pipeline.probing.features import from_arrays
from pipeline.probing.probe import ProbeSettings, probe_features


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


def test_a_probe_names_both_decoders_and_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.probing.fitting.MAX_ROUNDS", 5)
    names = [f"track {number}" for number in range(6)]
    beats = tuple((0.31 + 0.5 * number, number % 4 + 1) for number in range(23))
    said = {
        name: Annotation(beats=beats, split=split)
        for name, split in zip(names, ("train",) * 3 + ("valid",) * 2 + ("test",), strict=True)
    }
    random = np.random.default_rng(1)
    shown = draw_activations(25, 0.5, 4, set())[:300]
    matrices = [(shown + random.normal(0, 0.05, shown.shape)).astype(np.float32) for _ in names]
    features = from_arrays(names, matrices, 25.0, "shown", "25hz")
    tracks = pa.table({"track_id": names, "artist": names, "album": names})
    settings = ProbeSettings(StoreLocation(""), Annotations("beat", tracks=said), dbn=True)
    line = probe_features(features, said, tracks, settings).as_line()
    assert line["peaks"] == PEAK_PICKER
    assert "madmom-infer" in line["dbn"]["decoder"]  # type: ignore[index]
    assert set(line["dbn"]["metrics"]) == {"beat_f", "downbeat_f"}  # type: ignore[index]
    assert line["dbn"]["metrics"]["beat_f"]["value"] > 0.9  # type: ignore[index]
