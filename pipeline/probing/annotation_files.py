"""Annotations that lie in a file a track: JAMS, and the plain text that Isophonics, Harmonix and others use.

A track is called by its file's name without the ending, or by the ``track_id`` among a JAMS file's identifiers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

import jams

from pipeline.errors import UsageError
from pipeline.probing.annotations import (
    SPAN_TASKS,
    TRACK_TASKS,
    Annotation,
    Annotations,
    Span,
    order_spans,
    read_label,
)
from pipeline.storage import Options, join_url, list_files, read_file

TEXT_ENDINGS = (".lab", ".txt", ".beats", ".key")
NAMESPACES: dict[str, tuple[str, ...]] = {
    "beat": ("beat", "beat_position"),
    "chord": ("chord", "chord_harte"),
    "structure": ("segment_",),
    "key": ("key_mode",),
    "tagging": ("tag_", "mood_thayer"),
    "classification": ("tag_", "genre"),
    "regression": ("tempo",),
}
"""Namespaces of JAMS that answer a task; those that end in ``_`` stand for all that begin so."""

Read = Callable[[Annotations, str, bytes], Annotation | None]


def is_jams(url: str) -> bool:
    """Tell a JAMS file by its name."""
    return url.lower().endswith(".jams")


def read_jams(url: str, task: str, options: Options | None = None) -> Annotations:
    """Read the annotations of one JAMS file.

    Args:
        url: The file.
        task: Name of a task.
        options: File system options.

    Raises:
        UsageError: It is no JAMS file, or holds nothing for this task.
        StorageError: It cannot be read.
    """
    annotations = Annotations(task, source=url)
    _add_jams(annotations, url, read_file(url, options))
    return _require_some(annotations)


def read_folder(url: str, task: str, options: Options | None = None) -> Annotations:
    """Read a folder of files, one a track: JAMS where there are any, else text.

    A line of text is ``start end label`` for chords, sections and keys (Isophonics writes ``start end Key C``), or
    ``time label`` where each section ends with the next (Harmonix), ``time place …`` for beats, a label for what
    holds for the whole track. A file that cannot be read is left out and told.

    Args:
        url: The folder.
        task: Name of a task.
        options: File system options.

    Raises:
        UsageError: No file in it holds anything for this task.
        StorageError: It cannot be read.
    """
    paths = sorted(list_files(url, options).column("path").to_pylist())
    annotations = Annotations(task, source=url)
    jams_paths = [path for path in paths if is_jams(path)]
    for path in jams_paths or [path for path in paths if path.lower().endswith(TEXT_ENDINGS)]:
        data = read_file(join_url(url, path), options)
        try:
            if jams_paths:
                _add_jams(annotations, path, data)
            elif (annotation := _read_text(annotations, path, data)) is not None:
                annotations.tracks[PurePosixPath(path).stem] = annotation
        except UsageError as error:
            annotations.leave_out(f"files that cannot be read ({error})", path)
    return _require_some(annotations)


def _require_some(annotations: Annotations) -> Annotations:
    if annotations.tracks:
        return annotations
    reasons = "; ".join(f"{reason}: {', '.join(names[:3])}" for reason, names in annotations.left_out.items())
    raise UsageError(
        f"expected annotations for the task {annotations.task} in {annotations.source}, JAMS or a text file a "
        f"track, found none ({reasons or 'no such file'})"
    )


def _add_jams(annotations: Annotations, path: str, data: bytes) -> None:
    try:
        jam = jams.load(io.StringIO(data.decode("utf-8-sig")), validate=False)
        track_id = dict(jam.file_metadata.identifiers).get("track_id") or PurePosixPath(path).stem
        chosen = [part for part in jam.annotations if _answers(part.namespace, annotations.task)]
        # Of several annotators the first one's; tags are gathered.
        observations = [obs for part in (chosen if annotations.task == "tagging" else chosen[:1]) for obs in part]
        annotation = _read_observations(annotations, path, observations)
    except (ValueError, TypeError, KeyError, AttributeError, jams.JamsError) as error:
        said = " ".join(str(error).split())[:160]
        raise UsageError(f"expected a JAMS file, found a damaged one or another: {path}: {said}") from error
    if annotation is None:
        annotations.leave_out(f"files without annotations for {annotations.task}", path)
    else:
        annotations.tracks[str(track_id)] = annotation


def _answers(namespace: str, task: str) -> bool:
    return any(
        namespace.startswith(prefix) if prefix.endswith("_") else namespace == prefix
        for prefix in NAMESPACES[task]
    )


def _read_observations(annotations: Annotations, path: str, observations: Iterable[Any]) -> Annotation | None:
    task = annotations.task
    if task == "beat":
        return build_beats(
            (float(observation.time), _read_place(observation.value)) for observation in observations
        )
    if task in TRACK_TASKS:
        return build_labels(annotations, path, [_as_text(observation.value) for observation in observations])
    spans = [
        (
            float(observation.time),
            float(observation.time) + float(observation.duration),
            _as_text(observation.value),
        )
        for observation in observations
    ]
    return build_spans(annotations, path, spans)


def build_beats(beats: Iterable[tuple[float, int]]) -> Annotation | None:
    """Return the annotation of a track's beats, times in seconds and places in the bar; None without any."""
    ordered = tuple(sorted(dict(beats).items()))
    return Annotation(beats=ordered) if ordered else None


def build_labels(annotations: Annotations, name: str, texts: Iterable[str]) -> Annotation | None:
    """Return the annotation of a whole track; None where no text is a label, which is told of."""
    labels = sorted({label for text in texts if (label := read_label(annotations.task, text)) is not None})
    if annotations.task != "tagging" and len(labels) > 1:
        annotations.leave_out("tracks with several different labels", name)
        return None
    return Annotation(tuple(labels)) if labels else None


def build_spans(annotations: Annotations, name: str, spans: Iterable[Span]) -> Annotation | None:
    """Return the annotation of spans of time; those whose label is none for the task are told of."""
    kept = []
    for start_s, end_s, text in spans:
        label = read_label(annotations.task, text)
        if label is None or not 0 <= start_s < end_s:
            annotations.leave_out(f"spans that are none for {annotations.task} ({text or 'empty'})", name)
        else:
            kept.append((start_s, end_s, label))
    return Annotation(spans=order_spans(kept)) if kept else None


def _read_text(annotations: Annotations, path: str, data: bytes) -> Annotation | None:
    task = annotations.task
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        if task == "beat":
            rows = [line.replace(",", " ").split() for line in lines]
            return build_beats((float(row[0]), _read_place(row[1]) if len(row) > 1 else 0) for row in rows)
        if task in TRACK_TASKS or (task == "key" and len(lines) == 1 and not lines[0][0].isdigit()):
            return build_labels(annotations, path, lines)
        return build_spans(annotations, path, _read_spans(task, lines))
    except (ValueError, IndexError) as error:
        raise UsageError(f"expected lines of {_spell_line(task)}, found {error} in {path}") from error


def _read_spans(task: str, lines: list[str]) -> list[Span]:
    rows = [line.split(maxsplit=2) for line in lines]
    if task == "structure" and all(not _is_number(row[1]) for row in rows):
        starts_s = [float(row[0]) for row in rows]
        return [
            (start_s, end_s, " ".join(row[1:]))
            for start_s, end_s, row in zip(starts_s, starts_s[1:], rows, strict=False)
        ]
    if task == "key":  # "start end Key C"; silence has no key
        rows = [[*row[:2], row[2].removeprefix("Key").strip()] for row in rows if not row[2].startswith("Silence")]
    return [(float(row[0]), float(row[1]), row[2]) for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_place(value: Any) -> int:
    """Return a beat's place in the bar; 0 where it is not said."""
    if isinstance(value, dict):  # beat_position
        value = value.get("position")
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return 0


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _spell_line(task: str) -> str:
    return {"beat": "`time place`"}.get(task, "`start end label`" if task in (*SPAN_TASKS, "key") else "a label")
