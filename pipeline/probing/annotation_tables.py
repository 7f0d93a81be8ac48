"""Annotations from a delimited text file: a row a label, a span of time, or a beat."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Mapping

from pipeline.catalog.delimited import read_delimited
from pipeline.catalog.manifest import make_absolute
from pipeline.errors import UsageError
from pipeline.probing.annotations import (
    SPAN_TASKS,
    Annotation,
    Annotations,
    Span,
    order_spans,
    read_label,
)
from pipeline.probing.splits import read_split
from pipeline.storage import Options, absolute_url, read_file

SPAN_COLUMNS = ("start_s", "end_s", "label")
BEAT_COLUMNS = ("time_s", "beat")
Row = Mapping[str, str]


def read_table(url: str, task: str, options: Options | None = None) -> Annotations:
    """Read annotations of a CSV file, or of a tab-separated one (``.tsv``).

    Columns: ``track_id`` or ``uri`` (relative ones lie beside the file, as in a manifest), then ``label`` (one row
    a label), or ``start_s,end_s,label``, or ``time_s,beat``; ``split`` where the splits are given. Rows that stand
    twice count once.

    Args:
        url: The file.
        task: Name of a task.
        options: File system options.

    Raises:
        UsageError: A column is missing, or a cell of ``split`` names no split.
        CatalogError: It is no such file.
        StorageError: It cannot be read.
    """
    delimiter = "\t" if url.lower().endswith((".tsv", ".tab")) else ","
    table = read_delimited(read_file(url, options), delimiter, url)
    names = [name.strip() for name in table.column_names]
    table = table.rename_columns(names)
    by = next((name for name in ("track_id", "uri") if name in names), None)
    columns = _choose_columns(task, names)
    if by is None or columns is None:
        raise UsageError(
            f"expected the columns {_spell_columns(task)} in {url}, found {', '.join(names)}; name them in the "
            "first row"
        )
    annotations = Annotations(task, by, source=url)
    kept = [by, *columns, *(["split"] if "split" in names else [])]
    folder = posixpath.dirname(absolute_url(url))  # as for manifests
    rows_by_track: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(table.select(kept).to_pylist(), 1):
        name = row[by].strip()
        if name and by == "uri":
            name = make_absolute(os.path.expanduser(name), folder)
        if name:
            rows_by_track.setdefault(name, []).append((number, row))
        else:
            annotations.leave_out(f"rows without a {by}", f"row {number}")
    for name, rows in rows_by_track.items():
        annotation = _read_track(annotations, name, rows, columns)
        if annotation is not None:
            annotations.tracks[name] = annotation
    return annotations


def _choose_columns(task: str, names: list[str]) -> tuple[str, ...] | None:
    choices: list[tuple[str, ...]] = [SPAN_COLUMNS] if task in (*SPAN_TASKS, "key") else []
    if task not in SPAN_TASKS:
        choices.append(BEAT_COLUMNS if task == "beat" else ("label",))
    return next((choice for choice in choices if set(choice) <= set(names)), None)


def _spell_columns(task: str) -> str:
    columns = {
        "beat": "track_id,time_s,beat",
        **dict.fromkeys(SPAN_TASKS, "track_id,start_s,end_s,label"),
        "key": "track_id,label or track_id,start_s,end_s,label",
    }
    return f"{columns.get(task, 'track_id,label')} (uri instead of track_id, and split, are known too)"


def _read_track(
    annotations: Annotations, name: str, rows: list[tuple[int, Row]], columns: tuple[str, ...]
) -> Annotation | None:
    """Read the rows of one track; None where nothing of it can be used, which is told."""
    split = _read_split(annotations, name, [row for _, row in rows])
    if split is None and "split" in rows[0][1]:
        return None
    if columns == BEAT_COLUMNS:
        beats = [beat for number, row in rows if (beat := _read_beat(annotations, number, row)) is not None]
        return Annotation(beats=tuple(sorted(dict(beats).items())), split=split) if beats else None
    if columns == SPAN_COLUMNS:
        spans = [span for number, row in rows if (span := _read_span(annotations, number, row)) is not None]
        return Annotation(spans=order_spans(spans), split=split) if spans else None
    return _read_labels(annotations, name, rows, split)


def _read_labels(
    annotations: Annotations, name: str, rows: list[tuple[int, Row]], split: str | None
) -> Annotation | None:
    labels = set()
    for _, row in rows:
        label = read_label(annotations.task, row["label"])
        if label is not None:
            labels.add(label)
        elif annotations.task != "tagging" or row["label"].strip():
            annotations.leave_out(
                f"labels that are none for {annotations.task} ({row['label'].strip() or 'empty'})", name
            )
    if annotations.task == "tagging":  # a track without a tag says something too
        return Annotation(tuple(sorted(labels)), split=split)
    if len({float(label) for label in labels} if annotations.task == "regression" else labels) > 1:
        annotations.leave_out("tracks with several different labels", name)
        return None
    return Annotation(tuple(sorted(labels))[:1], split=split) if labels else None


def _read_split(annotations: Annotations, name: str, rows: list[Row]) -> str | None:
    if "split" not in rows[0]:
        return None
    texts = {row["split"].strip() for row in rows}
    splits = {read_split(text) for text in texts if text.casefold() not in ("", "nan")}
    if None in splits:
        raise UsageError(
            f"expected train, valid or test in the column split of {annotations.source}, found "
            f"{', '.join(sorted(texts))} for {name}; leave the column out to have tracks split by artist"
        )
    if len(splits) == 1:
        return splits.pop()
    annotations.leave_out("tracks in several splits" if splits else "tracks without a split", name)
    return None


def _read_span(annotations: Annotations, number: int, row: Row) -> Span | None:
    start_s, end_s = _read_number(row["start_s"]), _read_number(row["end_s"])
    label = read_label(annotations.task, row["label"])
    if start_s is None or end_s is None or not 0 <= start_s < end_s:
        annotations.leave_out("rows whose times are no span", f"row {number}")
    elif label is None:
        annotations.leave_out(f"rows whose label is none for {annotations.task}", f"row {number}")
    else:
        return start_s, end_s, label
    return None


def _read_beat(annotations: Annotations, number: int, row: Row) -> tuple[float, int] | None:
    time_s, place = _read_number(row["time_s"]), _read_number(row["beat"])
    if time_s is None or time_s < 0:
        annotations.leave_out("rows without a time", f"row {number}")
        return None
    if place is None or place != int(place):
        annotations.leave_out("beats without a place in the bar (counted as beats)", f"row {number}")
        place = 0.0
    return time_s, int(place)


def _read_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
