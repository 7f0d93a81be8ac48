"""Neighbours: every track's nearest, computed in batches and kept as a Delta Lake table ``neighbors``.

The table is a view of one version of the index. A run replaces all rows of its recipe in one commit, so a reader
sees the neighbours of one snapshot or of another, never of both.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError, DeltaError

from pipeline.errors import RunError
from pipeline.index.files import IndexLocation
from pipeline.index.manifest import read_manifest
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.schema import TIMESTAMP
from pipeline.search.shown import Mask, ShownTracks
from pipeline.storage import join_url, write_file
from pipeline.store.parts import Part
from pipeline.store.retry import commit_once
from pipeline.store.table_commits import vacuum_table
from pipeline.store.tables import describe_store_error, open_view
from pipeline.store.withheld import WithheldWatch

Matrix = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

TABLE_NAME = "neighbors"
TRACKS_PER_TASK = 50_000
TRACKS_PER_BATCH = 1024
KEPT_HOURS = 168  # a reader of replaced neighbours has a week to finish

NEIGHBORS = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # from 1
        pa.field("neighbor_id", pa.string(), nullable=False),
        pa.field("score", pa.float32()),  # cosine of the global vectors in the index's space
        pa.field("store_version", pa.int64()),  # version of ``tracks`` that was searched
        pa.field("event_time", TIMESTAMP),
    ]
)
"""Table ``neighbors``, partitioned by ``recipe``: one row per track and rank."""


def find_neighbors(
    index: VectorIndex, positions: Positions, k: int, groups: Positions | None = None, shown: Mask | None = None
) -> tuple[Matrix, Positions]:
    """Find the nearest other tracks of some tracks by their global vectors.

    Args:
        index: An index of global vectors.
        positions: Rows of ``index.tracks`` to find neighbours of; each has a vector.
        k: How many.
        groups: For each row of ``index.tracks`` a number, such as the artist's: tracks of one group are no
            neighbours of each other; -1 belongs to none.
        shown: For each row of ``index.tracks`` whether it may be a neighbour; all by default.

    Returns:
        Cosines, float32 of shape (n, k), descending, and rows of ``index.tracks``, int64 of shape (n, k). Where
        there are fewer than k, scores are -inf and rows -1.
    """
    queries = np.concatenate([index.vectors_of(int(position)) for position in positions])
    scores, rows = index.search(queries, k + 1, shown)
    nearest = np.where(rows >= 0, index.track_of(rows), -1)
    left_out = (nearest < 0) | (nearest == positions[:, None])
    if groups is not None:
        query_groups = groups[positions][:, None]
        left_out |= (query_groups >= 0) & (groups[nearest] == query_groups)
    # Those that stay move to the front, in their order.
    order = np.argsort(left_out, axis=1, kind="stable")[:, :k]
    is_kept = ~np.take_along_axis(left_out, order, 1)
    scores = np.where(is_kept, np.take_along_axis(scores, order, 1), -np.inf).astype(np.float32)
    neighbors = np.where(is_kept, np.take_along_axis(nearest, order, 1), -1)
    if groups is not None:  # a large group may have filled the ranks that were looked at
        for row in np.flatnonzero(~is_kept[:, -1] & (rows[:, -1] >= 0)):
            allowed = (groups != groups[positions[row]]) | (groups < 0)
            allowed[positions[row]] = False
            allowed &= True if shown is None else shown
            own_scores, own_rows = index.search(queries[row : row + 1], k, allowed)
            scores[row], neighbors[row] = own_scores[0], np.where(own_rows >= 0, index.track_of(own_rows), -1)[0]
    return scores, neighbors


@dataclass(frozen=True)
class NeighborsReport:
    """What a run wrote.

    Args:
        recipe: Recipe of the vectors.
        store_version: Snapshot of the index.
        index_version: Version of the index.
        num_tracks: Tracks that have neighbours.
        num_rows: Rows of the table that are theirs.
        table_version: Version of ``neighbors`` that the run committed.
    """

    recipe: str
    store_version: int
    index_version: int
    num_tracks: int
    num_rows: int
    table_version: int


def write_neighbors(
    store: StoreLocation,
    k: int = 10,
    recipe: str | None = None,
    cache: str | None = None,
    run_map: Map = map,
    tracks_per_task: int = TRACKS_PER_TASK,
) -> NeighborsReport:
    """Compute every track's nearest from the store's index, and replace its recipe's rows of ``neighbors``.

    Args:
        store: The store.
        k: Neighbours of a track; fewer where there are not so many.
        recipe: Recipe id; may be left out where only one recipe is indexed.
        cache: Folder for copies of the index, where the store lies in object storage.
        run_map: Maps a function over items: the built-in, or one that spreads the work.
        tracks_per_task: Tracks that one item stands for, and rows/k of one file.

    Raises:
        UsageError: There is no index.
        StorageError: The index cannot be read, or the table not be written.
        RunError: Another run committed meanwhile; its neighbours stay.
    """
    index = VectorIndex.open(store, "global", recipe, cache)
    manifest, table_url = index.manifest, store.table_url(TABLE_NAME)
    positions = np.flatnonzero(_mark_shown(index))
    k = min(k, max(1, len(positions) - 1))  # there are no more
    run_id = uuid.uuid4().hex[:12]
    table = open_view(store, TABLE_NAME, NEIGHBORS, "recipe")
    write = partial(
        _write_shard, location=index.location, version=manifest.version, k=k, run_id=run_id, cache=cache
    )
    shards = [positions[start : start + tracks_per_task] for start in range(0, len(positions), tracks_per_task)]
    parts = [part for part in run_map(write, shards) if part.num_rows]
    commit = partial(
        table.create_write_transaction,
        [part.as_add_action() for part in parts],
        mode="overwrite",
        schema=table.schema(),
        partition_by=["recipe"],
        partition_filters=[("recipe", "=", manifest.recipe)],
    )
    facts = {"event": "neighbors", "run_id": run_id, "store_version": str(manifest.store_version)}
    try:
        commit_once(table, commit, facts)
    except CommitFailedError as error:
        raise RunError(
            f"another run wrote {table_url} meanwhile; its neighbours stay, run the command again"
        ) from error
    except (DeltaError, OSError) as error:
        raise describe_store_error(table_url, error) from error
    vacuum_table(table, KEPT_HOURS)
    return NeighborsReport(
        manifest.recipe,
        manifest.store_version,
        manifest.version,
        len(positions),
        sum(part.num_rows for part in parts),
        table.version(),
    )


def _write_shard(
    positions: Positions, location: IndexLocation, version: int, k: int, run_id: str, cache: str | None
) -> Part:
    """Write the neighbours of some tracks as one file of the table, not yet committed.

    Raises:
        RunError: The version of the index has been cleared away.
        StorageError: The index cannot be read, or the file not be written.
    """
    manifest = read_manifest(location, version)
    if manifest is None:
        raise RunError(f"version {version} of the index at {location.url} is gone; run the command again")
    index = VectorIndex(location, manifest, cache)
    shown = _mark_shown(index)
    positions = positions[shown[positions]]
    batches = [NEIGHBORS.empty_table()] + [
        _build_rows(index, positions[start : start + TRACKS_PER_BATCH], k, shown)
        for start in range(0, len(positions), TRACKS_PER_BATCH)
    ]
    rows = pa.concat_tables(batches)
    buffer = io.BytesIO()
    pq.write_table(rows.drop_columns(["recipe"]), buffer, compression="zstd", store_schema=False)
    path = f"recipe={manifest.recipe}/part-{run_id}-{uuid.uuid4().hex}.parquet"
    if rows.num_rows:
        table_url = location.store.table_url(TABLE_NAME)
        write_file(join_url(table_url, path), buffer.getvalue(), location.store.options)
    span = pc.min_max(rows.column("track_id")).as_py()
    return Part(manifest.recipe, None, path, buffer.tell(), rows.num_rows, span["min"], span["max"])


def _mark_shown(index: VectorIndex) -> Mask:
    """Mark the tracks that have a vector and are not taken down as of now; the index may be older than that."""
    shown = ShownTracks(index.tracks.column("track_id"), WithheldWatch(index.location.store)).mark()
    has_vector: Mask = index.tracks.column("num_vectors").to_numpy() > 0
    return shown & has_vector


def _build_rows(index: VectorIndex, positions: Positions, k: int, shown: Mask) -> pa.Table:
    """Return rows of ``NEIGHBORS``, those of a track in the order of their ranks."""
    scores, neighbors = find_neighbors(index, positions, k, shown=shown)
    query, rank = np.nonzero(neighbors >= 0)
    track_ids = index.tracks.column("track_id")
    manifest = index.manifest
    columns: dict[str, Any] = {
        "recipe": pa.repeat(manifest.recipe, len(query)),
        "track_id": track_ids.take(positions[query]),
        "rank": (rank + 1).astype(np.int32),
        "neighbor_id": track_ids.take(neighbors[query, rank]),
        "score": scores[query, rank],
        "store_version": pa.repeat(manifest.store_version, len(query)),
        "event_time": pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), len(query)),
    }
    return pa.table(columns, schema=NEIGHBORS)
