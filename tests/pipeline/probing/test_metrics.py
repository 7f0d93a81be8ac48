"""Each metric is what mir_eval or scikit-learn says when called directly, on random and on hand-made cases."""

import math

import mir_eval
import numpy as np
import pytest
import sklearn.metrics

from pipeline.probing.metrics import (
    Estimate,
    average_scores,
    bootstrap,
    measure_regression,
    measure_tagging,
    score_beats,
    score_chords,
    score_key,
    score_sections,
)

SEEDS = range(5)
CHORDS = ["C:maj", "A:min", "F#:maj7", "N", "G:sus4/5", "Eb:min", "X", "B:hdim7"]


def draw_intervals(
    random: np.random.Generator, labels: list[str], end_s: float = 60.0
) -> tuple[np.ndarray, list[str]]:
    cuts = np.unique(np.round(random.uniform(0.5, end_s - 0.5, 12), 2))
    edges = np.concatenate([[0.0], cuts, [end_s]])
    return np.stack([edges[:-1], edges[1:]], axis=1), random.choice(labels, len(edges) - 1).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_beats_are_mir_evals(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference = np.arange(0.3, 60, 0.5)
    estimated = np.sort(reference + random.normal(0, 0.05, len(reference)))
    found = score_beats(reference, reference[::4], estimated, estimated[1::4])
    trim = mir_eval.beat.trim_beats
    assert found["beat_f"] == mir_eval.beat.f_measure(trim(reference), trim(estimated))
    assert found["downbeat_f"] == mir_eval.beat.f_measure(trim(reference[::4]), trim(estimated[1::4]))
    assert 0 < found["beat_f"] < 1


def test_beats_by_hand() -> None:
    reference = np.array([1.0, 6.0, 7.0, 8.0, 9.0])
    # 1 s is trimmed; 6 hits at 69 ms, 7 misses at 71 ms, 8 is missing, 9 hits, 20 is too many.
    found = score_beats(reference, reference[:1], np.array([6.069, 7.071, 9.0, 20.0]), np.array([6.0]))
    assert found["beat_f"] == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))
    assert math.isnan(found["downbeat_f"])
    assert score_beats(reference, reference[1:], np.array([]), np.array([])) == {"beat_f": 0.0, "downbeat_f": 0.0}


@pytest.mark.parametrize("seed", SEEDS)
def test_chords_are_mir_evals(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference_s, reference = draw_intervals(random, CHORDS)
    estimated_s, estimated = draw_intervals(random, ["C:maj", "A:min", "F#:maj", "N", "Eb:min"], 55.0)
    found = score_chords(reference_s, reference, estimated_s, estimated)
    wanted = mir_eval.chord.evaluate(reference_s, reference, estimated_s, estimated)
    assert found == {"root": wanted["root"], "majmin": wanted["majmin"]}


def test_chords_by_hand() -> None:
    spans = np.array([[0.0, 1.0], [1.0, 4.0]])
    found = score_chords(spans, ["C:maj", "A:min"], np.array([[0.0, 4.0]]), ["A:maj"])
    assert found == {"root": 0.75, "majmin": 0.0}
    assert math.isnan(score_chords(spans, ["C:sus4", "X"], spans, ["C:maj", "N"])["majmin"])


@pytest.mark.parametrize("seed", SEEDS)
def test_sections_are_mir_evals(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference_s, reference = draw_intervals(random, ["verse", "chorus", "bridge"])
    estimated_s, estimated = draw_intervals(random, ["A", "B"])
    found = score_sections(reference_s, reference, estimated_s, estimated)
    detection = mir_eval.segment.detection(reference_s, estimated_s, window=0.5, trim=True)
    pairwise = mir_eval.segment.pairwise(reference_s, reference, estimated_s, estimated)
    assert found == {"hit_rate_f": detection[2], "frame_pair_f": pairwise[2]}


def test_sections_by_hand() -> None:
    reference_s = np.array([[0.0, 10.0], [10.0, 20.0], [20.0, 30.0]])
    estimated_s = np.array([[0.0, 10.4], [10.4, 20.6], [20.6, 30.0]])
    found = score_sections(reference_s, ["a", "b", "a"], estimated_s, ["x", "y", "x"])
    assert found["hit_rate_f"] == 0.5
    assert score_sections(reference_s, ["a", "b", "a"], reference_s, ["x", "y", "x"])["frame_pair_f"] == 1.0
    assert math.isnan(score_sections(reference_s[:1], ["a"], reference_s, ["x", "y", "x"])["hit_rate_f"])


@pytest.mark.parametrize(
    ("estimated", "wanted"),
    [("C major", 1.0), ("G major", 0.5), ("A minor", 0.3), ("C minor", 0.2), ("F# major", 0.0)],
)
def test_keys_by_hand(estimated: str, wanted: float) -> None:
    assert score_key("C major", estimated) == {"weighted_score": wanted}
    assert wanted == mir_eval.key.weighted_score("C major", estimated)


@pytest.mark.parametrize("seed", SEEDS)
def test_tagging_and_regression_are_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.random((40, 6)) < 0.3
    targets[:2] = [[True] * 6, [False] * 6]
    scores = random.random((40, 6)) + targets * 0.3
    assert measure_tagging(targets, scores) == {
        "map": sklearn.metrics.average_precision_score(targets, scores, average="macro"),
        "roc_auc": sklearn.metrics.roc_auc_score(targets, scores, average="macro"),
    }
    numbers = random.normal(size=40)
    assert measure_regression(numbers, numbers + 0.5)["r2"] == sklearn.metrics.r2_score(numbers, numbers + 0.5)


def test_tags_without_positives_or_negatives_are_left_out() -> None:
    targets = np.array([[True, False, True], [False, False, True]])
    scores = np.array([[0.9, 0.1, 0.2], [0.4, 0.3, 0.1]])
    assert measure_tagging(targets, scores) == {"map": 1.0, "roc_auc": 1.0}
    undefined = measure_tagging(targets[:, 1:], scores[:, 1:])
    assert all(math.isnan(value) for value in undefined.values())


def test_numbers_that_are_all_one_have_no_r2() -> None:
    assert math.isnan(measure_regression(np.ones(3), np.zeros(3))["r2"])


def test_intervals_are_those_of_the_mean() -> None:
    random = np.random.default_rng(0)
    scores = [{"x": float(value), "y": math.nan} for value in random.normal(3, 1, 400)]
    found = average_scores(scores)
    mean, error = np.mean([row["x"] for row in scores]), 1 / math.sqrt(400)
    assert found["x"].value == pytest.approx(mean)
    # The bootstrap of a mean of many is the normal interval.
    assert found["x"].low == pytest.approx(mean - 1.96 * error, abs=0.02)
    assert found["x"].high == pytest.approx(mean + 1.96 * error, abs=0.02)
    assert found["y"].as_row() == {"value": None, "low": None, "high": None}
    assert average_scores(scores)["x"] == found["x"]


def test_draws_where_a_figure_is_not_defined_are_left_out() -> None:
    def measure(rows: np.ndarray) -> dict[str, float]:
        return {"x": math.nan if len(set(rows.tolist())) < 3 else 2.0}

    assert bootstrap(measure, 3, num_resamples=50)["x"] == Estimate(2.0, 2.0, 2.0)
