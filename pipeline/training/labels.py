"""What a model is fine-tuned on: labels of a catalog's tracks, their splits, and what is measured of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.config import FRAME_RATE_HZ
from pipeline.errors import UsageError
from pipeline.probing.annotations import FRAME_TASKS, Annotation, Annotations
from pipeline.probing.matching import assign_splits
from pipeline.probing.targets import choose_labels, make_targets
from pipeline.storage import absolute_url

MAIN_METRIC = {
    "beat": "beat_f",
    "chord": "majmin",
    "structure": "frame_pair_f",  # where sections begin is not trained
    "key": "weighted_score",
    "tagging": "map",
    "classification": "accuracy",
    "regression": "r2",
}
"""By which the best step of each task is chosen."""


@dataclass(frozen=True)
class Labels:
    """Labelled tracks.

    Args:
        task: One of ``MAIN_METRIC``.
        track_ids: The tracks.
        said: What people say of each.
        splits: ``train``, ``valid`` or ``test`` of each.
        names: What a head's outputs stand for.
    """

    task: str
    track_ids: tuple[str, ...]
    said: tuple[Annotation, ...]
    splits: tuple[str, ...]
    names: tuple[str, ...]

    def select(self, track_ids: Sequence[str]) -> Labels:
        """Return the labels of some of the tracks, in their order."""
        rows = {track_id: row for row, track_id in enumerate(self.track_ids)}
        chosen = [rows[track_id] for track_id in track_ids]
        said = tuple(self.said[row] for row in chosen)
        splits = tuple(self.splits[row] for row in chosen)
        return Labels(self.task, tuple(track_ids), said, splits, self.names)

    def rows_of(self, split: str) -> list[int]:
        """Return the rows of a split's tracks."""
        return [row for row, name in enumerate(self.splits) if name == split]

    def said_of(self, split: str) -> list[Annotation]:
        """Return what people say of a split's tracks."""
        return [self.said[row] for row in self.rows_of(split)]

    @property
    def sha256(self) -> str:
        """Digest of all of it."""
        said = [annotation.beats or annotation.spans or annotation.labels for annotation in self.said]
        content = [self.task, self.track_ids, said, self.splits, self.names]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def scale(self) -> tuple[float, float]:
        """Return mean and deviation that a head's answers are scaled by: 0 and 1 where they are no numbers."""
        if self.task != "regression":
            return 0.0, 1.0
        numbers = torch.tensor([annotation.number for annotation in self.said_of("train")], dtype=torch.float64)
        return float(numbers.mean()), max(float(numbers.std(correction=0)), 1e-6)

    @property
    def frame_rate_hz(self) -> float | None:
        """Rate of a head's answers: the model's own where the task has time, None for one answer a track."""
        return FRAME_RATE_HZ if self.task in FRAME_TASKS else None

    @property
    def resolution(self) -> str:
        """Resolution of a store that has such features."""
        return "global" if self.frame_rate_hz is None else f"{self.frame_rate_hz:g}hz"

    def targets(self, lengths: Sequence[int], split: str | None = None) -> list[Tensor]:
        """Return what ``probing.targets.make_targets`` makes of tracks, scaled as answers are.

        Args:
            lengths: Rows of each of their features: frames, or 1.
            split: Whose tracks; all by default.
        """
        said = self.said if split is None else self.said_of(split)
        rows = [
            make_targets(self.task, self.names, annotation, int(length), self.frame_rate_hz)
            for annotation, length in zip(said, lengths, strict=True)
        ]
        mean, deviation = self.scale()
        return rows if self.task != "regression" else [(numbers - mean) / deviation for numbers in rows]


def match_labels(annotations: Annotations, catalog: pa.Table, seed: int) -> tuple[Labels, pa.Table]:
    """Find the annotated tracks of a catalog; what has no track there is told to the annotations.

    Args:
        annotations: Of one of the tasks of ``MAIN_METRIC``.
        catalog: Rows of ``schema.CATALOG``.
        seed: Of the splits, where none are given: by artist and album.

    Returns:
        The labels, and the catalog's rows of their tracks.

    Raises:
        UsageError: There are no such tracks, or too few to be split.
    """
    track_ids = find_tracks(annotations, catalog)
    if not track_ids:
        raise UsageError(
            f"expected annotations of the catalog's tracks in {annotations.source}, found none: they name "
            f"{next(iter(annotations.tracks), 'nothing')!r} by {annotations.by}"
        )
    by_id = {track_ids[name]: said for name, said in annotations.tracks.items() if name in track_ids}
    catalog = catalog.filter(pc.is_in(catalog["track_id"], pa.array(list(by_id), pa.string())))
    ordered = catalog["track_id"].to_pylist()
    said = [by_id[track_id] for track_id in ordered]
    splits, _ = assign_splits(annotations.task, ordered, said, catalog, seed)
    train = [annotation for annotation, split in zip(said, splits, strict=True) if split == "train"]
    names = choose_labels(annotations.task, train)
    return Labels(annotations.task, tuple(ordered), tuple(said), tuple(splits), names), catalog


def find_tracks(annotations: Annotations, catalog: pa.Table) -> dict[str, str]:
    """Return the id of each annotated track that the catalog has, by the name that the annotations call it."""
    ids = catalog["track_id"].to_pylist()
    if annotations.by == "uri":
        by_uri = dict(zip(catalog["uri"].to_pylist(), ids, strict=True))
        track_ids = {name: by_uri[url] for name in annotations.tracks if (url := absolute_url(name)) in by_uri}
    else:
        track_ids = {track_id: track_id for track_id in ids if track_id in annotations.tracks}
    for name in annotations.tracks:
        if name not in track_ids:
            annotations.leave_out("tracks that the catalog does not have", name)
    return track_ids
