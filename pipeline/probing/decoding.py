"""Decoding: what a head's outputs say of a track, as scores, spans of time, or beats.

Peaks are picked by their height and distance alone. A beat's time is the middle of its frame; sections begin
where a frame does, at the peaks of novelty.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import find_peaks
from scipy.special import expit, log_softmax, softmax

from pipeline.probing.annotations import Annotation, Span
from pipeline.probing.heads import HeadSpec
from pipeline.probing.novelty import NOVELTY_S

Floats = npt.NDArray[np.float64]

PEAK_PICKER = "local maxima over a threshold chosen on the validation tracks"
BOUNDARY_PICKER = (
    f"{PEAK_PICKER}, of novelty, which is not trained: how the features' next {NOVELTY_S:g} s differ from the last"
)
BEAT_DISTANCE_S = 0.2  # 300 beats a minute
DOWNBEAT_DISTANCE_S = 0.5
BOUNDARY_DISTANCE_S = 6.0
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 15))
NOVELTY_THRESHOLDS = tuple(round(0.2 * step, 1) for step in range(10))  # standard deviations over a track's mean
DEFAULT_THRESHOLD = 0.3


@dataclass(frozen=True)
class Prediction:
    """What a head says of one track.

    Args:
        scores: Of each of the head's labels for the whole track: probabilities, or the number itself; else empty.
        spans: Chords or sections, in order.
        span_scores: The mean probability of each span's label.
        beats: Time in seconds and place (1 for a downbeat, else 0) of each beat, in order.
        beat_scores: Activation of each beat.
    """

    scores: tuple[float, ...] = ()
    spans: tuple[Span, ...] = ()
    span_scores: tuple[float, ...] = ()
    beats: tuple[tuple[float, int], ...] = ()
    beat_scores: tuple[float, ...] = ()

    def as_annotation(self, labels: Sequence[str]) -> Annotation:
        """Return it as if a person had said it; of several labels the likeliest."""
        best = (labels[int(np.argmax(self.scores))],) if self.scores and labels else ()
        return Annotation(best, self.spans, self.beats)


def decode(spec: HeadSpec, outputs: npt.NDArray[np.float32], frame_rate_hz: float | None) -> Prediction:
    """Turn a head's outputs for one track into a prediction.

    Args:
        spec: The head's.
        outputs: From ``heads.apply_head``: before any sigmoid or softmax; of sections, novelty comes first.
        frame_rate_hz: Of the frames; None where the track is one row.
    """
    values = outputs.astype(np.float64)
    if spec.task == "regression":
        return Prediction(tuple(values.mean(axis=0).tolist()))
    if spec.task == "tagging":
        return Prediction(tuple(expit(values).mean(axis=0).tolist()))
    if spec.task in ("classification", "key"):
        # The frames of a track agree on one label: their logarithms are averaged, as for independent witnesses.
        return Prediction(tuple(softmax(log_softmax(values, axis=-1).mean(axis=0)).tolist()))
    assert frame_rate_hz is not None
    if spec.task == "beat":
        return _decode_beats(expit(values), frame_rate_hz, spec.decoding)
    if spec.task == "structure":
        return _decode_sections(values, spec.labels, frame_rate_hz, spec.decoding)
    return _decode_chords(values, spec.labels, frame_rate_hz)


def pick_peaks(
    activation: Floats, frame_rate_hz: float, distance_s: float, threshold: float
) -> npt.NDArray[np.int64]:
    """Return the frames of local maxima that are at least so high and so far apart; of nearer ones the higher.

    Args:
        activation: Shape (num_frames,).
        frame_rate_hz: Of the frames.
        distance_s: Between two peaks.
        threshold: Least height.
    """
    padded = np.concatenate([[-1.0], activation, [-1.0]])  # the first and the last frame may be peaks
    peaks, _ = find_peaks(padded, height=threshold, distance=max(1, round(distance_s * frame_rate_hz)))
    return np.asarray(peaks - 1, np.int64)


def _decode_beats(activations: Floats, rate_hz: float, decoding: Mapping[str, float]) -> Prediction:
    beat, downbeat = activations.T
    threshold = decoding.get("threshold", DEFAULT_THRESHOLD)
    frames = pick_peaks(np.maximum(beat, downbeat), rate_hz, BEAT_DISTANCE_S, threshold)
    downbeats = pick_peaks(
        downbeat, rate_hz, DOWNBEAT_DISTANCE_S, decoding.get("downbeat_threshold", DEFAULT_THRESHOLD)
    )
    reach = max(1, round(0.07 * rate_hz))
    is_down = [bool(len(downbeats)) and int(np.abs(downbeats - frame).min()) <= reach for frame in frames]
    times_s = ((frames + 0.5) / rate_hz).tolist()
    return Prediction(
        beats=tuple((round(time_s, 4), int(down)) for time_s, down in zip(times_s, is_down, strict=True)),
        beat_scores=tuple(float(max(beat[frame], downbeat[frame])) for frame in frames),
    )


def _decode_sections(
    values: Floats, labels: Sequence[str], rate_hz: float, decoding: Mapping[str, float]
) -> Prediction:
    threshold = decoding.get("threshold", DEFAULT_THRESHOLD)
    novelty, least = values[:, 0].copy(), max(1, round(BOUNDARY_DISTANCE_S / 2 * rate_hz))
    novelty[:least] = novelty[len(values) - least + 1 :] = -np.inf  # the track's ends are boundaries themselves
    edges = pick_peaks(novelty, rate_hz, BOUNDARY_DISTANCE_S, threshold)
    likely = log_softmax(values[:, 1:], axis=-1)
    frames = [0, *edges.tolist(), len(values)]
    spans, scores = [], []
    for first, stop in itertools.pairwise(frames):
        mean = softmax(likely[first:stop].mean(axis=0))
        # Novelty is that of the moment at which a frame begins.
        spans.append((round(first / rate_hz, 4), round(stop / rate_hz, 4), labels[int(mean.argmax())]))
        scores.append(float(mean.max()))
    return Prediction(spans=tuple(spans), span_scores=tuple(scores))


def _decode_chords(values: Floats, labels: Sequence[str], rate_hz: float) -> Prediction:
    likely = softmax(values, axis=-1)
    best = likely.argmax(axis=1)
    starts = np.flatnonzero(np.append(True, best[1:] != best[:-1]))
    stops = np.append(starts[1:], len(best))
    spans = [
        (round(first / rate_hz, 4), round(stop / rate_hz, 4), labels[int(best[first])])
        for first, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    scores = [float(likely[first:stop, best[first]].mean()) for first, stop in zip(starts, stops, strict=True)]
    return Prediction(spans=tuple(spans), span_scores=tuple(scores))
