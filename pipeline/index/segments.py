"""Segments: half-precision unit vectors in files that are written once and then only mapped."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.index.codes import (
    Axes,
    Matrix,
    Rows,
    add_codes,
    deserialise_codes,
    make_rows,
    map_index,
    serialise_codes,
    write_index,
)
from pipeline.index.files import IndexFile, IndexLocation, fetch_file, upload_file, working_folder
from pipeline.index.space import Space, place_vectors
from pipeline.store.source import Source, VectorBatch, read_vectors

SEGMENT_BYTES = 256 * 2**20  # held in memory while it is written
CHUNK_ROWS = 8192
OWNERS = pa.schema(
    [
        pa.field("track_id", pa.string()),
        pa.field("content_hash", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("num_vectors", pa.int64()),
    ]
)


@dataclass(frozen=True)
class WrittenSegments:
    """What one pass over some vectors left in the index's folder.

    Args:
        files: Segments, in the order of their rows.
        owners: ``OWNERS``: which rows are whose, counted from the first file's first.
    """

    files: tuple[IndexFile, ...]
    owners: pa.Table

    @property
    def num_rows(self) -> int:
        """Vectors in all files."""
        return sum(file.num_rows for file in self.files)


def write_shard(
    paths: Sequence[str], source: Source, location: IndexLocation, space: Space | None, cache: str | None
) -> WrittenSegments:
    """Copy the live vectors of some parts of the store into segments of the index.

    Args:
        paths: Parts of ``source``.
        source: The snapshot.
        location: The index.
        space: Of the index.
        cache: Cache folder.

    Raises:
        StorageError: A part cannot be read or a segment not be written.
    """
    with working_folder(location, cache) as folder:
        return write_segments(read_vectors(source, paths, source.ledger), location, folder, space, cache)


def write_segments(
    batches: Iterable[VectorBatch],
    location: IndexLocation,
    folder: str,
    space: Space | None = None,
    cache: str | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> WrittenSegments:
    """Write vectors as segments of the index, in bounded memory.

    Args:
        batches: The vectors; those of one track lie together.
        location: The index.
        folder: For files that are not finished.
        space: Of the index: vectors are written as it places them.
        cache: Cache folder.
        segment_bytes: A file is closed once it is this large.

    Raises:
        StorageError: A segment cannot be written.
    """
    segment: Any = None
    files: list[IndexFile] = []
    owners = [OWNERS.empty_table()]
    first_row = 0
    for batch in batches:
        vectors = place_vectors(batch.vectors, space)
        segment = segment or make_rows(vectors.shape[1])
        segment.add(vectors)
        starts = first_row + np.cumsum(batch.lengths) - batch.lengths
        owners.append(pa.table([*batch.keys.columns, pa.array(starts), pa.array(batch.lengths)], schema=OWNERS))
        first_row += len(batch.vectors)
        if segment.ntotal * segment.code_size >= segment_bytes:
            files.append(_finish_segment(segment, location, folder, cache))
            segment = None
    if segment is not None:
        files.append(_finish_segment(segment, location, folder, cache))
    return WrittenSegments(tuple(files), pa.concat_tables(owners))


def join_segments(shards: Iterable[WrittenSegments]) -> WrittenSegments:
    """Lay shards one after another; of a track that two of them hold, the first is kept."""
    files: list[IndexFile] = []
    owners = [OWNERS.empty_table()]
    first_row = 0
    for shard in shards:
        files += shard.files
        rows = pa.array(shard.owners.column("first_row").to_numpy() + first_row)
        owners.append(shard.owners.set_column(2, OWNERS.field(2), rows))
        first_row += shard.num_rows
    joined = pa.concat_tables(owners).combine_chunks()
    _, first = np.unique(joined.column("track_id").to_numpy(zero_copy_only=False), return_index=True)
    if len(first) < joined.num_rows:
        joined = joined.take(np.sort(first))
    return WrittenSegments(tuple(files), joined)


def iterate_rows(segment: Any) -> Iterator[tuple[int, Matrix]]:
    """Yield a mapped segment's vectors by chunks, each with its first row."""
    for first in range(0, int(segment.ntotal), CHUNK_ROWS):
        yield first, segment.reconstruct_n(first, min(CHUNK_ROWS, int(segment.ntotal) - first))


def sample_rows(segments: Sequence[Any], number: int, seed: int = 0) -> Matrix:
    """Return vectors of mapped segments, chosen at random, float32 of shape (at most number, embed_dim)."""
    sizes = [int(segment.ntotal) for segment in segments]
    chosen = np.sort(np.random.default_rng(seed).choice(sum(sizes), min(number, sum(sizes)), replace=False))
    ends = np.cumsum(sizes)
    groups = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    firsts = ends - sizes
    parts = [
        segment.reconstruct_batch(rows - first)
        for segment, rows, first in zip(segments, groups, firsts, strict=True)
    ]
    return np.concatenate(parts)


def fit_map(axes: Axes) -> Matrix:
    """Return what a two-dimensional map is drawn by: the mean and two principal axes, shape (3, embed_dim)."""
    first = axes.directions[:2]
    # Else the signs are chance.
    first = first * np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])[:, None]
    projection = np.zeros((3, len(axes.mean)), np.float32)
    projection[0], projection[1 : 1 + len(first)] = axes.mean, first
    return projection


def place_rows(file: IndexFile, location: IndexLocation, projection: Matrix, cache: str | None) -> Matrix:
    """Place a segment's vectors on the map, float32 of shape (num_rows, 2)."""
    segment = map_index(fetch_file(location, file, cache))
    offset = projection[1:] @ projection[0]
    placed = [rows @ projection[1:].T - offset for _, rows in iterate_rows(segment)]
    return np.concatenate(placed).astype(np.float32)


def encode_segment(
    task: tuple[IndexFile, int], location: IndexLocation, trained: bytes, cache: str | None
) -> bytes:
    """Encode a segment's vectors.

    Args:
        task: The segment and the index's row that its first vector is.
        location: The index.
        trained: Serialised codes without rows.
        cache: Cache folder.

    Returns:
        The same codes, filled with this segment alone, serialised.

    Raises:
        StorageError: The segment cannot be read.
    """
    file, first_row = task
    codes = deserialise_codes(trained)
    for first, rows in iterate_rows(map_index(fetch_file(location, file, cache))):
        add_codes(codes, rows, first_row + first)
    return serialise_codes(codes)


def mean_by_track(values: Matrix, first_row: Rows, num_vectors: Rows) -> Matrix:
    """Average rows over the tracks that own them, float32 of shape (num_tracks, columns)."""
    if len(first_row) == 0:
        return np.empty((0, values.shape[1]), np.float32)
    total = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])
    return np.asarray((total[first_row + num_vectors] - total[first_row]) / num_vectors[:, None], np.float32)


def _finish_segment(segment: Any, location: IndexLocation, folder: str, cache: str | None) -> IndexFile:
    path = os.path.join(folder, f"{uuid.uuid4().hex}.rows")
    write_index(segment, path)
    return upload_file(location, path, int(segment.ntotal), cache)
