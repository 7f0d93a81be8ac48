"""Targets: what a head's outputs are to be for an annotated track, and how far off they are.

A frame covers a span of time, so an event belongs to the frame that its time falls into; the frames beside it are
wanted half as much, for annotations are no more exact than that (±20 ms at 50 Hz).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import mir_eval.chord
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.probing.annotations import PITCHES, Annotation, choose_main_label

CHORD_LABELS = ("N", *(f"{pitch}:{mode}" for mode in ("maj", "min") for pitch in PITCHES))
KEY_LABELS = tuple(f"{pitch} {mode}" for mode in ("major", "minor") for pitch in PITCHES)
BEAT_LABELS = ("beat", "downbeat")
NUMBER_LABELS = ("value",)
NOT_COUNTED = -1  # frames that nobody has said anything usable about
BESIDE = 0.5

_MAJOR, _MINOR = (mir_eval.chord.encode(f"C:{mode}")[1] for mode in ("maj", "min"))


def choose_labels(task: str, annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """Return what a head's outputs stand for, one an output.

    Args:
        task: Name of a task.
        annotations: Of the tracks that it is trained on.
    """
    fixed = {"beat": BEAT_LABELS, "chord": CHORD_LABELS, "key": KEY_LABELS, "regression": NUMBER_LABELS}
    if task in fixed:
        return fixed[task]
    if task == "structure":
        return tuple(sorted({label for annotation in annotations for _, _, label in annotation.spans}))
    return tuple(sorted({label for annotation in annotations for label in annotation.labels}))


def make_targets(
    task: str, labels: Sequence[str], annotation: Annotation, num_frames: int, frame_rate_hz: float | None
) -> Tensor:
    """Return what a head's outputs are to be for one track.

    Args:
        task: Name of a task.
        labels: From ``choose_labels``.
        annotation: Of the track.
        num_frames: Of its features.
        frame_rate_hz: Of its features; None where the track is one row.

    Returns:
        float32 or int64, a row a frame: for tags, beats and numbers (num_frames, num_labels); for classes, keys,
        chords and sections (num_frames,), the number of a label or ``NOT_COUNTED``.
    """
    number = {label: place for place, label in enumerate(labels)}
    if task == "tagging":
        row = torch.zeros(len(labels))
        row[[number[label] for label in annotation.labels if label in number]] = 1.0
        return row.expand(num_frames, -1)
    if task == "regression":
        return torch.full((num_frames, 1), annotation.number)
    if task == "classification":
        return torch.full((num_frames,), number.get(annotation.labels[0], NOT_COUNTED))
    if task == "beat":
        downbeats_s = [time_s for time_s, place in annotation.beats if place == 1]
        columns = ([time_s for time_s, _ in annotation.beats], downbeats_s)
        return torch.stack([_mark(times_s, num_frames, _rate(frame_rate_hz)) for times_s in columns], dim=1)
    if task == "key" and (annotation.labels or frame_rate_hz is None):
        return torch.full((num_frames,), number.get(choose_main_label(annotation) or "", NOT_COUNTED))
    places = torch.full((num_frames,), NOT_COUNTED)
    rate_hz = _rate(frame_rate_hz)
    for start_s, end_s, label in annotation.spans:
        name = simplify_chord(label) if task == "chord" else label
        places[round(start_s * rate_hz) : round(end_s * rate_hz)] = number.get(name or "", NOT_COUNTED)
    return places


def compute_loss(task: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how far a head's outputs are from what they are to be: the mean over rows that count.

    Args:
        task: Name of a task.
        outputs: float32 of shape (num_rows, num_labels).
        targets: From ``make_targets``, as many rows.
    """
    if task in ("tagging", "beat"):
        return F.binary_cross_entropy_with_logits(outputs, targets)
    if task == "regression":
        return F.mse_loss(outputs, targets)
    return _cross_entropy(outputs, targets)


def simplify_chord(label: str) -> str | None:
    """Return the chord of ``CHORD_LABELS`` that mir_eval's majmin takes a chord for; None where it counts none."""
    root, semitones, _ = mir_eval.chord.encode(label)
    if root < 0:
        return "N" if label == "N" else None
    # As mir_eval.chord.majmin compares: by the semitones up to the fifth.
    for mode, triad in (("maj", _MAJOR), ("min", _MINOR)):
        if np.array_equal(semitones[:8], triad[:8]):
            return f"{PITCHES[root]}:{mode}"
    return None


def _cross_entropy(outputs: Tensor, numbers: Tensor) -> Tensor:
    counted = numbers >= 0
    if not counted.any():
        return outputs.sum() * 0.0
    return F.cross_entropy(outputs[counted], numbers[counted])


def _mark(times_s: Sequence[float], num_frames: int, rate_hz: float) -> Tensor:
    """Return float32 of shape (num_frames,): 1 in the frames of events, less in those beside them."""
    marks = torch.zeros(num_frames)
    frames = [math.floor(time_s * rate_hz) for time_s in times_s]
    for offset, worth in ((1, BESIDE), (0, 1.0)):
        for frame in frames:
            for near in {frame - offset, frame + offset}:
                if 0 <= near < num_frames:
                    marks[near] = worth
    return marks


def _rate(frame_rate_hz: float | None) -> float:
    assert frame_rate_hz is not None, "features of whole tracks have no frames to say it of"
    return frame_rate_hz
