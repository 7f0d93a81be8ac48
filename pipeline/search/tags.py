"""Tags: what heads have predicted of the tracks of an index, for its filters."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.location import StoreLocation
from pipeline.store.predictions import read_scores


def read_tag(store: StoreLocation, tracks: pa.Table, label: str) -> pa.Array:
    """Return the score of a label for each track of an index, of the very content that the index has.

    Args:
        store: The store.
        tracks: track_id and content_hash.
        label: A tag, class or key that a head predicts.

    Returns:
        float32, null where no head has predicted the track.

    Raises:
        UsageError: No head has predicted such a label.
        StorageError: The predictions cannot be read.
    """
    rows = read_scores(store, label)
    place = pc.index_in(tracks.column("track_id"), rows.column("track_id").combine_chunks())
    is_same = pc.equal(rows.column("content_hash").take(place), tracks.column("content_hash"))
    scores = pc.if_else(is_same, rows.column("score").take(place), None)
    return scores.combine_chunks()
