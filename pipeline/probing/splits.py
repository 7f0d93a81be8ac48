"""Splits: which tracks a head is trained on, stopped by, and measured on; by artist and album, never by excerpt.

A model that has heard an artist, or the sound of an album, would seem to know what it was asked about. So whatever
shares an artist or an album, directly or through others, is one group (a connected component) and stays together.
Where that makes one group of most tracks (a compilation, "Greatest Hits"), artists alone decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import UsageError

SPLITS = ("train", "valid", "test")
SHARES = (0.7, 0.15, 0.15)
MAX_GROUP_SHARE = 0.5  # of the tracks: a larger group tells that albums say nothing
BY_ALBUM, BY_ARTIST = "by artist and album", "by artist"
SPELLINGS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval", "te"), "test"),
}
"""How data sets spell the splits, in lower case."""


def group_tracks(
    track_ids: Sequence[str], artists: Sequence[str | None], albums: Sequence[str | None]
) -> npt.NDArray[np.int64]:
    """Number the groups of tracks that share an artist or an album, directly or through others.

    Args:
        track_ids: The tracks.
        artists: Of each track; None or blank where unknown: such a track shares it with none.
        albums: The same.

    Returns:
        int64 of shape (num_tracks,): the group of each track.
    """
    nodes: dict[tuple[str, str], int] = {}
    rows, columns = [], []
    for row, names in enumerate(zip(artists, albums, strict=True)):
        for kind, name in zip(("artist", "album"), names, strict=True):
            if name is not None and name.strip():
                node = nodes.setdefault((kind, name.strip().casefold()), len(track_ids) + len(nodes))
                rows.append(row)
                columns.append(node)
    size = len(track_ids) + len(nodes)
    edges = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, groups = connected_components(edges, directed=False)
    return np.asarray(groups[: len(track_ids)], np.int64)


def choose_groups(
    track_ids: Sequence[str], artists: Sequence[str | None], albums: Sequence[str | None]
) -> tuple[npt.NDArray[np.int64], str]:
    """Number the groups that stay together, and say by what: artist and album, or artist alone.

    Args:
        track_ids: The tracks.
        artists: Of each; None where unknown.
        albums: Of each; None where unknown.

    Returns:
        int64 of shape (num_tracks,), and ``BY_ALBUM`` or ``BY_ARTIST``.
    """
    groups = group_tracks(track_ids, artists, albums)
    if np.bincount(groups).max() <= MAX_GROUP_SHARE * len(track_ids):
        return groups, BY_ALBUM
    return group_tracks(track_ids, artists, [None] * len(track_ids)), BY_ARTIST


def split_groups(
    track_ids: Sequence[str],
    groups: npt.NDArray[np.int64],
    labels: Sequence[Sequence[str]],
    seed: int,
    names: Sequence[str] = SPLITS,
    shares: Sequence[float] = SHARES,
) -> list[str]:
    """Deal whole groups out to splits, so that each split has about its share of the tracks and of every label.

    The largest groups are dealt first, each to the split that lacks most of what the group has. The result depends
    on the ids, groups, labels and seed, not on the order of the tracks.

    Args:
        track_ids: The tracks.
        groups: Group of each.
        labels: Labels of each; may be empty.
        seed: Of the order among groups of one size.
        names: Of the splits.
        shares: Of the tracks, one a split.

    Returns:
        The split of each track.

    Raises:
        UsageError: There are fewer groups than splits.
    """
    order = sorted(range(len(track_ids)), key=lambda row: track_ids[row])
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(groups[row]), []).append(row)
    if len(members) < len(names):
        raise UsageError(
            f"expected tracks of {len(names)} artists or more, to be split into {', '.join(names)}, "
            f"found {len(track_ids)} tracks of {len(members)}: give the split of each track in a column `split`"
        )
    known = {label: number for number, label in enumerate(sorted({name for row in labels for name in row}), 1)}
    counts = np.zeros((len(members), len(known) + 1))  # the first column counts tracks
    for place, rows in enumerate(members.values()):
        counts[place, 0] = len(rows)
        for row in rows:
            for name in set(labels[row]):
                counts[place, known[name]] += 1
    dealt = _deal(counts, np.asarray(shares, np.float64), seed)
    result = [""] * len(track_ids)
    for place, rows in enumerate(members.values()):
        for row in rows:
            result[row] = names[dealt[place]]
    return result


def _deal(counts: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.int64]:
    """Return the split of each group; no split stays empty.

    Args:
        counts: Tracks of each group, in all and of each label, shape (num_groups, 1 + num_labels).
        shares: Of each split.
        seed: Of the order among groups of one size.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order, 0], kind="stable")]
    lacking = np.outer(shares, counts.sum(axis=0))  # (num_splits, 1 + num_labels)
    scale = 1.0 / np.maximum(counts.sum(axis=0), 1.0)  # a rare label weighs as much as a frequent one
    dealt = np.zeros(len(counts), np.int64)
    empty = set(range(len(shares)))
    for place, group in enumerate(order):
        wanted = (np.maximum(lacking, 0.0) * scale * np.minimum(counts[group], 1.0)).sum(axis=1)
        if len(order) - place <= len(empty):  # the last groups go where there is none yet
            wanted = np.where(np.isin(np.arange(len(shares)), list(empty)), wanted + 1e9, wanted)
        split = int(np.argmax(wanted))
        dealt[group] = split
        empty.discard(split)
        lacking[split] -= counts[group]
    return dealt


def split_by_artist(
    track_ids: Sequence[str],
    artists: Sequence[str | None],
    albums: Sequence[str | None],
    labels: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
) -> tuple[list[str], str]:
    """Split tracks into ``train``, ``valid`` and ``test`` by artist and album.

    Args:
        track_ids: The tracks.
        artists: Of each; None where unknown: then the track is an artist of its own.
        albums: Of each; None where unknown.
        labels: Of each, for splits that are alike; None for none.
        seed: Of the draw.

    Returns:
        The split of each track, and ``BY_ALBUM`` or ``BY_ARTIST``.

    Raises:
        UsageError: There are fewer than three artists.
    """
    groups, how = choose_groups(track_ids, artists, albums)
    return split_groups(track_ids, groups, labels or [()] * len(track_ids), seed), how


def read_split(text: str) -> str | None:
    """Return the split that a cell of an annotation file names; None where it names none."""
    return SPELLINGS.get(text.strip().casefold())
