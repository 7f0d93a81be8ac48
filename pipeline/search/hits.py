"""What a search finds: matches while it goes on, hits when it is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One result.

    Args:
        rank: From 1.
        track_id: The track.
        score: Higher is nearer, at most 1: the cosine of global vectors in the index's space, or how well the
            passage fits.
        title: As the catalog or the file has it; likewise artist, album, genre, track number and year.
        artist: See title.
        album: See title.
        genre: See title.
        track_number: See title.
        year: See title.
        start_s: Where the passage begins in the track; None for global vectors, unless it was recognised.
        end_s: Where it ends.
        near_duplicate: Whether it is likely the very recording that was asked with. One that is recognised by how
            the music changes comes first whatever its cosine, with the passage that was heard.
    """

    rank: int
    track_id: str
    score: float
    title: str | None
    artist: str | None
    album: str | None
    genre: str | None
    track_number: int | None
    year: int | None
    start_s: float | None
    end_s: float | None
    near_duplicate: bool


@dataclass(frozen=True)
class Match:
    """A track's row in the index, its score, and the passage in which it fits."""

    position: int
    score: float
    passage_s: tuple[float, float] | None = None
    is_recognised: bool = False
