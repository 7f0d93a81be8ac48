"""What an index is made from: the ledger of one published snapshot, and the vectors that it names, streamed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.location import StoreLocation
from pipeline.schema import KEYS, LABELS, TABLES
from pipeline.store.read import FeatureStore
from pipeline.store.read_parts import explain_unreadable, open_parts
from pipeline.store.snapshot import NoVectorsError, choose_recipe
from pipeline.store.tables import open_table, read_columns

METADATA = (*KEYS, "uri", *LABELS, "duration_s")
_BATCH_TRACKS, _BATCH_ROWS = 4096, 32  # bound what is decoded at once: 16 MB of global vectors, rows of frames


@dataclass(frozen=True)
class VectorBatch:
    """Vectors of some tracks.

    Args:
        keys: track_id and content_hash, one row a track.
        lengths: Vectors of each track.
        vectors: float32 of shape (sum of lengths, embed_dim).
    """

    keys: pa.Table
    lengths: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """One snapshot, seen at one recipe and resolution.

    Args:
        store: The store.
        recipe: Recipe id.
        definition: The recipe as JSON.
        resolution: Name of a resolution.
        store_version: Version of ``tracks``.
        frames_version: Version of ``frames``.
        ledger: ``METADATA`` of the tracks that have vectors, sorted by track_id.
        parts: Files that hold vectors: path, num_records, min and max of track_id.
    """

    store: StoreLocation
    recipe: str
    definition: str
    resolution: str
    store_version: int
    frames_version: int
    ledger: pa.Table
    parts: pa.Table


def open_source(store: StoreLocation, resolution: str, recipe: str | None = None) -> Source:
    """Open the published snapshot of a store.

    Args:
        store: The store.
        resolution: Name of a resolution.
        recipe: Recipe id; may be left out where the snapshot has only one.

    Raises:
        StorageError: There is no store, or it cannot be read.
        NoVectorsError: There is no such recipe, or it has no vectors at this resolution.
        UsageError: No run has closed, or the recipe has to be named.
    """
    snapshot = FeatureStore(store.url, options=store.options)
    versions = {"tracks": snapshot.version, "frames": snapshot.frames_version}
    files = {
        name: pa.table(open_table(store, name, version).get_add_actions(flatten=True))
        for name, version in versions.items()
    }
    recipe = choose_recipe(files["tracks"], recipe, store)
    definitions = read_columns(open_table(store, "recipes"), ["recipe", "definition"])
    definition = dict(zip(*(column.to_pylist() for column in definitions.columns), strict=True)).get(recipe, "")
    ledger_files = files["tracks"].filter(pc.equal(files["tracks"].column("partition.recipe"), recipe))
    ledger = _read_ledger(store, ledger_files, recipe, resolution)
    parts = files["frames"]
    for name, value in (("recipe", recipe), ("resolution", resolution)):
        parts = parts.filter(pc.equal(parts.column(f"partition.{name}"), value))
    parts = parts.select(["path", "num_records", "min.track_id", "max.track_id"]).sort_by("min.track_id")
    return Source(store, recipe, definition, resolution, versions["tracks"], versions["frames"], ledger, parts)


def read_vectors(source: Source, paths: Sequence[str], wanted: pa.Table) -> Iterator[VectorBatch]:
    """Stream the vectors of some tracks out of some files, whole tracks at a time, in bounded memory.

    Args:
        source: The snapshot.
        paths: Which of its parts.
        wanted: ``KEYS`` of the tracks, sorted by track_id; rows of other content are left out.

    Raises:
        StorageError: A file cannot be read, or a vacuum took it.
    """
    ids = wanted.column("track_id").to_pylist()
    chosen = source.parts.filter(pc.is_in(source.parts.column("path"), pa.array(paths, pa.string())))
    for part in chosen.to_pylist():
        low, high = part["min.track_id"], part["max.track_id"]
        tracks_of_part = _cut_span(wanted, ids, low, high)
        if tracks_of_part.num_rows == 0:
            continue
        yield from _join_tracks(_read_part(source, part, tracks_of_part))


def _read_part(source: Source, part: dict[str, Any], wanted: pa.Table) -> Iterator[VectorBatch]:
    """Stream the vectors of the wanted tracks out of one part; an item is a row, in order."""
    ids = wanted.column("track_id").to_pylist()
    few = part["num_records"] is not None and wanted.num_rows < part["num_records"] / 2
    batches = open_parts(source.store, "frames", [part["path"]]).to_batches(
        columns=[*KEYS, "embeddings"],
        filter=pc.field("track_id").isin(wanted.column("track_id").combine_chunks()) if few else None,
        batch_size=_BATCH_ROWS if RESOLUTIONS[source.resolution].frame_rate_hz else _BATCH_TRACKS,
        batch_readahead=2,
        fragment_readahead=1,
    )
    with explain_unreadable(source.store.table_url("frames")):
        for batch in batches:
            if batch.num_rows == 0:
                continue
            # Only the tracks of the batch's span: to hash a million ids takes longer than to read a batch.
            span = pc.min_max(batch.column("track_id")).as_py()
            is_wanted = _mark_wanted(batch, _cut_span(wanted, ids, span["min"], span["max"]))
            rows = batch if is_wanted.true_count == len(is_wanted) else batch.filter(is_wanted)  # a filter copies
            if rows.num_rows:
                keys = pa.Table.from_batches([rows.select(list(KEYS))])
                yield _make_batch(keys, rows.column("embeddings"))


def _join_tracks(batches: Iterator[VectorBatch]) -> Iterator[VectorBatch]:
    """Make one item of the rows of a long track, also where a batch ends between them."""
    waiting: VectorBatch | None = None
    for batch in batches:
        if waiting is not None:
            if waiting.keys.column("track_id")[-1] == batch.keys.column("track_id")[0]:
                last = int(_find_tracks(waiting.keys)[-1])
                waiting, unfinished = _split(waiting, last)
                batch = VectorBatch(
                    pa.concat_tables([unfinished.keys, batch.keys]),
                    np.concatenate([unfinished.lengths, batch.lengths]),
                    np.concatenate([unfinished.vectors, batch.vectors]),
                )
            if waiting.keys.num_rows:
                yield _join_rows(waiting)
        waiting = batch
    if waiting is not None:
        yield _join_rows(waiting)


def _split(batch: VectorBatch, row: int) -> tuple[VectorBatch, VectorBatch]:
    """Split a batch before one of its rows."""
    num_vectors = int(batch.lengths[:row].sum())
    return (
        VectorBatch(batch.keys[:row], batch.lengths[:row], batch.vectors[:num_vectors]),
        VectorBatch(batch.keys[row:], batch.lengths[row:], batch.vectors[num_vectors:]),
    )


def _join_rows(batch: VectorBatch) -> VectorBatch:
    """Make one item of neighbouring rows of one track; their vectors lie together as they are."""
    first = _find_tracks(batch.keys)
    if len(first) == batch.keys.num_rows:
        return batch
    return VectorBatch(batch.keys.take(pa.array(first)), np.add.reduceat(batch.lengths, first), batch.vectors)


def _find_tracks(keys: pa.Table) -> npt.NDArray[np.int64]:
    """Return the first row of each run of rows of one track."""
    ids = keys.column("track_id").to_numpy()
    return np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))


def _cut_span(wanted: pa.Table, ids: list[str], low: str | None, high: str | None) -> pa.Table:
    """Return the ``KEYS`` of the wanted tracks from one id to another; all where no ids are given."""
    first, stop = (
        (0, len(ids)) if low is None or high is None else (bisect_left(ids, low), bisect_right(ids, high))
    )
    return wanted.slice(first, stop - first).select(list(KEYS)).combine_chunks()


def _mark_wanted(rows: pa.RecordBatch, wanted: pa.Table) -> pa.BooleanArray:
    """Mark the rows that hold vectors of a wanted track's present content."""
    position = pc.index_in(rows.column("track_id"), wanted.column("track_id"))
    content = wanted.column("content_hash").take(position).combine_chunks()
    is_present = pc.fill_null(pc.equal(rows.column("content_hash"), content), False)
    return pc.and_(is_present, pc.greater(pc.fill_null(pc.list_value_length(rows.column("embeddings")), 0), 0))


def _make_batch(keys: pa.Table, embeddings: pa.Array) -> VectorBatch:
    lengths = pc.list_value_length(embeddings).to_numpy().astype(np.int64)
    values = np.asarray(pc.list_flatten(pc.list_flatten(embeddings)), np.float32)
    return VectorBatch(keys, lengths, values.reshape(int(lengths.sum()), -1))


def _read_ledger(store: StoreLocation, files: pa.Table, recipe: str, resolution: str) -> pa.Table:
    """Read what the ledger says of the tracks that have vectors at one resolution."""
    with explain_unreadable(store.table_url("tracks")):
        rows = open_parts(store, "tracks", files.column("path").to_pylist()).to_table(
            columns=[*METADATA, "resolutions"]
        )
    stored = rows.column("resolutions").combine_chunks()
    owner = pc.list_parent_indices(stored).to_numpy()
    has_it = np.zeros(rows.num_rows, np.bool_)
    has_it[owner[np.asarray(pc.equal(stored.flatten(), resolution))]] = True
    if not has_it.any():
        held = ", ".join(sorted(set(pc.unique(stored.flatten()).to_pylist()))) or "no track"
        raise NoVectorsError(
            f"expected vectors of resolution {resolution} of recipe {recipe} in the store at {store.url}, found "
            f"{held}; embed the catalog with --resolutions {resolution},… first"
        )
    rows = rows.filter(pa.array(has_it)).select(list(METADATA))
    return rows.cast(_LEDGER).sort_by("track_id").combine_chunks()


_LEDGER = pa.schema([pa.field(name, TABLES["tracks"].field(name).type) for name in METADATA])
