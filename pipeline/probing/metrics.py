"""Metrics: the field's own, by the field's own libraries (mir_eval, scikit-learn), with intervals over tracks.

Tracks are what is drawn from the music of the world, so the bootstrap draws tracks, never frames. Where a metric
is not defined (a tag that no test track has, a reference without beats) it is NaN and left out of the mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mir_eval.beat
import mir_eval.chord
import mir_eval.key
import mir_eval.segment
import mir_eval.util
import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

Floats = npt.NDArray[np.float64]

BEAT_TOLERANCE_S = 0.07
TRIM_BEATS_S = 5.0  # beats before this time are left out on both sides, as mir_eval does by default
BOUNDARY_WINDOW_S = 0.5
TRIM_BOUNDARIES = True  # the first and the last boundary, which are the track's own ends, are not counted
PAIR_FRAME_S = 0.1
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95

PROTOCOLS: dict[str, str] = {
    "beat": f"mir_eval.beat.f_measure at ±{BEAT_TOLERANCE_S * 1000:g} ms, trim_beats {TRIM_BEATS_S:g} s, "
    "mean over tracks",
    "chord": "mir_eval.chord root and majmin, accuracy weighted by duration, mean over tracks",
    "structure": f"mir_eval.segment.detection at {BOUNDARY_WINDOW_S:g} s, trim={TRIM_BOUNDARIES}, and "
    f"mir_eval.segment.pairwise at {PAIR_FRAME_S:g} s, mean over tracks",
    "key": "mir_eval.key.weighted_score, mean over tracks",
    "tagging": "scikit-learn average_precision_score and roc_auc_score, macro over the tags that are defined",
    "classification": "accuracy as scikit-learn's accuracy_score",
    "regression": "scikit-learn r2_score",
}
"""What each task's figures are, as the result states it."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval (bootstrap over tracks, percentiles, 95 %); NaN where it is not defined."""

    value: float
    low: float
    high: float

    def as_row(self) -> dict[str, float | None]:
        """Return it for JSON, which has no NaN."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(figure) else round(figure, 6) for name, figure in figures.items()}


def score_beats(
    reference_s: Floats, reference_downbeats_s: Floats, beats_s: Floats, downbeats_s: Floats
) -> dict[str, float]:
    """Score a track's beats and downbeats.

    Args:
        reference_s: Annotated times of all beats, sorted.
        reference_downbeats_s: Those of the downbeats.
        beats_s: Estimated times, sorted.
        downbeats_s: The same of the downbeats.

    Returns:
        ``beat_f`` and ``downbeat_f``.
    """
    return {
        "beat_f": _score_times(reference_s, beats_s),
        "downbeat_f": _score_times(reference_downbeats_s, downbeats_s),
    }


def _score_times(reference_s: Floats, estimated_s: Floats) -> float:
    reference_s, estimated_s = (
        mir_eval.beat.trim_beats(np.asarray(times, np.float64), TRIM_BEATS_S)
        for times in (reference_s, estimated_s)
    )
    if not len(reference_s):
        return math.nan
    with _without_warnings():
        return float(mir_eval.beat.f_measure(reference_s, estimated_s, BEAT_TOLERANCE_S))


def score_chords(
    reference_s: Floats, reference: Sequence[str], estimated_s: Floats, estimated: Sequence[str]
) -> dict[str, float]:
    """Score a track's chords.

    Args:
        reference_s: Start and end of each annotated chord, shape (num_chords, 2).
        reference: Their labels, in Harte's syntax.
        estimated_s: The same of the estimate.
        estimated: The same.

    Returns:
        ``root`` and ``majmin``, weighted by duration; NaN where no chord of the reference is in the vocabulary.
    """
    fitted_s, fitted = _fit(estimated_s, estimated, reference_s, mir_eval.chord.NO_CHORD)
    spans, reference, fitted = mir_eval.util.merge_labeled_intervals(
        reference_s, list(reference), fitted_s, fitted
    )
    durations_s = mir_eval.util.intervals_to_durations(spans)
    scores = {}
    for name, compare in (("root", mir_eval.chord.root), ("majmin", mir_eval.chord.majmin)):
        comparisons = compare(reference, fitted)
        is_defined = bool((durations_s[comparisons >= 0]).sum() > 0)
        scores[name] = (
            float(mir_eval.chord.weighted_accuracy(comparisons, durations_s)) if is_defined else math.nan
        )
    return scores


def score_sections(
    reference_s: Floats, reference: Sequence[str], estimated_s: Floats, estimated: Sequence[str]
) -> dict[str, float]:
    """Score a track's sections.

    Args:
        reference_s: Start and end of each annotated section, shape (num_sections, 2), one after the other.
        reference: Their labels.
        estimated_s: The same of the estimate.
        estimated: The same.

    Returns:
        ``hit_rate_f`` of the boundaries (NaN where trimming leaves the reference none) and ``frame_pair_f``.
    """
    fitted_s, fitted = _fit(estimated_s, estimated, reference_s, "")
    start_s = float(reference_s.min())
    # pairwise wants both to begin at 0; a shift of both moves nothing.
    reference_s, fitted_s = reference_s - start_s, fitted_s - start_s
    with _without_warnings():
        *_, hit_rate = mir_eval.segment.detection(
            reference_s, fitted_s, window=BOUNDARY_WINDOW_S, trim=TRIM_BOUNDARIES
        )
        *_, pair = mir_eval.segment.pairwise(
            reference_s, list(reference), fitted_s, fitted, frame_size=PAIR_FRAME_S
        )
    has_inner = len(reference_s) > 1 or not TRIM_BOUNDARIES
    return {"hit_rate_f": float(hit_rate) if has_inner else math.nan, "frame_pair_f": float(pair)}


def _fit(
    estimated_s: Floats, estimated: Sequence[str], reference_s: Floats, filler: str
) -> tuple[Floats, list[str]]:
    """Cut or fill up an estimate so that it spans what the reference spans."""
    start_s, end_s = float(reference_s.min()), float(reference_s.max())
    estimated_s = np.asarray(estimated_s, np.float64).reshape(-1, 2)
    # mir_eval's own cutting leaves an empty interval where one begins just at the end.
    is_inside = (estimated_s[:, 0] < end_s) & (estimated_s[:, 1] > start_s)
    labels = [label for label, inside in zip(estimated, is_inside, strict=True) if inside]
    if not labels:
        return np.array([[start_s, end_s]]), [filler]
    fitted_s, fitted = mir_eval.util.adjust_intervals(
        estimated_s[is_inside], labels, start_s, end_s, filler, filler
    )
    return fitted_s, list(fitted)


def score_key(reference: str, estimated: str) -> dict[str, float]:
    """Score a track's key, as ``C# minor``: ``weighted_score``."""
    return {"weighted_score": float(mir_eval.key.weighted_score(reference, estimated))}


def measure_tagging(targets: npt.NDArray[np.bool_], scores: Floats) -> dict[str, float]:
    """Measure tags over tracks.

    Args:
        targets: Which tracks have which tags, shape (num_tracks, num_tags).
        scores: The estimate, any scale, the same shape.

    Returns:
        ``map`` and ``roc_auc``, means over the tags that some of the tracks have and some have not.
    """
    defined = targets.any(axis=0) & ~targets.all(axis=0)
    if not defined.any():
        return {"map": math.nan, "roc_auc": math.nan}
    targets, scores = targets[:, defined], scores[:, defined]
    return {
        "map": float(average_precision_score(targets, scores, average="macro")),
        "roc_auc": float(roc_auc_score(targets, scores, average="macro")),
    }


def measure_regression(targets: Floats, estimated: Floats) -> dict[str, float]:
    """Measure numbers over tracks: ``r2``, NaN where they are all one."""
    if len(targets) < 2 or np.ptp(targets) == 0:
        return {"r2": math.nan}
    return {"r2": float(r2_score(targets, estimated))}


def average_scores(scores: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, Estimate]:
    """Return the mean over tracks of each of their scores, with its interval.

    Args:
        scores: Of each track, the same metrics; NaN where not defined.
        seed: Of the bootstrap.
    """
    means: dict[str, Estimate] = {}
    for name in scores[0] if scores else ():
        values = np.array([row[name] for row in scores], np.float64)
        values = values[~np.isnan(values)]

        def measure(rows: npt.NDArray[np.int64], name: str = name, values: Floats = values) -> dict[str, float]:
            return {name: float(values[rows].mean())}

        means |= bootstrap(measure, len(values), seed) if len(values) else {name: Estimate(*[math.nan] * 3)}
    return means


def bootstrap(
    measure: Callable[[npt.NDArray[np.int64]], Mapping[str, float]],
    num_tracks: int,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Estimate]:
    """Measure tracks, and how far the figures move when other tracks might have been drawn.

    Args:
        measure: Takes the numbers of tracks, some of them perhaps several times; returns figures.
        num_tracks: How many there are.
        seed: Of the draws.
        num_resamples: How many draws.

    Returns:
        Each figure over all tracks once, with the 2.5th and 97.5th percentile over the draws.
    """
    random = np.random.default_rng(seed)
    values = measure(np.arange(num_tracks))
    draws = [measure(random.integers(0, num_tracks, num_tracks)) for _ in range(num_resamples)]
    tail = 100 * (1 - CONFIDENCE) / 2
    estimates = {}
    for name, value in values.items():
        drawn = np.array([draw[name] for draw in draws])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [tail, 100 - tail]) if len(drawn) else (math.nan, math.nan)
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep mir_eval from warning of a track without estimates: its score says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
