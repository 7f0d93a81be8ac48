"""Matching: which tracks of a store annotations are about, and in which split each of them is."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.splits import SPLITS, choose_groups, group_tracks, split_by_artist, split_groups
from pipeline.storage import absolute_url

GIVEN = "given"
VALID_SHARE = 0.15  # of given training tracks, where no validation tracks are given


def match_tracks(annotations: Annotations, ledger: pa.Table) -> tuple[dict[str, Annotation], dict[str, list[str]]]:
    """Find the annotated tracks of a store.

    Args:
        annotations: Of tracks named by id or by file.
        ledger: track_id and uri of the store's tracks that have features.

    Returns:
        The annotation of each track by its id, and what was left out and why, ``annotations.left_out`` included.

    Raises:
        UsageError: None of them is in the store.
    """
    left_out = {reason: list(names) for reason, names in annotations.left_out.items()}
    ids = ledger.column("track_id").to_pylist()
    if annotations.by == "track_id":
        known = dict(zip(ids, ids, strict=True))
    else:
        known = {
            _spell_uri(uri): track_id
            for uri, track_id in zip(ledger.column("uri").to_pylist(), ids, strict=True)
            if uri
        }
    matched: dict[str, Annotation] = {}
    for name, annotation in annotations.tracks.items():
        track_id = known.get(name if annotations.by == "track_id" else _spell_uri(name))
        if track_id is None:
            left_out.setdefault("tracks that the store has no such features of", []).append(name)
        elif track_id in matched:
            left_out.setdefault("tracks that are named in two ways", []).append(name)
        else:
            matched[track_id] = annotation
    if not matched:
        example = next(iter(annotations.tracks), None) or "none that can be used"
        reasons = "; ".join(f"{reason}: {len(names)}" for reason, names in left_out.items())
        raise UsageError(
            f"expected annotations of tracks of the store in {annotations.source or 'the annotations'}, found no "
            f"track in both ({reasons or 'no row at all'}): the store has such as {next(iter(known), None)!r}, "
            f"the annotations {example!r}; they are matched by {annotations.by}"
        )
    return matched, left_out


def _spell_uri(uri: str) -> str:
    """Return a file's address in one spelling: local ones as absolute paths."""
    return absolute_url(uri.removeprefix("file://"))


def assign_splits(
    task: str, track_ids: Sequence[str], annotations: Sequence[Annotation], tracks: pa.Table, seed: int
) -> tuple[list[str], str]:
    """Return the split of each track, and how it was found.

    Given splits are kept. Where they name no validation tracks, some training tracks become such, by artist.

    Args:
        task: Name of a task.
        track_ids: The tracks.
        annotations: Of each.
        tracks: track_id, artist and album, in any order.
        seed: Of the draw.

    Raises:
        UsageError: Given splits lack training or test tracks, or there are too few artists to make splits.
    """
    names = dict(
        zip(
            tracks.column("track_id").to_pylist(),
            zip(tracks.column("artist").to_pylist(), tracks.column("album").to_pylist(), strict=True),
            strict=True,
        )
    )
    artists, albums = ([names[track_id][side] for track_id in track_ids] for side in (0, 1))
    labels = [() if task == "regression" else annotation.labels for annotation in annotations]
    given = [annotation.split for annotation in annotations]
    if not any(given):
        return split_by_artist(track_ids, artists, albums, labels, seed)
    splits = [split or "" for split in given]
    for needed in ("train", "test"):
        if needed not in splits:
            counts = ", ".join(f"{splits.count(name)} {name}" for name in SPLITS)
            raise UsageError(
                f"expected tracks to train on and to test on in the column split, found {counts} that the store "
                "has; leave the column out to have tracks split by artist"
            )
    if "valid" in splits:
        return splits, GIVEN
    rows = [row for row, split in enumerate(splits) if split == "train"]
    if len(rows) < 2:
        raise UsageError("expected two tracks to train on or more: one of them says when to stop; found one")
    ids = [track_ids[row] for row in rows]
    groups, _ = choose_groups(ids, [artists[row] for row in rows], [albums[row] for row in rows])
    if len(set(groups.tolist())) < 2:  # one artist: who says when to stop is not what is measured
        groups = group_tracks(ids, [None] * len(ids), [None] * len(ids))
    own_labels = [labels[row] for row in rows]
    dealt = split_groups(ids, groups, own_labels, seed, SPLITS[:2], (1 - VALID_SHARE, VALID_SHARE))
    for row, split in zip(rows, dealt, strict=True):
        splits[row] = split
    return splits, GIVEN
