"""What the service's answers look like: the schemas of its OpenAPI document."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pydantic import BaseModel, Field

from pipeline.index.manifest import IndexManifest
from pipeline.schema import LABELS
from pipeline.search.hits import Hit
from pipeline.service.catalog import TrackNames
from pipeline.service.similarity import SelfSimilarity


class Track(BaseModel):
    """A track as the catalog names it."""

    track_id: str
    title: str | None = None
    artist: str | None = None
    album: str | None = None
    genre: str | None = None
    track_number: int | None = None
    year: int | None = None
    x: float | None = Field(default=None, description="Where it lies on the map")
    y: float | None = None


class TrackFacts(Track):
    """What is known of one track."""

    duration_s: float | None = None
    audio_url: str | None = Field(default=None, description="Its file; needs no token, and holds for some hours")


class TrackList(BaseModel):
    """Some tracks."""

    tracks: list[Track]


class MapOfTracks(BaseModel):
    """Tracks to draw; a large catalog is thinned out."""

    num_tracks: int = Field(description="How many there are, in the box that was asked for")
    tracks: list[Track]


class IndexFacts(BaseModel):
    """The version of an index that answered."""

    recipe: str
    resolution: str
    kind: str
    version: str
    store_version: int = Field(description="Version of the table tracks that it was made from")
    num_tracks: int
    num_vectors: int


class ServiceFacts(BaseModel):
    """What this service can do."""

    indexes: list[IndexFacts] = Field(description="The first one answers where no resolution is named")
    columns: list[str] = Field(description="What where may name")
    can_query_audio: bool
    max_upload_bytes: int


class Similarity(BaseModel):
    """A track against itself: cosine similarity of every two moments."""

    num_bins: int
    bin_s: float = Field(description="Seconds that a bin covers")
    duration_s: float
    low: float = Field(description="The cosine that byte 0 stands for")
    high: float = Field(description="The cosine that byte 255 stands for")
    values: str = Field(description="Base64 of num_bins × num_bins bytes, row by row")


class Tag(BaseModel):
    """What a head says of a whole track."""

    task: str = Field(description="tagging, classification, key or regression")
    label: str
    score: float = Field(description="A probability; of the task regression the number itself")


class Beat(BaseModel):
    """One beat."""

    time_s: float
    is_downbeat: bool


class Span(BaseModel):
    """What a head says of a part of a track."""

    label: str
    score: float
    start_s: float
    end_s: float


class Predictions(BaseModel):
    """What heads say of a track; all empty where none was applied."""

    tags: list[Tag] = Field(description="The likeliest first")
    beats: list[Beat]
    sections: list[Span]
    chords: list[Span]


class Query(BaseModel):
    """What was asked."""

    track_id: str | None = None
    file: str | None = None
    duration_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None


class Result(Track):
    """One track that was found."""

    rank: int
    score: float = Field(description="Cosine of whole tracks, fit of a passage for moments; higher is nearer")
    start_s: float | None = Field(default=None, description="The matching moment, where the index has moments")
    end_s: float | None = None
    near_duplicate: bool


class Answer(BaseModel):
    """What was found."""

    query: Query
    index: IndexFacts
    results: list[Result]
    similarity: Similarity | None = Field(default=None, description="Of the file that was sent")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
    reason: str | None = Field(default=None, description="Why a file cannot be embedded, in one word")


def make_track(names: TrackNames, position: int) -> Track:
    """Return the track at a position, with its place on the map."""
    row = names.tracks.slice(position, 1).select(["track_id", *LABELS]).to_pylist()[0]
    x, y = names.map_point(position) or (None, None)
    return Track(**row, x=x, y=y)


def list_results(hits: Sequence[Hit], names: TrackNames) -> list[Result]:
    """Return hits with their places on the map, which is the first index's; the one that answered may be newer."""
    results = []
    for hit in hits:
        place = names.locate(hit.track_id)
        x, y = (place is not None and names.map_point(place)) or (None, None)
        fields = {name: getattr(hit, name) for name in Result.model_fields if name not in ("x", "y")}
        results.append(Result(**fields, x=x, y=y))
    return results


def describe_index(manifest: IndexManifest) -> IndexFacts:
    """Return what an answer says of the index that it comes from."""
    return IndexFacts(
        recipe=manifest.recipe,
        resolution=manifest.resolution,
        kind=manifest.kind,
        version=manifest.version_id,
        store_version=manifest.store_version,
        num_tracks=manifest.num_tracks,
        num_vectors=manifest.num_vectors,
    )


def encode_similarity(matrix: SelfSimilarity) -> Similarity:
    """Return a matrix in a byte a value, as text."""
    values, low, high = matrix.as_bytes()
    return Similarity(
        num_bins=len(matrix.values),
        bin_s=matrix.bin_s,
        duration_s=matrix.duration_s,
        low=low,
        high=high,
        values=base64.b64encode(values).decode(),
    )
