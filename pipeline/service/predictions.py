"""What heads say of one track, in the form in which the page shows it."""

from __future__ import annotations

from pipeline.location import StoreLocation
from pipeline.service.models import Beat, Predictions, Span, Tag
from pipeline.store.predictions import read_predictions

MAX_TAGS = 20


def describe_predictions(store: StoreLocation, track_id: str, content_hash: str) -> Predictions:
    """Return what is predicted of a track's present content; of several heads of a task the last one's.

    Args:
        store: The store.
        track_id: The track.
        content_hash: Of its present content.

    Raises:
        StorageError: The predictions cannot be read.
    """
    rows = [row for row in read_predictions(store, track_id).to_pylist() if row["content_hash"] == content_hash]
    last = {row["task"]: row["head"] for row in sorted(rows, key=lambda row: (row["event_time"], row["head"]))}
    rows = [row for row in rows if row["head"] == last[row["task"]]]
    timed = sorted((row for row in rows if row["start_s"] is not None), key=lambda row: row["start_s"])
    tags = [Tag(**row) for row in rows if row["start_s"] is None]
    return Predictions(
        tags=sorted(tags, key=lambda tag: (-tag.score, tag.label))[:MAX_TAGS],
        beats=[
            Beat(time_s=row["start_s"], is_downbeat=row["label"] == "downbeat")
            for row in timed
            if row["task"] == "beat"
        ],
        sections=[Span(**row) for row in timed if row["task"] == "structure"],
        chords=[Span(**row) for row in timed if row["task"] == "chord"],
    )
