"""The rows that travel and the tables that stay, as Arrow schemas; every column with its unit.

One row is one track from the catalog to the ledger. A stage adds or replaces columns and never looks ahead.
"""

from __future__ import annotations

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")

FEATURE_LIST = pa.list_(pa.float32())
"""One embedding. Delta Lake has neither half floats nor fixed-size lists that every reader opens."""

CATALOG = pa.schema(
    [
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),  # null: the catalog names the track, but no audio was found for it
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("modified_time", TIMESTAMP),
        pa.field("title", pa.string()),
        pa.field("artist", pa.string()),
        pa.field("album", pa.string()),
        pa.field("genre", pa.string()),
        pa.field("track_number", pa.int32()),  # on its album
        pa.field("year", pa.int32()),
    ]
)
"""What a catalog knows of each track before anything is read."""

LABELS = ("title", "artist", "album", "genre", "track_number", "year")
"""Columns that a file's own tags fill where the catalog says nothing."""

PLAN = pa.schema(
    [
        *CATALOG,
        pa.field("wanted", pa.list_(pa.string()), nullable=False),  # every "recipe/resolution" of the run
        pa.field("held", pa.list_(pa.string()), nullable=False),  # "recipe/resolution@content_hash" in the ledger
        pa.field("stored", pa.list_(pa.string())),  # the same of ``frames``, live or dead
        pa.field("owner_uri", pa.string()),  # of the stored track, where it is of another file than this one
    ]
)
"""A catalog row that has to be looked at.

Once its bytes are hashed, ``wanted`` loses what is ``held`` of them. What is merely ``stored`` (the content of a
track that changed and changed back, or left and came back) is computed for the ledger's sake, not written twice.
"""

FAILURE_FIELDS = [
    pa.field("stage", pa.string()),
    pa.field("error_type", pa.string()),
    pa.field("error_message", pa.string()),
]

SOURCE_FIELDS = [
    pa.field("content_hash", pa.string()),  # SHA-256 of the file's bytes, hexadecimal
    pa.field("codec", pa.string()),
    pa.field("source_sample_rate_hz", pa.int32()),
    pa.field("num_channels", pa.int32()),
    pa.field("duration_s", pa.float64()),
    pa.field("rms", pa.float32()),  # of the mono 24 kHz waveform, full scale 1
    pa.field("peak", pa.float32()),  # of the source channels, full scale 1
    pa.field("clipped_share", pa.float32()),  # of source samples at or over full scale
    pa.field("silent_share", pa.float32()),  # of the waveform's 40 ms frames under -60 dBFS
]

DECODED = pa.schema([*PLAN, *SOURCE_FIELDS, pa.field("waveform", FEATURE_LIST), *FAILURE_FIELDS])
"""A plan row with its mono float32 waveform at 24 kHz, or with the reason why there is none."""

FEATURES = pa.list_(
    pa.struct(
        [
            pa.field("wanted", pa.list_(pa.string())),  # "recipe/resolution": all that is pooled from these values
            pa.field("frame_rate_hz", pa.float64()),  # 25, or that of what is wanted where they are pooled already
            pa.field("num_frames", pa.int32()),
            # num_frames × embed_dim, row by row: hours of several layers are more than a list's offsets count
            pa.field("values", pa.large_list(pa.float32())),
        ]
    )
)
"""A track's features on their way from the model: whichever is less, its frames or what is pooled from them."""

EMBEDDED = pa.schema(
    [
        *PLAN,
        *SOURCE_FIELDS,
        pa.field("num_frames_25hz", pa.int32()),
        pa.field("features", FEATURES),
        *FAILURE_FIELDS,
    ]
)
"""A decoded row with its features in place of its waveform."""

PART = pa.struct(
    [
        pa.field("recipe", pa.string()),
        pa.field("resolution", pa.string()),
        pa.field("path", pa.string()),  # relative to the table
        pa.field("size_bytes", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("min_track_id", pa.string()),
        pa.field("max_track_id", pa.string()),
    ]
)

UNCHANGED = pa.schema(
    [*CATALOG, pa.field("content_hash", pa.string()), pa.field("held", pa.list_(pa.string()))]  # as in PLAN
)
"""Tracks whose bytes were read again and are the store's: under this id, or, where not ``held``, under another."""

RESULTS = pa.schema(
    [
        pa.field("parts", pa.list_(PART)),  # of `frames`: written, not yet committed
        pa.field("tracks", pa.binary()),  # Arrow IPC stream of TRACKS rows
        pa.field("failures", pa.binary()),  # Arrow IPC stream of FAILURES rows, one per wanted recipe
        pa.field("unchanged", pa.binary()),  # Arrow IPC stream of UNCHANGED rows
        pa.field("refusal", pa.string()),  # null, or why the store took nothing: the run cannot go on
    ]
)
"""What one write task tells the driver: a single small row, whatever the size of what it wrote."""

KEYS = ("track_id", "content_hash")
"""A track and what it holds: rows of ``frames`` are live while ``tracks`` has the same."""

TRACKS = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        *CATALOG,
        *SOURCE_FIELDS,
        pa.field("num_frames_25hz", pa.int32()),
        pa.field("resolutions", pa.list_(pa.string())),  # what `frames` holds of this track and content
        pa.field("event_time", TIMESTAMP),  # when this content was embedded
        pa.field("run_id", pa.string()),
    ]
)
"""Table ``tracks``, partitioned by ``recipe``: the ledger. A track is in the store when it is here.

It holds facts alone, for a change to some rows writes the files that hold them anew (docs/decisions/0035).
"""

FRAMES = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("resolution", pa.string(), nullable=False),
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("start_frame", pa.int32()),  # of the track: 0, and more in the later rows of a long one
        pa.field("event_time", TIMESTAMP),
        pa.field("num_frames", pa.int32()),  # of the row
        pa.field("frame_rate_hz", pa.float64()),  # null: of the resolution ``global``, one vector a track
        pa.field("embeddings", pa.list_(FEATURE_LIST)),  # num_frames × embed_dim
    ]
)
"""Table ``frames``, by ``recipe`` and ``resolution``: facts, live while ``tracks`` names their hash.

A row holds some minutes of a track (``store.segments``), so nearly every track is one row; those of a longer one
stand one after the other in one file.
"""

FAILURES = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("modified_time", TIMESTAMP),
        pa.field("content_hash", pa.string()),
        *FAILURE_FIELDS,
        pa.field("event_time", TIMESTAMP),
        pa.field("run_id", pa.string()),
    ]
)
"""Table ``failures``: one row per recipe and track that could not be embedded, as of its last try."""

RECIPES = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("definition", pa.string()),  # JSON: everything that was hashed into the recipe id
        pa.field("checkpoint", pa.string()),  # the name or URL that it was first called by
        pa.field("created_time", TIMESTAMP),
    ]
)
"""Table ``recipes``: what each recipe id stands for."""

WITHHELD = pa.schema(
    [
        pa.field("track_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string()),  # null where none was known
        pa.field("reason", pa.string()),
        pa.field("event_time", TIMESTAMP),
        pa.field("run_id", pa.string()),
    ]
)
"""Table ``withheld``: what was taken down, by id and by content, so that no run brings it back."""

PARTITION_COLUMNS: dict[str, list[str]] = {
    "tracks": ["recipe"],
    "frames": ["recipe", "resolution"],
    "failures": [],
    "recipes": [],
    "withheld": [],
}

TABLES: dict[str, pa.Schema] = {
    "tracks": TRACKS,
    "frames": FRAMES,
    "failures": FAILURES,
    "recipes": RECIPES,
    "withheld": WITHHELD,
}
