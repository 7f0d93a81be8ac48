"""Combine: what sounds like several tracks at once, such as a playlist, and not like some others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import UsageError
from pipeline.index.codes import Matrix, normalise_rows
from pipeline.search.filters import SameColumn, differs_from
from pipeline.search.hits import Hit
from pipeline.search.searcher import Searcher

MINUS_WEIGHT = 0.2  # Rocchio's 0.15 to 0.75 (Manning, Raghavan and Schütze, Introduction to IR, 2008, 9.1.1)


def search_tracks(
    searcher: Searcher,
    track_ids: Sequence[str],
    minus: Sequence[str] = (),
    k: int = 10,
    where: str | None = None,
    exclude_same: SameColumn | None = None,
) -> list[Hit]:
    """Find what sounds like several tracks of an index of whole tracks, none of which is among the hits.

    The query is Rocchio's (1971): the mean of the tracks' unit vectors in the index's space, less some of the mean
    of those that it should not sound like. No hit is marked as a near-duplicate: nobody plays such a query.

    Args:
        searcher: Of an index of global vectors.
        track_ids: The tracks, at least one; each counts once.
        minus: Tracks that hits should not sound like.
        k: How many hits.
        where: SQL expression over ``FILTER_COLUMNS`` that hits must meet.
        exclude_same: Leave out tracks of the artists, or of the albums, of ``track_ids``.

    Raises:
        UsageError: No such track or column, the expression is none, an index of moments, or the tracks cancel out.
    """
    index = searcher.index
    if index.manifest.resolution != "global":
        raise UsageError(
            f"expected one track to look for moments by, found {len(track_ids) + len(minus)}; several are "
            "compared as wholes: --resolution global"
        )
    if both := [track_id for track_id in track_ids if track_id in minus]:
        raise UsageError(f"expected tracks to be either looked for or left out, found {both[0]!r} in both lists")
    positions = [searcher.find_shown(track_id) for track_id in dict.fromkeys(track_ids)]
    others = [searcher.find_shown(track_id) for track_id in dict.fromkeys(minus)]
    query = mean_vector(searcher, positions)
    if others:
        query = query - np.float32(MINUS_WEIGHT) * mean_vector(searcher, others)
    if not np.linalg.norm(query) > 0:
        raise UsageError(
            "expected tracks that have something in common, found vectors that cancel out; name fewer"
        )
    allowed = searcher.select_tracks(where)
    allowed[[*positions, *others]] = False
    if exclude_same is not None:
        for position in positions:
            allowed &= differs_from(index.tracks, position, exclude_same)
    return [
        replace(hit, near_duplicate=False) for hit in searcher.search_placed(normalise_rows(query), k, allowed)
    ]


def mean_vector(searcher: Searcher, positions: Sequence[int]) -> Matrix:
    """Return the mean of tracks' unit vectors, float32 of shape (1, embed_dim)."""
    vectors = [searcher.index.vectors_of(position) for position in positions]
    return np.asarray(np.concatenate(vectors).mean(axis=0, keepdims=True), np.float32)
