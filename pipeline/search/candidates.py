"""Candidates: which tracks of an index of moments are worth comparing with a passage frame by frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.index.codes import Matrix, normalise_rows
from pipeline.index.space import Space
from pipeline.index.vector_index import VectorIndex

Mask = npt.NDArray[np.bool_]

MAX_ALIGNED_TRACKS = 100  # in catalogs so small all are aligned, in others so many candidates: some 100 ms
MAX_PROBES = 16  # frames of a long query that ask the index
ROWS_PER_PROBE = 256
RANK_OFFSET = 60  # of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)


def find_candidates(index: VectorIndex, whitening: Space, vectors: Matrix, k: int, allowed: Mask) -> list[int]:
    """Find the tracks to align: all that are allowed, or those that most probes agree on.

    Probes are frames of the query and, for as many candidates again, their changes around its mean: what
    shifts all frames alike, such as a codec's low-pass, leaves those where they are.

    Args:
        index: Of moments.
        whitening: The space in which passages are compared.
        vectors: The query's frames, float32 of shape (n, embed_dim).
        k: How many tracks are wanted at least.
        allowed: Marks of the tracks that may be found.

    Returns:
        Their positions among the index's tracks.
    """
    if np.count_nonzero(allowed) <= max(k, MAX_ALIGNED_TRACKS):
        return [int(position) for position in np.flatnonzero(allowed)]
    chosen = np.unique(np.linspace(0, len(vectors) - 1, MAX_PROBES).round().astype(np.int64))
    candidates = _vote(index, vectors[chosen], k, allowed)
    if len(vectors) > 2:
        passage = whitening.apply(normalise_rows(vectors))
        changes = passage[chosen] - passage.mean(axis=0)
        candidates += _vote(index, changes @ whitening.projection.T, k, allowed)
    return list(dict.fromkeys(candidates))


def _vote(index: VectorIndex, probes: Matrix, k: int, allowed: Mask) -> list[int]:
    """Return rows of the tracks that rank high among the nearest of many probes, by reciprocal rank fusion."""
    num_wanted = min(max(k, MAX_ALIGNED_TRACKS // 2), int(np.count_nonzero(allowed)))
    probes = probes[np.linalg.norm(probes, axis=1) > 0]
    depth = max(ROWS_PER_PROBE, 2 * num_wanted)
    while True:
        _, rows = index.search(probes, depth, None if allowed.all() else allowed)
        votes = np.zeros(len(allowed))
        for own_rows in rows:
            positions = index.track_of(own_rows[own_rows >= 0])
            positions, first_ranks = np.unique(positions[positions >= 0], return_index=True)
            votes[positions] += 1 / (RANK_OFFSET + first_ranks)
        # A few tracks may fill all ranks with their many moments.
        if len(probes) == 0 or np.count_nonzero(votes) >= k or (rows < 0).any():
            break
        depth *= 4
    best = np.argsort(-votes, kind="stable")[:num_wanted]
    return [int(position) for position in best if votes[position] > 0]
