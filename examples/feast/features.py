"""Feast feature views over the store's tracks with their global vectors, and over its predictions.

A row is a recipe and a track, so both are entities: several recipes are served side by side. Feast reads the live
rows of ``tracks``, joined with their vectors in ``frames``, from the Parquet copy that ``serve_tracks.py`` makes:
of Delta Lake tables it reads only what DuckDB's extension reads, which has to be downloaded.

Of ``predictions`` a row here is a head and a track, with all that the head says of it.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, String

LIVE_TRACKS = "data/tracks.parquet"
LIVE_PREDICTIONS = "data/predictions.parquet"

recipe = Entity(name="recipe", join_keys=["recipe"], value_type=ValueType.STRING)
track = Entity(name="track", join_keys=["track_id"], value_type=ValueType.STRING)
head = Entity(name="head", join_keys=["head"], value_type=ValueType.STRING)

tracks = FeatureView(
    name="tracks",
    entities=[recipe, track],
    # The time is when this content was embedded.
    source=FileSource(name="live_tracks", path=LIVE_TRACKS, timestamp_field="event_time"),
    schema=[
        Field(name="recipe", dtype=String),
        Field(name="track_id", dtype=String),
        Field(name="content_hash", dtype=String),
        Field(name="title", dtype=String),
        Field(name="artist", dtype=String),
        Field(name="genre", dtype=String),
        Field(name="duration_s", dtype=Float64),
        Field(name="rms", dtype=Float32),
        Field(name="embedding", dtype=Array(Float32)),
    ],
    ttl=timedelta(0),  # what is known of a recording does not grow old
    online=True,
)

predictions = FeatureView(
    name="predictions",
    entities=[head, track],
    source=FileSource(name="live_predictions", path=LIVE_PREDICTIONS, timestamp_field="event_time"),
    schema=[
        Field(name="head", dtype=String),
        Field(name="track_id", dtype=String),
        Field(name="task", dtype=String),
        Field(name="labels", dtype=Array(String)),  # in the order of their times where they have some
        Field(name="scores", dtype=Array(Float32)),
        Field(name="starts_s", dtype=Array(Float64)),  # empty where it is of the whole track
    ],
    ttl=timedelta(0),
    online=True,
)
