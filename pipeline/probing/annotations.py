"""Annotations: what people say of tracks, in one form whatever file it came from.

What cannot be used is told, never dropped in silence: ``Annotations.left_out`` says what, and why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mir_eval.chord

TRACK_TASKS = ("tagging", "classification", "regression")
SPAN_TASKS = ("chord", "structure")
FRAME_TASKS = ("beat", *SPAN_TASKS)  # what they ask about has a time
TASK_RESOLUTIONS = {
    "beat": "50hz",
    "chord": "16hz",
    "structure": "8hz",
    "key": "0.5hz",
    "tagging": "global",
    "classification": "global",
    "regression": "global",
}
"""Each task and the resolution of its features, the paper's (``config.RESOLUTIONS``)."""

PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
NO_LABEL = ("", "nan")  # in any case: what a table has where there is nothing
_KEY = re.compile(r"([A-Ga-g])\s*([#b♯♭]?)[\s:_-]*(major|maj|minor|min|m|)", re.IGNORECASE)
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "B": -1, "♭": -1}

Span = tuple[float, float, str]
"""Start and end in seconds, and a label."""


@dataclass(frozen=True)
class Annotation:
    """What is said of one track.

    Args:
        labels: Of the whole track: its tags, its class, its key, or a number as text; sorted.
        spans: Sections, chords or keys over time, in order, none overlapping the next.
        beats: Time in seconds and place in the bar of each beat, in order; 1 is a downbeat.
        split: ``train``, ``valid`` or ``test`` where it is given.
    """

    labels: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    beats: tuple[tuple[float, int], ...] = ()
    split: str | None = None

    @property
    def number(self) -> float:
        """The label of a track as a number."""
        return float(self.labels[0])


@dataclass
class Annotations:
    """What is said of many tracks.

    Args:
        task: Which question it answers.
        by: ``track_id``, or ``uri`` where tracks are named by their files.
        tracks: What is said of each, by that name.
        left_out: For each reason, names of the tracks or numbers of the rows that cannot be used.
        source: Where it was read, for messages.
    """

    task: str
    by: str = "track_id"
    tracks: dict[str, Annotation] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""

    def leave_out(self, reason: str, name: str) -> None:
        """Take note of something that cannot be used."""
        self.left_out.setdefault(reason, []).append(name)


def normalise_key(text: str) -> str | None:
    """Return a key as ``C# minor``, sharps only, whatever its spelling (``Db:min``, ``C#m``); None for none.

    Only major and minor are keys here: a mode such as dorian is none.
    """
    match = _KEY.fullmatch(text.strip())
    if match is None:
        return None
    letter, accidental, mode = match.groups()
    pitch = PITCHES[(_SEMITONES[letter.upper()] + _ACCIDENTALS[accidental]) % 12]
    is_minor = mode == "m" or mode.lower().startswith("min")  # a capital M is major
    return f"{pitch} {'minor' if is_minor else 'major'}"


def is_chord(text: str) -> bool:
    """Say whether a text is a chord in Harte's syntax, as mir_eval reads it."""
    try:
        mir_eval.chord.encode(text)
    except (mir_eval.chord.InvalidChordException, KeyError, ValueError, IndexError):
        return False
    return True


def read_label(task: str, text: str | None) -> str | None:
    """Return a label in the form in which the task knows it; None where it is none.

    Args:
        task: Name of a task.
        text: As it stands in a file.
    """
    if text is None or text.strip().casefold() in NO_LABEL:
        return None
    text = text.strip()
    if task == "key":
        return normalise_key(text)
    if task == "chord":
        return text if is_chord(text) else None
    if task == "regression":
        try:
            return text if math.isfinite(float(text)) else None
        except ValueError:
            return None
    return text


def order_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sort spans by time, drop repeated ones, and cut each where the next begins."""
    ordered = sorted(set(spans))
    cut = []
    for place, (start_s, end_s, label) in enumerate(ordered):
        if place + 1 < len(ordered):
            end_s = min(end_s, ordered[place + 1][0])
        if end_s > start_s:
            cut.append((start_s, end_s, label))
    return tuple(cut)


def fill_spans(spans: Sequence[Span], filler: str) -> list[Span]:
    """Put a span of some label into every gap between spans."""
    filled: list[Span] = []
    for span in spans:
        if filled and span[0] > filled[-1][1]:
            filled.append((filled[-1][1], span[0], filler))
        filled.append(span)
    return filled


def choose_main_label(annotation: Annotation) -> str | None:
    """Return the label of a track, of spans the one that lasts longest in all; None where there is none."""
    if annotation.labels:
        return annotation.labels[0]
    lasting: dict[str, float] = {}
    for start_s, end_s, label in annotation.spans:
        lasting[label] = lasting.get(label, 0.0) + end_s - start_s
    return max(sorted(lasting), key=lambda label: lasting[label]) if lasting else None
