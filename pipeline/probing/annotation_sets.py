"""Annotations of published data sets: what mirdata loads, MagnaTagATune's table, the MSD's tags."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.catalog.delimited import read_delimited
from pipeline.catalog.mirdata import open_dataset
from pipeline.errors import StorageError, UsageError
from pipeline.probing.annotation_files import build_beats, build_labels, build_spans
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.storage import Options, join_url, read_file

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "beat": ("beats",),
    "chord": ("chords",),
    "structure": ("sections", "segments"),
    "key": ("key",),
    "tagging": ("tags",),
    "classification": ("genre", "style"),
    "regression": ("tempo",),
}
"""Where a track of mirdata says what a task asks about."""

MTAT_COLUMNS = ("clip_id", "mp3_path")
# The split that tagging papers use: by the folder, of which there are 16.
MTAT_VALID, MTAT_TEST = ("c",), ("d", "e", "f")
CALS_FILES = ("ids", "binaries")
CALS_TAGS = "cals_tags.npy"


def read_mirdata_annotations(url: str, task: str, options: Options | None = None) -> Annotations:
    """Read what a data set of mirdata says of its tracks; they are called as ``--audio mirdata:…`` calls them.

    Args:
        url: ``mirdata:NAME``, ``mirdata:NAME@VERSION`` or either with ``:FOLDER`` behind it.
        task: Name of a task.
        options: File system options.

    Raises:
        UsageError: mirdata is not installed, or the data set says nothing for this task.
        CatalogError: It knows no such data set.
    """
    dataset = open_dataset(url, options)
    annotations = Annotations(task, source=url)
    try:
        track_ids = dataset.track_ids
    except (OSError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot list the tracks of {url}: {' '.join(str(error).split())[:160]}") from error
    for track_id in track_ids:
        try:
            annotation = _read_track(annotations, dataset.track(track_id))
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            annotations.leave_out(f"tracks whose annotation cannot be read ({said})", track_id)
            continue
        if annotation is None:
            annotations.leave_out(f"tracks without annotations for {task}", track_id)
        else:
            annotations.tracks[track_id] = annotation
    if not annotations.tracks:
        raise UsageError(
            f"expected annotations for the task {task} ({' or '.join(ATTRIBUTES[task])}) in {url}, found none: "
            + "; ".join(f"{reason}: {len(names)}" for reason, names in annotations.left_out.items())
        )
    return annotations


def _read_track(annotations: Annotations, track: Any) -> Annotation | None:
    value = next(
        (value for name in ATTRIBUTES[annotations.task] if (value := getattr(track, name, None)) is not None), None
    )
    name = str(track.track_id)
    if value is None:
        return None
    if annotations.task == "beat":
        places = value.positions if value.positions is not None else [0] * len(value.times)
        return build_beats((float(time_s), int(place)) for time_s, place in zip(value.times, places, strict=True))
    texts = getattr(value, "labels", None) if hasattr(value, "intervals") else None
    if texts is None and hasattr(value, "keys") and hasattr(value, "intervals"):
        texts = value.keys
    if texts is not None:
        spans = zip(value.intervals[:, 0].tolist(), value.intervals[:, 1].tolist(), map(str, texts), strict=True)
        return build_spans(annotations, name, spans)
    return build_labels(
        annotations, name, [str(text) for text in value] if isinstance(value, list) else [str(value)]
    )


def is_magnatagatune(columns: Sequence[str]) -> bool:
    """Tell MagnaTagATune's table, ``annotations_final.csv``, by its columns."""
    return set(MTAT_COLUMNS) <= set(columns)


def read_magnatagatune(url: str, options: Options | None = None) -> Annotations:
    """Read MagnaTagATune's ``annotations_final.csv``: tab-separated, a column a tag, a row a clip.

    A clip is called by its file. Splits are those by folder: 0 to b, c, and d to f.

    Args:
        url: The file.
        options: File system options.

    Raises:
        CatalogError: It is no such table.
        StorageError: It cannot be read.
    """
    table = read_delimited(read_file(url, options), "\t", url)
    annotations = Annotations("tagging", source=url)
    tags = [name for name in table.column_names if name not in MTAT_COLUMNS]
    columns = {name: table.column(name).to_pylist() for name in (*tags, "mp3_path")}
    for row, path in enumerate(columns["mp3_path"]):
        split = "valid" if path[:1] in MTAT_VALID else "test" if path[:1] in MTAT_TEST else "train"
        labels = tuple(sorted(tag for tag in tags if columns[tag][row] == "1"))
        annotations.tracks[path] = Annotation(labels, split=split)
    return annotations


def read_cals(url: str, options: Options | None = None) -> Annotations:
    """Read the MSD's tags in the cleaned, artist-level splits (CALS).

    They are published as ``data/splits`` of github.com/minzwon/semi-supervised-music-tagging-transformer.

    Args:
        url: Folder of ``train_ids.npy``, ``train_binaries.npy`` and so on, perhaps with ``cals_tags.npy``, the
            names of the tags; without it they are called by their numbers.
        options: File system options.

    Raises:
        UsageError: A file is damaged, or does not go with the others.
        StorageError: A file is missing.
    """
    annotations = Annotations("tagging", source=url)
    try:
        names = [str(name) for name in _load_array(join_url(url, CALS_TAGS), options)]
    except StorageError:
        names = []
    for split in ("train", "valid", "test"):
        ids, tags = (_load_array(join_url(url, f"{split}_{kind}.npy"), options) for kind in CALS_FILES)
        if tags.ndim != 2 or len(tags) != len(ids) or (names and tags.shape[1] != len(names)):
            raise UsageError(
                f"expected a row of tags for each of the {len(ids)} tracks in {split}_ids.npy of {url}, "
                f"{len(names) or 'any number'} in each, found an array of shape {tags.shape}"
            )
        known = names or [f"tag {number}" for number in range(tags.shape[1])]
        for track_id, row in zip(ids.tolist(), tags, strict=True):
            labels = tuple(sorted(known[place] for place in np.flatnonzero(row)))
            annotations.tracks[str(track_id)] = replace(Annotation(labels), split=split)
    return annotations


def _load_array(url: str, options: Options | None) -> np.ndarray:
    try:
        return np.asarray(np.load(io.BytesIO(read_file(url, options)), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(f"expected a NumPy array in {url}, found {' '.join(str(error).split())[:160]}") from error
