"""Evaluation: a head's predictions, and those of whoever has not listened, against annotations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.probing.annotations import Annotation, Span, choose_main_label, fill_spans
from pipeline.probing.decoding import NOVELTY_THRESHOLDS, THRESHOLDS, Prediction, decode
from pipeline.probing.heads import HeadSpec
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
from pipeline.probing.targets import CHORD_LABELS, simplify_chord

NUM_SLOW_RESAMPLES = 200  # where scikit-learn looks at all tracks anew in each
CHANCE: dict[str, str] = {
    "beat": "a metronome at the training tracks' median beat, downbeats every so many as is most frequent there",
    "chord": "the training tracks' most frequent chord throughout",
    "structure": "sections of the training tracks' median length, all with the label that is most frequent there",
    "key": "the training tracks' most frequent key",
    "tagging": "each tag's share of the training tracks",
    "classification": "the training tracks' most frequent class",
    "regression": "the mean of the training tracks",
}
"""What the baseline ``chance`` answers, whatever the track."""

Durations = Sequence[float]


def evaluate(
    task: str,
    labels: Sequence[str],
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measure predictions of tracks against what people say of them.

    Args:
        task: Name of a task.
        labels: Of the head.
        annotations: Of the tracks.
        predictions: Of the same.
        seed: Of the bootstrap.
    """
    num_tracks = len(annotations)
    if task == "tagging":
        targets = np.array(
            [[label in annotation.labels for label in labels] for annotation in annotations], np.bool_
        )
        scores = np.array([prediction.scores for prediction in predictions])
        return bootstrap(
            lambda rows: measure_tagging(targets[rows], scores[rows]), num_tracks, seed, NUM_SLOW_RESAMPLES
        )
    if task == "regression":
        numbers = np.array([annotation.number for annotation in annotations])
        estimated = np.array([prediction.scores[0] for prediction in predictions])
        return bootstrap(
            lambda rows: measure_regression(numbers[rows], estimated[rows]), num_tracks, seed, NUM_SLOW_RESAMPLES
        )
    if task == "classification":
        chosen = [prediction.as_annotation(labels).labels[0] for prediction in predictions]
        # scikit-learn's accuracy_score is the mean of these; asked for every draw it would take seconds.
        hits = [
            float(annotation.labels[0] == label) for annotation, label in zip(annotations, chosen, strict=True)
        ]
        return average_scores([{"accuracy": hit} for hit in hits], seed)
    rows = [
        score_track(task, annotation, prediction.as_annotation(labels))
        for annotation, prediction in zip(annotations, predictions, strict=True)
    ]
    return average_scores(rows, seed)


def score_track(task: str, reference: Annotation, estimate: Annotation) -> dict[str, float]:
    """Score one track of a task that has scores of single tracks: beats, chords, sections, keys."""
    if task == "beat":
        both = [_list_times(said, only_down) for said in (reference, estimate) for only_down in (False, True)]
        return score_beats(*both)
    if task == "key":
        return score_key(choose_main_label(reference) or "X", choose_main_label(estimate) or "X")
    # Where nobody said anything mir_eval counts nothing (X), or one more section.
    filled = fill_spans(reference.spans, "X" if task == "chord" else "")
    score = score_chords if task == "chord" else score_sections
    return score(*_as_arrays(filled), *_as_arrays(estimate.spans))


def choose_thresholds(
    spec: HeadSpec,
    outputs: Sequence[npt.NDArray[np.float32]],
    annotations: Sequence[Annotation],
    frame_rate_hz: float | None,
) -> HeadSpec:
    """Return a head's description with the thresholds of peaks that are best on some tracks.

    Args:
        spec: The head's.
        outputs: For each of the validation tracks.
        annotations: Of the same.
        frame_rate_hz: Of the outputs.
    """
    metrics = {
        "beat": {"threshold": "beat_f", "downbeat_threshold": "downbeat_f"},
        "structure": {"threshold": "hit_rate_f"},
    }
    for name, metric in metrics.get(spec.task, {}).items():
        best = -1.0
        chosen = spec
        for threshold in NOVELTY_THRESHOLDS if spec.task == "structure" else THRESHOLDS:
            tried = replace(spec, decoding={**spec.decoding, name: threshold})
            scores = [
                score_track(spec.task, annotation, decode(tried, values, frame_rate_hz).as_annotation(()))[metric]
                for annotation, values in zip(annotations, outputs, strict=True)
            ]
            known = [score for score in scores if not np.isnan(score)]
            if known and np.mean(known) > best:
                best, chosen = float(np.mean(known)), tried
        spec = chosen
    return spec


def predict_chance(
    task: str, labels: Sequence[str], train: Sequence[Annotation], durations_s: Durations
) -> list[Prediction]:
    """Return what is said of tracks by who has seen the training tracks' annotations and heard nothing.

    Args:
        task: Name of a task; ``CHANCE`` says what is answered.
        labels: Of the head.
        train: Annotations of the training tracks.
        durations_s: Of the tracks that are asked about.
    """
    if task == "regression":
        return [Prediction((float(np.mean([annotation.number for annotation in train])),))] * len(durations_s)
    if task == "tagging":
        shares = tuple(float(np.mean([label in annotation.labels for annotation in train])) for label in labels)
        return [Prediction(shares)] * len(durations_s)
    if task in ("classification", "key"):
        named = [choose_main_label(annotation) for annotation in train]
        shares = tuple(named.count(label) / len(named) for label in labels)
        return [Prediction(shares)] * len(durations_s)
    if task == "beat":
        return _tick(train, durations_s)
    lasting: Counter[str] = Counter()
    for annotation in train:
        for start_s, end_s, label in annotation.spans:
            name = simplify_chord(label) if task == "chord" else label
            if name is not None:
                lasting[name] += end_s - start_s  # type: ignore[assignment]
    label = max(sorted(lasting), key=lambda name: lasting[name]) if lasting else CHORD_LABELS[0]
    if task == "chord":
        return [Prediction(spans=((0.0, end_s, label),), span_scores=(1.0,)) for end_s in durations_s]
    length_s = float(
        np.median([end_s - start_s for annotation in train for start_s, end_s, _ in annotation.spans])
    )
    return [_cut_evenly(end_s, length_s, label) for end_s in durations_s]


def _cut_evenly(duration_s: float, length_s: float, label: str) -> Prediction:
    edges = [*np.arange(0.0, max(duration_s - 0.5 * length_s, length_s / 2), length_s).tolist(), duration_s]
    spans: list[Span] = [(first, last, label) for first, last in itertools.pairwise(edges)]
    return Prediction(spans=tuple(spans), span_scores=(1.0,) * len(spans))


def _tick(train: Sequence[Annotation], durations_s: Durations) -> list[Prediction]:
    gaps_s = np.concatenate([np.diff([time_s for time_s, _ in annotation.beats]) for annotation in train])
    gap_s = float(np.median(gaps_s[gaps_s > 0])) if (gaps_s > 0).any() else 0.5
    bars: Counter[int] = Counter()
    for annotation in train:
        places = [place for place, (_, number) in enumerate(annotation.beats) if number == 1]
        bars.update(np.diff(places).tolist())
    bar = max(sorted(bars), key=lambda length: bars[length]) if bars else 4
    result = []
    for duration_s in durations_s:
        times_s = np.arange(0.0, duration_s, gap_s).tolist()
        beats = tuple((time_s, int(number % bar == 0)) for number, time_s in enumerate(times_s))
        result.append(Prediction(beats=beats, beat_scores=(1.0,) * len(beats)))
    return result


def _list_times(annotation: Annotation, only_down: bool) -> npt.NDArray[np.float64]:
    return np.array([time_s for time_s, place in annotation.beats if place == 1 or not only_down], np.float64)


def _as_arrays(spans: Sequence[Span]) -> tuple[npt.NDArray[np.float64], list[str]]:
    times_s = np.array([span[:2] for span in spans], np.float64).reshape(-1, 2)
    return times_s, [label for _, _, label in spans]
