"""What a head's answers are worth: measured on a split of labelled tracks, by the metrics of a probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.probing.annotations import TRACK_TASKS
from pipeline.probing.decoding import Prediction, decode
from pipeline.probing.evaluation import choose_thresholds, evaluate, predict_chance, score_track
from pipeline.probing.heads import HeadSpec
from pipeline.probing.metrics import Estimate, measure_regression, measure_tagging
from pipeline.training.labels import Labels

ANSWERED = ("valid", "test")
"""Splits that a run answers for at its end: the first one's answers set thresholds, the second one's count."""

SplitAnswers = dict[str, list[Tensor]]
"""A head's outputs for the tracks of each of ``ANSWERED``, as ``heads.apply_head`` returns them, scaled."""


def measure(labels: Labels, spec: HeadSpec, split: str, outputs: Sequence[Tensor]) -> dict[str, float]:
    """Return a task's figures without intervals.

    Args:
        labels: Of all tracks.
        spec: Of the head that answers.
        split: Of the tracks that it answers for.
        outputs: For each of them what ``heads.apply_head`` returns, scaled; a row is a frame, or the track.
    """
    said = labels.said_of(split)
    if labels.task not in TRACK_TASKS:
        spec = choose_thresholds(spec, [rows.numpy() for rows in outputs], said, labels.frame_rate_hz)
        scores = [
            score_track(labels.task, annotation, prediction.as_annotation(labels.names))
            for annotation, prediction in zip(said, predict(labels, spec, outputs), strict=True)
        ]
        return average_known(scores)
    targets = torch.cat(labels.targets([1] * len(outputs), split))
    answers = torch.cat(list(outputs))
    if labels.task == "classification":
        return {"accuracy": float((answers.argmax(dim=1) == targets).double().mean())}
    estimated, wanted = answers.double().numpy(), targets.double().numpy()
    if labels.task == "tagging":
        return measure_tagging(wanted > 0.5, estimated)
    return measure_regression(wanted[:, 0], estimated[:, 0])


def average_known(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the tracks that it is defined for; NaN where it is for none."""
    means = {}
    for name in scores[0] if scores else ():
        known = [score[name] for score in scores if not math.isnan(score[name])]
        means[name] = sum(known) / len(known) if known else math.nan
    return means


def predict(labels: Labels, spec: HeadSpec, outputs: Sequence[Tensor]) -> list[Prediction]:
    """Return what a head's outputs say of tracks.

    Args:
        labels: Of all tracks.
        spec: Of the head that answers.
        outputs: For each track what ``heads.apply_head`` returns, scaled.
    """
    mean, deviation = labels.scale()
    return [decode(spec, (rows * deviation + mean).numpy(), labels.frame_rate_hz) for rows in outputs]


def fit_decoding(labels: Labels, spec: HeadSpec, outputs: Sequence[Tensor]) -> HeadSpec:
    """Return a head's description with the thresholds of peaks that are best on the validation tracks.

    Args:
        labels: Of all tracks.
        spec: Of the head.
        outputs: For each validation track what ``heads.apply_head`` returns.
    """
    return choose_thresholds(
        spec, [rows.numpy() for rows in outputs], labels.said_of("valid"), labels.frame_rate_hz
    )


def measure_test(labels: Labels, spec: HeadSpec, outputs: Sequence[Tensor], seed: int) -> dict[str, Estimate]:
    """Return a task's figures on the test tracks, with intervals, as a probe returns them.

    Args:
        labels: Of all tracks.
        spec: Of the head that answers.
        outputs: For each test track what ``heads.apply_head`` returns, scaled.
        seed: Of the bootstrap.
    """
    return evaluate(labels.task, labels.names, labels.said_of("test"), predict(labels, spec, outputs), seed)


def measure_chance(labels: Labels, durations_s: Sequence[float], seed: int) -> dict[str, Estimate]:
    """Return the same of a listener who knows the training tracks' labels and has heard nothing.

    Args:
        labels: Of all tracks.
        durations_s: Of the test tracks.
        seed: Of the bootstrap.
    """
    guesses = predict_chance(labels.task, labels.names, labels.said_of("train"), durations_s)
    return evaluate(labels.task, labels.names, labels.said_of("test"), guesses, seed)
