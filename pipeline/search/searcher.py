"""Search: what sounds like this track, like this moment of it, or like these vectors.

Whole tracks are ranked by the cosine of their global vectors in the index's space. A hit of moments is a track and
the span in which it fits the query best: ``candidates`` are named frame by frame, ``align`` compares passages.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.errors import StorageError, UsageError
from pipeline.index.codes import Mask, Matrix, normalise_rows
from pipeline.index.space import Space, fit_whitening
from pipeline.index.vector_index import VectorIndex
from pipeline.schema import LABELS
from pipeline.search.align import align_passage
from pipeline.search.candidates import find_candidates
from pipeline.search.filters import SameColumn, differs_from, filter_tracks
from pipeline.search.hits import Hit, Match
from pipeline.search.near_duplicates import choose_near_duplicate_score
from pipeline.search.recognise import MOMENTS, EmbeddedFile, read_moments, recognise
from pipeline.search.sections import average_section, open_snapshot
from pipeline.search.shown import ShownTracks
from pipeline.search.tags import read_tag
from pipeline.store.read import FeatureStore
from pipeline.store.segments import find_frames
from pipeline.store.withheld import WithheldWatch

logger = logging.getLogger(__name__)

WHITENING_SAMPLE = 4096
MAX_COMPARED_TRACKS = 50  # with a clip, moment by moment, after a search by its global vector
MAX_COMPARED_S = 100_000.0  # of music: some 200 MB of frames

FILTER_COLUMNS = ("track_id", "content_hash", "uri", *LABELS, "duration_s")


class Searcher:
    """Searches one version of an index. Searches may run in any number of threads at once.

    Args:
        index: The index.
        near_duplicate_score: Scores from here on are marked as near-duplicates; by default
            ``choose_near_duplicate_score`` of the index.
        withheld: What is taken down in the store: no search returns it. By default looked up.
    """

    def __init__(
        self,
        index: VectorIndex,
        near_duplicate_score: float | None = None,
        withheld: WithheldWatch | None = None,
    ) -> None:
        self.index = index
        watch = withheld or WithheldWatch(index.location.store)
        self.shown = ShownTracks(index.tracks.column("track_id"), watch)
        self._near_duplicate_score = near_duplicate_score
        self.frame_rate_hz = RESOLUTIONS[index.manifest.resolution].frame_rate_hz

    @cached_property
    def near_duplicate_score(self) -> float:
        """Score from which on a hit is marked as a near-duplicate."""
        if self._near_duplicate_score is not None:
            return self._near_duplicate_score
        return choose_near_duplicate_score(self.index)

    @cached_property
    def _reader(self) -> FeatureStore:
        """The snapshot that the index was made from."""
        return open_snapshot(self.index)

    @cached_property
    def whitening(self) -> Space:
        """The space in which passages are compared, fitted to a sample of the index's own moments."""
        live = np.flatnonzero(self.index.live)
        chosen = np.random.default_rng(0).choice(live, min(len(live), WHITENING_SAMPLE), replace=False)
        return fit_whitening(self.index.vectors_at(np.sort(chosen)))

    def search_track(
        self,
        track_id: str,
        k: int = 10,
        start_s: float | None = None,
        end_s: float | None = None,
        where: str | None = None,
        exclude_same: SameColumn | None = None,
    ) -> list[Hit]:
        """Find what sounds like a track of the index, or like a section of it; the track itself is left out.

        Args:
            track_id: The track.
            k: How many hits.
            start_s: The section's start.
            end_s: The section's end.
            where: SQL expression over ``FILTER_COLUMNS`` that hits must meet.
            exclude_same: Leave out tracks of the same artist, or of the same album.

        Raises:
            UsageError: No such track, section or column, or the expression is none.
            StorageError: The section's frames cannot be read from the store.
        """
        position = self.find_shown(track_id)
        allowed = self.select_tracks(where)
        allowed[position] = False
        if exclude_same is not None:
            allowed &= differs_from(self.index.tracks, position, exclude_same)
        vectors = self._read_query(position, track_id, start_s, end_s)
        if not len(vectors):
            raise UsageError(
                f"the index has no vectors of {track_id} there; search the whole track, or another one"
            )
        return self.search_placed(vectors, k, allowed)

    def search_vectors(
        self, vectors: Matrix, k: int = 10, where: str | None = None, exclude_track: str | None = None
    ) -> list[Hit]:
        """Find what sounds like given vectors, such as those of ``AudioQuery.embed``.

        Args:
            vectors: float32 of shape (num_frames, embed_dim), in order of time; one row for global vectors.
            k: How many hits.
            where: SQL expression over ``FILTER_COLUMNS`` that hits must meet.
            exclude_track: Leave this track out.

        Raises:
            UsageError: The vectors have another shape, or no such track or column, or the expression is none.
        """
        embed_dim = self.index.input_dim
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != embed_dim:
            raise UsageError(f"expected vectors of shape (num_frames, {embed_dim}), found {vectors.shape}")
        if self.frame_rate_hz is None and len(vectors) != 1:
            raise UsageError(f"expected one global vector, found {len(vectors)} vectors")
        allowed = self.select_tracks(where)
        if exclude_track is not None:
            allowed[self.index.find_track(exclude_track)] = False
        return self.search_placed(self.index.place(vectors), k, allowed)

    def search_file(self, file: EmbeddedFile, k: int = 10, where: str | None = None) -> list[Hit]:
        """Find what sounds like a file; the recording that it was cut out of comes first.

        Args:
            file: From ``AudioQuery.embed``.
            k: How many hits.
            where: SQL expression over ``FILTER_COLUMNS`` that hits must meet.

        Raises:
            UsageError: The vectors are of another model, or no such column, or the expression is none.
        """
        if file.moments is None or self.frame_rate_hz is not None:
            return self.search_vectors(file.vectors, k, where)
        _check_number(k)
        vectors = self.index.place(file.vectors)
        matches = self._match_globals(vectors, max(k, MAX_COMPARED_TRACKS), self.select_tracks(where))
        recognised = self._recognise(file.moments, matches[:MAX_COMPARED_TRACKS])
        known = {match.position for match in recognised}
        return self._list_hits(recognised + [match for match in matches if match.position not in known], k)

    def find_shown(self, track_id: str) -> int:
        """Return a track's row of the index; a UsageError says that it is not there, or taken down."""
        position = self.index.find_track(track_id)
        if not self.shown.mark()[position]:
            raise UsageError(f"the track {track_id!r} was taken down; search for another one")
        return position

    def holds_content(self, data: bytes) -> bool:
        """Say whether the index has a track of exactly these bytes."""
        content_hash = hashlib.sha256(data).hexdigest()
        return bool(pc.any(pc.equal(self.index.tracks.column("content_hash"), content_hash)).as_py())

    def select_tracks(self, where: str | None) -> Mask:
        """Mark the tracks that meet an expression; all have vectors.

        Args:
            where: SQL expression over ``FILTER_COLUMNS`` and ``tag('…')``; None for all tracks.

        Raises:
            UsageError: It is no expression, or names other columns.
        """
        allowed: Mask = (self.index.tracks.column("num_vectors").to_numpy() > 0) & self.shown.mark()
        if where is None:
            return allowed
        tracks, store = self.index.tracks, self.index.location.store
        return allowed & filter_tracks(tracks, where, FILTER_COLUMNS, partial(read_tag, store, tracks))

    def _read_query(self, position: int, track_id: str, start_s: float | None, end_s: float | None) -> Matrix:
        """Return a track's vectors, or those of a section of it.

        Raises:
            UsageError: There is no such section.
            StorageError: Its frames cannot be read.
        """
        if start_s is None and end_s is None:
            return self.index.vectors_of(position)
        first_s = 0.0 if start_s is None else start_s
        duration_s = self.index.tracks.column("duration_s")[position].as_py() or math.inf
        if not 0 <= first_s < min(duration_s, math.inf if end_s is None else end_s):
            end = "its end" if end_s is None else f"{end_s:g} s"
            raise UsageError(
                f"expected a section within the {duration_s:g} s of {track_id}, found {first_s:g} s to {end}"
            )
        if self.frame_rate_hz is not None:
            frames = self.index.vectors_of(position)
            first, stop = find_frames(self.frame_rate_hz, first_s, end_s)
            return frames[first:stop]
        return average_section(self.index, self._reader, track_id, start_s, end_s)

    def search_placed(self, vectors: Matrix, k: int, allowed: Mask) -> list[Hit]:
        """Find what is near vectors of the index's own space, among the tracks that are marked."""
        _check_number(k)
        match_tracks = self._match_globals if self.frame_rate_hz is None else self._match_moments
        return self._list_hits(match_tracks(vectors, k, allowed), k)

    def _match_globals(self, vectors: Matrix, k: int, allowed: Mask) -> list[Match]:
        scores, rows = self.index.search(vectors, min(k, len(allowed)), None if allowed.all() else allowed)
        is_row = rows[0] >= 0
        positions = self.index.track_of(rows[0][is_row])
        return [
            Match(int(position), float(score))
            for position, score in zip(positions, scores[0][is_row], strict=True)
        ]

    def _recognise(self, passage: Matrix, matches: list[Match]) -> list[Match]:
        """Return those of the matches that a passage was cut out of, with their places."""
        facts = self.index.tracks.take([match.position for match in matches])
        durations_s = pc.fill_null(facts.column("duration_s"), 0.0).to_numpy()
        matches = matches[: int(np.searchsorted(np.cumsum(durations_s), MAX_COMPARED_S)) + 1]
        track_ids = facts.column("track_id").to_pylist()[: len(matches)]
        try:
            tracks = read_moments(self._reader, track_ids, self.index.manifest.recipe)
        except (UsageError, StorageError) as error:  # the snapshot is gone: the hits are there all the same
            logger.warning("the clip was not compared moment by moment: %s", error)
            return []
        rate_hz = RESOLUTIONS[MOMENTS].frame_rate_hz or 1.0
        recognised = []
        for fit in recognise(passage, tracks):
            passage_s = (fit.first_frame / rate_hz, (fit.first_frame + fit.num_frames) / rate_hz)
            recognised.append(replace(matches[fit.track], passage_s=passage_s, is_recognised=True))
        return recognised

    def _match_moments(self, vectors: Matrix, k: int, allowed: Mask) -> list[Match]:
        passage = self.whitening.apply(normalise_rows(vectors))
        rate_hz = self.frame_rate_hz or 1.0
        matches = []
        for position in find_candidates(self.index, self.whitening, vectors, k, allowed):
            track = self.whitening.apply(self.index.vectors_of(position))
            score, first, num_frames = align_passage(passage, track)
            passage_s = (first / rate_hz, (first + num_frames) / rate_hz)
            matches.append(Match(position, score, passage_s))
        return sorted(matches, key=lambda match: (-match.score, match.position))

    def _list_hits(self, matches: list[Match], k: int) -> list[Hit]:
        """Return the first matches as hits, without those that were taken down while they were looked for."""
        shown = self.shown.mark()
        kept = [match for match in matches if shown[match.position]]
        return [self._as_hit(rank, match) for rank, match in enumerate(kept[:k], start=1)]

    def _as_hit(self, rank: int, match: Match) -> Hit:
        row = {name: self.index.tracks.column(name)[match.position].as_py() for name in FILTER_COLUMNS}
        start_s = end_s = None
        if match.passage_s is not None:
            start_s, end_s = match.passage_s
            end_s = min(end_s, row["duration_s"] or end_s)
        return Hit(
            rank=rank,
            track_id=row["track_id"],
            score=match.score,
            **{name: row[name] for name in LABELS},
            start_s=start_s,
            end_s=end_s,
            near_duplicate=match.is_recognised or match.score >= self.near_duplicate_score,
        )


def _check_number(k: int) -> None:
    if k < 1:
        raise UsageError(f"expected to search for one hit or more, found k = {k}")
