"""Passes over the planned rows: how careful one is, and how many rows one of its tasks takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_TRACKS_LOOKED_AT = 256
"""Tracks of which little but the hash is wanted: with so many, what a task costs by itself no longer counts."""

MIN_BLOCKS = 32
"""So many tasks share the looking where there are enough files, whatever the cluster's size."""


@dataclass(frozen=True)
class PassSettings:
    """How careful one pass over the rows is.

    Args:
        tracks_per_block: Tracks that one task takes: what is lost when it dies.
        isolated: Decode each file in a child process.
        max_retries: How often Ray starts a task again whose worker died.
        known_sizes_bytes: Sizes of files that likely need no more than a look, of which one task takes more.
    """

    tracks_per_block: int
    isolated: bool
    max_retries: int
    known_sizes_bytes: pa.Array | None = None


ALONE = PassSettings(1, True, 1)


def plan_blocks(
    sizes_bytes: pa.ChunkedArray, tracks_per_block: int, known_sizes_bytes: pa.Array | None = None
) -> Iterator[range]:
    """Cut planned rows into blocks.

    A file that was moved, renamed, copied or touched is as large as one that the store knows: it will hardly cost
    more than its hash, so that many of them make a block. Where that turns out wrong, a block is merely longer.

    Args:
        sizes_bytes: Of each row's file; null where it is not known.
        tracks_per_block: Of files that are likely new.
        known_sizes_bytes: Sizes of the files whose content the store knows.

    Yields:
        The rows of each block, in order.
    """
    known = pa.array([], pa.int64()) if known_sizes_bytes is None else known_sizes_bytes.drop_null()
    is_known = pc.is_in(sizes_bytes, value_set=known).to_numpy()
    per_look = max(tracks_per_block, min(MAX_TRACKS_LOOKED_AT, int(is_known.sum()) // MIN_BLOCKS))
    costs = np.where(is_known, tracks_per_block, per_look)
    numbers = (np.cumsum(costs) - costs) // (tracks_per_block * per_look)
    edges = np.flatnonzero(np.diff(numbers, prepend=-1, append=np.inf)).tolist()
    yield from (range(start, stop) for start, stop in pairwise(edges))
