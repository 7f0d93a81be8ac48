"""Features of annotated tracks, copied once from the store to a file on disk that is mapped into memory.

So every epoch reads rows in its own order without asking the store again, and what is held in memory is what the
operating system has room for, whatever the size of the catalog.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.errors import StorageError, UsageError
from pipeline.location import StoreLocation
from pipeline.schema import KEYS
from pipeline.store.source import Source, VectorBatch, open_source, read_vectors

Matrix = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureSet:
    """Features of some tracks, of one recipe or of several.

    Args:
        track_ids: The tracks.
        lengths: Rows of each: frames, or 1.
        firsts: For each recipe, where each track's rows begin, shape (num_recipes, num_tracks).
        vectors: For each recipe, its rows, float32 of shape (num_rows, embed_dim).
        frame_rate_hz: Rows a second; None where a track is one row.
        recipes: Recipe ids.
        resolution: Of the features.
    """

    track_ids: tuple[str, ...]
    lengths: Places
    firsts: Places
    vectors: tuple[Matrix, ...]
    frame_rate_hz: float | None
    recipes: tuple[str, ...]
    resolution: str

    @property
    def embed_dim(self) -> int:
        """Values of a row."""
        return int(self.vectors[0].shape[1])

    def take(self, tracks: Places, frames: Places) -> Matrix:
        """Return some frames of some tracks.

        Args:
            tracks: Numbers of tracks, any shape.
            frames: Frame of each, of the same shape.

        Returns:
            float32 of that shape + (embed_dim,), or + (num_recipes, embed_dim) where there are several.
        """
        rows = [
            np.asarray(vectors[first[tracks] + frames])
            for vectors, first in zip(self.vectors, self.firsts, strict=True)
        ]
        return rows[0] if len(rows) == 1 else np.stack(rows, axis=-2)

    def read(self, track: int) -> Matrix:
        """Return all rows of one track, as ``take`` does."""
        frames = np.arange(self.lengths[track])
        return self.take(np.full(len(frames), track), frames)


def from_arrays(
    track_ids: Sequence[str], matrices: Sequence[Matrix], frame_rate_hz: float | None, recipe: str, resolution: str
) -> FeatureSet:
    """Make a feature set of what is in memory already, such as features that no store has.

    Args:
        track_ids: The tracks.
        matrices: Of each, float32 of shape (num_frames, embed_dim).
        frame_rate_hz: Rows a second; None where a track is one row.
        recipe: What to call them.
        resolution: The same.
    """
    lengths = np.array([len(matrix) for matrix in matrices], np.int64)
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    vectors = np.concatenate(matrices).astype(np.float32)
    return FeatureSet(tuple(track_ids), lengths, firsts[None], (vectors,), frame_rate_hz, (recipe,), resolution)


def open_sources(store: StoreLocation, resolution: str, recipes: Sequence[str]) -> list[Source]:
    """Open one snapshot at each recipe; without any named, at the store's only one.

    Args:
        store: The store.
        resolution: Name of a resolution.
        recipes: Recipe ids; may be empty.

    Raises:
        UsageError: There is no such recipe, it has no vectors at the resolution, or it has to be named.
        StorageError: The store cannot be read.
    """
    for recipe in recipes:
        if list(recipes).count(recipe) > 1:
            raise UsageError(f"expected different recipes to mix, found {recipe} twice")
    named: Sequence[str | None] = recipes or (None,)
    sources = [open_source(store, resolution, recipe) for recipe in named]
    if len({source.store_version for source in sources}) > 1:  # a run closed in between
        return open_sources(store, resolution, recipes)
    return sources


def find_common_tracks(sources: Sequence[Source]) -> pa.Table:
    """Return the ledger's rows of the tracks that every source has vectors of, of one content, by track_id."""
    ledger = sources[0].ledger
    for source in sources[1:]:
        place = pc.index_in(ledger.column("track_id"), source.ledger.column("track_id"))
        content = source.ledger.column("content_hash").take(place)
        ledger = ledger.filter(pc.fill_null(pc.equal(ledger.column("content_hash"), content), False))
    return ledger


def copy_features(
    sources: Sequence[Source], wanted: pa.Table, whole_tracks: bool, scratch: str | None
) -> FeatureSet:
    """Copy the features of some tracks out of the store.

    Args:
        sources: One snapshot at each recipe.
        wanted: Rows of ``find_common_tracks``.
        whole_tracks: Whether a track is to be one row: the mean of its frames.
        scratch: Folder for the copy, which goes when it is no longer used; by default the system's.

    Raises:
        StorageError: The store cannot be read, or the copy not be written.
    """
    copies = [_copy(source, wanted, whole_tracks, scratch) for source in sources]
    lengths = np.stack([of_copy for _, _, of_copy in copies])
    if (lengths != lengths[0]).any():
        raise UsageError(
            "expected recipes with the same frames of every track, found other numbers of frames in "
            f"{' and '.join(source.recipe for source in sources)}; mix recipes of one sample rate and pooling"
        )
    has_rows = lengths[0] > 0
    rate_hz = None if whole_tracks else RESOLUTIONS[sources[0].resolution].frame_rate_hz
    ids = [
        track_id for track_id, kept in zip(wanted.column("track_id").to_pylist(), has_rows, strict=True) if kept
    ]
    return FeatureSet(
        tuple(ids),
        lengths[0][has_rows],
        np.stack([firsts for _, firsts, _ in copies])[:, has_rows],
        tuple(vectors for vectors, _, _ in copies),
        rate_hz,
        tuple(source.recipe for source in sources),
        sources[0].resolution,
    )


def iterate_tracks(source: Source, wanted: pa.Table) -> Iterator[tuple[str, Matrix]]:
    """Stream tracks out of a store, each once, with its frames.

    Args:
        source: One snapshot at one recipe.
        wanted: ``KEYS`` of the tracks, sorted by track_id.
    """
    seen: set[str] = set()
    paths = source.parts.column("path").to_pylist()
    for batch in read_vectors(source, paths, wanted.select(list(KEYS))):
        yield from ((name, matrix) for name, matrix in _split(batch) if not (name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def average_rows(matrix: Matrix) -> Matrix:
    """Return the mean of a track's frames, float32 of shape (1, embed_dim)."""
    mean: Matrix = matrix.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return mean


def _split(batch: VectorBatch) -> Iterator[tuple[str, Matrix]]:
    stops = np.cumsum(batch.lengths)
    for name, stop, length in zip(batch.keys.column("track_id").to_pylist(), stops, batch.lengths, strict=True):
        yield name, batch.vectors[stop - length : stop]


def _copy(
    source: Source, wanted: pa.Table, whole_tracks: bool, scratch: str | None
) -> tuple[Matrix, Places, Places]:
    """Write a recipe's features to a file; return its rows, and where each track's begin and how many they are."""
    place = {track_id: number for number, track_id in enumerate(wanted.column("track_id").to_pylist())}
    firsts, lengths = np.zeros(len(place), np.int64), np.zeros(len(place), np.int64)
    num_rows, embed_dim = 0, 1
    try:
        with tempfile.TemporaryFile(dir=scratch, prefix="musicfm-features-") as file:
            for track_id, matrix in iterate_tracks(source, wanted):
                if whole_tracks:
                    matrix = average_rows(matrix)
                firsts[place[track_id]], lengths[place[track_id]] = num_rows, len(matrix)
                num_rows, embed_dim = num_rows + len(matrix), matrix.shape[1]
                file.write(np.ascontiguousarray(matrix, np.float32).data)
            file.flush()
            if num_rows == 0:
                return np.empty((0, embed_dim), np.float32), firsts, lengths
            # The mapping keeps the file, which has no name any more; both go together.
            rows: Any = np.memmap(file, np.float32, "r", shape=(num_rows, embed_dim))
            return rows, firsts, lengths
    except OSError as error:
        raise StorageError(
            f"cannot keep a copy of the features in {scratch or tempfile.gettempdir()}: {error}; name a folder "
            "with room with --scratch"
        ) from error
