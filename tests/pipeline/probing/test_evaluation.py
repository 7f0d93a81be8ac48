"""What is measured of predictions, and what chance answers; by mir_eval and scikit-learn called directly."""

import mir_eval
import numpy as np
import pytest
import sklearn.metrics

from pipeline.probing.annotations import Annotation, Span
from pipeline.probing.decoding import Prediction, decode, pick_peaks
from pipeline.probing.evaluation import choose_thresholds, evaluate, predict_chance
from pipeline.probing.heads import HeadSpec
from pipeline.probing.targets import BEAT_LABELS, CHORD_LABELS, KEY_LABELS, make_targets

RATE_HZ = 50.0


def test_classes_are_scikit_learns_accuracy() -> None:
    random = np.random.default_rng(0)
    labels = ("a", "b", "c, d")
    scores = random.random((30, 3))
    wanted = random.choice([*labels, "never heard of"], 30).tolist()
    found = evaluate(
        "classification",
        labels,
        [Annotation((own,)) for own in wanted],
        [Prediction(tuple(row)) for row in scores],
    )
    chosen = [labels[place] for place in scores.argmax(axis=1)]
    assert found["accuracy"].value == pytest.approx(sklearn.metrics.accuracy_score(wanted, chosen))
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high


def test_tags_and_numbers_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    labels = ("a", "b", "c")
    targets = random.random((30, 3)) < 0.4
    scores = random.random((30, 3))
    said = [Annotation(tuple(np.array(labels)[row])) for row in targets]
    found = evaluate("tagging", labels, said, [Prediction(tuple(row)) for row in scores])
    assert found["map"].value == sklearn.metrics.average_precision_score(targets, scores, average="macro")
    assert found["roc_auc"].value == sklearn.metrics.roc_auc_score(targets, scores, average="macro")
    numbers = random.normal(100, 20, 30)
    guesses = numbers + random.normal(0, 10, 30)
    found = evaluate(
        "regression",
        ("value",),
        [Annotation((repr(float(number)),)) for number in numbers],
        [Prediction((float(guess),)) for guess in guesses],
    )
    assert found["r2"].value == sklearn.metrics.r2_score(numbers, guesses)


def draw_beats(seed: int) -> tuple[tuple[float, int], ...]:
    random = np.random.default_rng(seed)
    return tuple(
        (float(time_s), place % 4 + 1) for place, time_s in enumerate(np.arange(random.random(), 20, 0.5))
    )


def test_perfect_outputs_get_full_marks() -> None:
    spans: tuple[Span, ...] = ((0.0, 8.0, "verse"), (8.0, 16.0, "chorus"), (16.0, 24.0, "verse"))
    chords: tuple[Span, ...] = ((0.0, 8.0, "C:maj7"), (8.0, 16.0, "A:min"), (16.0, 24.0, "N"))
    cases = {
        "beat": (BEAT_LABELS, Annotation(beats=draw_beats(0))),
        "chord": (CHORD_LABELS, Annotation(spans=chords)),
        "structure": (("chorus", "verse"), Annotation(spans=spans)),
        "key": (KEY_LABELS, Annotation(("D# minor",))),
    }
    for task, (labels, said) in cases.items():
        targets = make_targets(task, labels, said, round(24 * RATE_HZ), RATE_HZ).numpy()
        outputs = 20.0 * targets - 10.0 if task == "beat" else 20.0 * np.eye(len(labels))[targets]
        if task == "structure":
            novelty = np.isin(np.arange(len(outputs)), [round(8 * RATE_HZ), round(16 * RATE_HZ)])
            outputs = np.concatenate([novelty[:, None], outputs], axis=1)
        spec = HeadSpec(task, "linear", ("r",), "50hz", 4, labels)
        spec = choose_thresholds(spec, [outputs.astype(np.float32)], [said], RATE_HZ)
        found = evaluate(task, labels, [said], [decode(spec, outputs.astype(np.float32), RATE_HZ)])
        assert min(estimate.value for estimate in found.values()) > 0.98, task  # boundaries move by half a frame


def test_annotations_of_many_tracks_are_averaged_as_mir_eval_scores_each() -> None:
    said = [Annotation(beats=draw_beats(seed)) for seed in range(4)]
    heard = [
        Prediction(beats=tuple((time_s + 0.1 * (place == 2), place) for time_s, place in own.beats))
        for own in said
    ]
    found = evaluate("beat", BEAT_LABELS, said, heard)
    scores = []
    for own, other in zip(said, heard, strict=True):
        pair = [mir_eval.beat.trim_beats(np.array([beat[0] for beat in side.beats])) for side in (own, other)]
        scores.append(mir_eval.beat.f_measure(*pair))
    assert found["beat_f"].value == pytest.approx(np.mean(scores))
    assert 0.7 < found["beat_f"].value < 0.8
    assert found["downbeat_f"].value == 1.0


def test_chance_answers_what_it_says() -> None:
    train = [Annotation(("a", "b")), Annotation(("a",)), Annotation(())]
    assert predict_chance("tagging", ("a", "b"), train, [1.0])[0].scores == pytest.approx((2 / 3, 1 / 3))
    train = [Annotation((label,)) for label in ("x", "y", "y")]
    assert predict_chance("classification", ("x", "y"), train, [1.0])[0].as_annotation(("x", "y")).labels == ("y",)
    train = [Annotation(("1",)), Annotation(("2",))]
    assert predict_chance("regression", ("value",), train, [1.0])[0].scores == (1.5,)
    beats = tuple((0.5 * number, number % 3 + 1) for number in range(9))
    [ticks] = predict_chance("beat", BEAT_LABELS, [Annotation(beats=beats)], [2.2])
    assert ticks.beats == ((0.0, 1), (0.5, 0), (1.0, 0), (1.5, 1), (2.0, 0))
    spans = ((0.0, 4.0, "A"), (4.0, 14.0, "B"), (14.0, 24.0, "B"))
    [even] = predict_chance("structure", ("A", "B"), [Annotation(spans=spans)], [24.0])
    assert even.spans == ((0.0, 10.0, "B"), (10.0, 24.0, "B"))
    chords = ((0.0, 4.0, "A:min7"), (4.0, 6.0, "C"), (6.0, 12.0, "C:sus4"))
    [same] = predict_chance("chord", CHORD_LABELS, [Annotation(spans=chords)], [9.0])
    assert same.spans == ((0.0, 9.0, "A:min"),)


def test_peaks_are_high_and_apart() -> None:
    activation = np.array([0.9, 0.1, 0.2, 0.8, 0.7, 0.1, 0.3, 0.1, 0.6])
    assert pick_peaks(activation, 10.0, 0.1, 0.25).tolist() == [0, 3, 6, 8]
    assert pick_peaks(activation, 10.0, 0.3, 0.25).tolist() == [0, 3, 8]
    assert pick_peaks(activation, 10.0, 0.1, 0.7).tolist() == [0, 3]
    assert pick_peaks(activation[:0], 10.0, 0.1, 0.7).tolist() == []
