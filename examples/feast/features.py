"""A Feast feature view over the store's table ``tracks``.

A row of ``tracks`` is a recipe and a track, so both are entities: several recipes are served side by side. Feast
reads the table's live rows from the Parquet copy that ``serve_tracks.py`` makes: of Delta Lake tables it reads
only what DuckDB's extension reads, which has to be downloaded.
"""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, String

LIVE_TRACKS = "data/tracks.parquet"

recipe = Entity(name="recipe", join_keys=["recipe"], value_type=ValueType.STRING)
track = Entity(name="track", join_keys=["track_id"], value_type=ValueType.STRING)

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
