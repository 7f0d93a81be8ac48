"""Sections: a part of a track as a query, from the frames of the snapshot that an index was made from."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import StoreFormatError, UsageError
from pipeline.index.codes import Matrix
from pipeline.index.vector_index import VectorIndex
from pipeline.store.read import FeatureStore

SECTION_RESOLUTIONS = ("25hz", "50hz", "16hz", "8hz", "0.5hz")  # what a section's vector is averaged from


def open_snapshot(index: VectorIndex) -> FeatureStore:
    """Open the snapshot that an index was made from.

    Raises:
        StorageError: It cannot be read.
        StoreFormatError: The store has been brought up to date since, and the index has not.
    """
    store = index.location.store
    try:
        return FeatureStore(store.url, index.manifest.store_version, store.options)
    except StoreFormatError as error:
        raise StoreFormatError(
            f"the index at {index.location.url} is of a snapshot in an older format, whose frames are not read: "
            "bring it up to date with musicfm index"
        ) from error


def average_section(
    index: VectorIndex, reader: FeatureStore, track_id: str, start_s: float | None, end_s: float | None
) -> Matrix:
    """Return the mean of a section's frames in the index's own snapshot: its global vector, placed.

    Args:
        index: Of whole tracks.
        reader: Its snapshot.
        track_id: Whose section.
        start_s: Where it begins; None for the start.
        end_s: Where it ends; None for the end.

    Returns:
        float32 of shape (1, embed_dim), in the index's space.

    Raises:
        UsageError: The store has no frames of the track.
        StorageError: They cannot be read.
    """
    recipe = index.manifest.recipe
    row = reader.tracks(["resolutions"], pc.field("track_id") == track_id, recipe)
    stored = row.column("resolutions")[0].as_py() if row.num_rows else []
    resolution = next((name for name in SECTION_RESOLUTIONS if name in stored), None)
    if resolution is None:
        raise UsageError(
            f"a section needs stored frames, and the store has none of {track_id}; embed the catalog with "
            f"--resolutions {SECTION_RESOLUTIONS[-1]},global, or search the whole track"
        )
    frames = reader.frames([track_id], resolution, start_s, end_s, recipe).column("embeddings")
    vectors = np.asarray(pc.list_flatten(pc.list_flatten(frames)), np.float32)
    return index.place(vectors.reshape(-1, index.input_dim).mean(axis=0, keepdims=True))
