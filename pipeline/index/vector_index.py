"""Index: the vectors of one recipe and resolution, opened for search by cosine.

Vectors are unit rows in half precision, in segments that are memory-mapped and never change. The exact kind
scans them. The inverted file (``ivf``) finds candidates by compressed codes and scores them against the same rows,
outside faiss: what faiss itself re-ranks with (``IndexRefine``) can neither remove ids nor filter. Either way a
score is the cosine, in the index's space, of the query with a vector that was rounded to half precision once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.errors import StorageError, UsageError
from pipeline.index.codes import Mask, Matrix, Rows, map_index, normalise_rows, scan_wanted_rows, search_codes
from pipeline.index.files import IndexLocation, fetch_file, read_tracks
from pipeline.index.manifest import IndexManifest, find_index, list_versions, read_manifest
from pipeline.index.space import place_vectors, read_space
from pipeline.location import StoreLocation

SCAN_ROWS = 20_000  # so few allowed rows are scanned exactly: it takes some milliseconds
SCAN_SLACK = 16  # rows beyond k that an exact scan scores anew
OPEN_ATTEMPTS = 3  # a version may be cleared away while it is being opened


class VectorIndex:
    """One version of an index. Searches may run in any number of threads at once.

    Args:
        location: Where it lies.
        manifest: The version.
        cache: Folder for copies of files that lie in object storage.

    Raises:
        StorageError: A file is missing or damaged.
    """

    def __init__(self, location: IndexLocation, manifest: IndexManifest, cache: str | None = None) -> None:
        self.location = location
        self.manifest = manifest
        self.cache = cache
        self.tracks = read_tracks(fetch_file(location, manifest.files["tracks"], cache))
        self.segments = [map_index(fetch_file(location, file, cache)) for file in manifest.segments]
        self.space = read_space(location, manifest.files, cache)
        self._codes = None
        if "codes" in manifest.files:
            self._codes = map_index(fetch_file(location, manifest.files["codes"], cache))
        self._offsets = np.cumsum([0, *(segment.ntotal for segment in self.segments)]).astype(np.int64)
        self._owners = self.tracks.select(["first_row", "num_vectors"])
        self._first_row = self.tracks.column("first_row").to_numpy()
        self._num_vectors = self.tracks.column("num_vectors").to_numpy()
        self._order = np.argsort(self._first_row, kind="stable")
        self._starts = self._first_row[self._order]
        self.live = mark_rows(self.tracks, self.num_rows)

    @classmethod
    def open(
        cls,
        store: StoreLocation,
        resolution: str = "global",
        recipe: str | None = None,
        cache: str | None = None,
    ) -> VectorIndex:
        """Open the newest version of a store's index.

        Args:
            store: The store.
            resolution: ``global``, or a resolution with frames.
            recipe: Recipe id; may be left out where only one recipe is indexed.
            cache: Folder for copies of files that lie in object storage; by default ``~/.cache/musicfm-index``.

        Raises:
            UsageError: There is no such index, or the recipe has to be named.
            StorageError: A file is missing or damaged.
        """
        location = find_index(store, resolution, recipe)
        for _ in range(OPEN_ATTEMPTS):
            manifest = read_manifest(location)
            if manifest is None:
                break
            try:
                return cls(location, manifest, cache)
            except StorageError:
                if list_versions(location)[-1:] == [manifest.version]:
                    raise
        raise UsageError(f"the index at {location.url} is gone; make it again with musicfm index")

    def open_newer(self) -> VectorIndex | None:
        """Open the newest version if it is newer than this one, else return None; this one stays usable.

        Raises:
            StorageError: A file of the newer one is missing or damaged.
        """
        versions = list_versions(self.location)
        if not versions or versions[-1] <= self.manifest.version:
            return None
        return VectorIndex.open(self.location.store, self.location.resolution, self.location.recipe, self.cache)

    @property
    def num_rows(self) -> int:
        """Vector rows, dead ones included."""
        return int(self._offsets[-1])

    @property
    def input_dim(self) -> int:
        """Dimensions of the vectors that ``place`` takes: those that the model gives."""
        return self.manifest.embed_dim if self.space is None else len(self.space.mean)

    def place(self, vectors: Matrix) -> Matrix:
        """Place a model's vectors, float32 of shape (n, input_dim), in the index's space, as its own were."""
        return place_vectors(vectors, self.space)

    def search(self, queries: Matrix, k: int, allowed: Mask | None = None) -> tuple[Matrix, Rows]:
        """Find the nearest vectors of each query.

        Args:
            queries: In the index's space, float32 of shape (n, embed_dim), of any length but zero.
            k: How many.
            allowed: One mark for each row of ``tracks``: only vectors of these are returned, and k of them
                wherever there are k.

        Returns:
            Cosines, float32 of shape (n, k), descending, and vector rows, int64 of shape (n, k). Where there are
            fewer than k, scores are -inf and rows -1.

        Raises:
            UsageError: The queries have another shape than the index's vectors.
        """
        queries = self._normalise(queries)
        if allowed is not None and len(allowed) != self.tracks.num_rows:
            raise UsageError(f"expected {self.tracks.num_rows} marks, one a track, found {len(allowed)}")
        wanted = self.live if allowed is None else mark_rows(self._owners.filter(pa.array(allowed)), self.num_rows)
        num_wanted = int(np.count_nonzero(wanted)) if allowed is not None else self.manifest.num_vectors
        if self._codes is None or num_wanted <= max(k, SCAN_ROWS if allowed is not None else 0):
            return self._scan(queries, k, wanted)
        nprobe, depth = self.manifest.parameters["nprobe"], int(self.manifest.parameters["depth"] * max(1, k / 10))
        share = num_wanted / max(1, self.manifest.num_vectors)
        candidates = self.find_candidates(
            queries,
            min(self.manifest.parameters["num_lists"], int(np.ceil(nprobe / share))),
            depth,
            None if allowed is None else wanted,
        )
        scores, rows = self.score_candidates(queries, candidates, k)
        short = np.flatnonzero(rows[:, min(k, num_wanted) - 1] < 0)
        if len(short):
            scores[short], rows[short] = self._scan(queries[short], k, wanted)
        return scores, rows

    def search_exactly(self, queries: Matrix, k: int) -> tuple[Matrix, Rows]:
        """Find the nearest vectors by scanning all of them, whatever the kind; otherwise as ``search``."""
        return self._scan(self._normalise(queries), k, self.live)

    def find_candidates(self, queries: Matrix, nprobe: int, depth: int, wanted: Mask | None = None) -> Rows:
        """Find candidates by their codes, most likely first.

        Args:
            queries: Unit rows, float32 of shape (n, embed_dim).
            nprobe: Lists of the inverted file to look through.
            depth: How many candidates.
            wanted: Marks of the rows that may be returned; all by default.

        Returns:
            int64 of shape (n, depth), -1 where there are fewer.
        """
        assert self._codes is not None
        return search_codes(self._codes, queries, nprobe, depth, wanted)

    def score_candidates(self, queries: Matrix, candidates: Rows, k: int) -> tuple[Matrix, Rows]:
        """Score candidates against the stored rows and keep the best; otherwise as ``search``."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for position, query in enumerate(queries):
            candidate_rows = np.sort(
                candidates[position][candidates[position] >= 0]
            )  # one pass over the mapped file
            # Not by BLAS, which would wake its threads for so little.
            cosines = np.minimum(np.einsum("ij,j->i", self.vectors_at(candidate_rows), query), 1)
            best = self._find_best(cosines, candidate_rows, k)
            scores[position, : len(best)], rows[position, : len(best)] = cosines[best], candidate_rows[best]
        return scores, rows

    def _find_best(self, scores: npt.NDArray[np.float32], rows: Rows, k: int) -> npt.NDArray[np.intp]:
        """Return the positions of the k largest scores, descending; of equal ones (copies) in order of tracks."""
        least = np.partition(scores, -k)[-k] if len(scores) > k else -np.inf
        best = np.flatnonzero(scores >= least)
        return best[np.lexsort((self.track_of(rows[best]), -scores[best]))][:k]

    def vectors_at(self, rows: Rows) -> Matrix:
        """Return stored unit vectors, float32 of shape (len(rows), embed_dim)."""
        vectors = np.empty((len(rows), self.manifest.embed_dim), np.float32)
        owner = np.searchsorted(self._offsets, rows, side="right") - 1
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            vectors[places] = self.segments[number].reconstruct_batch(rows[places] - self._offsets[number])
        return normalise_rows(vectors)

    def vectors_of(self, track_position: int) -> Matrix:
        """Return a track's unit vectors in order of time, float32 of shape (num_vectors, embed_dim).

        Args:
            track_position: Row of ``tracks``.
        """
        first = self._first_row[track_position]
        return self.vectors_at(np.arange(first, first + self._num_vectors[track_position]))

    def rows_of(self, track_position: int) -> range:
        """Return the vector rows of a track, in order of time."""
        first = int(self._first_row[track_position])
        return range(first, first + int(self._num_vectors[track_position]))

    def track_of(self, rows: npt.ArrayLike) -> Rows:
        """Return each vector row's row of ``tracks``; -1 for rows that no track owns."""
        rows = np.asarray(rows, np.int64)
        if self.tracks.num_rows == 0:
            return np.full(rows.shape, -1, np.int64)
        place = np.maximum(np.searchsorted(self._starts, rows, side="right") - 1, 0)
        track = self._order[place]
        owned = (rows >= self._starts[place]) & (rows < self._starts[place] + self._num_vectors[track])
        return np.where(owned, track, -1)

    def find_track(self, track_id: str) -> int:
        """Return a track's row of ``tracks``.

        Raises:
            UsageError: It is not in the index.
        """
        position = int(pc.index(self.tracks.column("track_id"), pa.scalar(track_id)).as_py())
        if position < 0:
            ids = self.tracks.column("track_id")
            near = ids.filter(pc.starts_with(ids, f"{track_id}.")).slice(0, 1).to_pylist()
            hint = f"; the nearest is {near[0]!r}" if near else "; an id is a file's path, its ending included"
            raise UsageError(
                f"no track {track_id!r} in the index of snapshot {self.manifest.store_version}{hint}; where the "
                "store is newer, bring the index up to date with musicfm index"
            )
        return position

    def span_of(self, rows: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the start and end in seconds of vector rows within their tracks; NaN for global vectors."""
        rows = np.asarray(rows, np.int64)
        frame_rate_hz = RESOLUTIONS[self.manifest.resolution].frame_rate_hz
        track = self.track_of(rows)
        if frame_rate_hz is None or self.tracks.num_rows == 0:
            nothing = np.full(rows.shape, np.nan)
            return nothing, nothing
        start_s = np.where(track >= 0, (rows - self._first_row[track]) / frame_rate_hz, np.nan)
        return start_s, start_s + 1 / frame_rate_hz

    def _scan(self, queries: Matrix, k: int, wanted: Mask) -> tuple[Matrix, Rows]:
        """Scan all segments for the wanted rows, and score the best of them anew.

        Half precision leaves a unit row's length off by up to 1e-4: enough to swap neighbours, so that a few more
        than k are looked at.
        """
        scores = np.full((len(queries), 1), -np.inf, np.float32)
        rows = np.full((len(queries), 1), -1, np.int64)
        for segment, first in zip(self.segments, self._offsets, strict=False):
            marks = wanted[first : first + segment.ntotal]
            own_scores, own_rows = scan_wanted_rows(segment, queries, k + SCAN_SLACK, marks)
            scores = np.hstack([scores, own_scores])
            rows = np.hstack([rows, np.where(own_rows >= 0, own_rows + first, -1)])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k + SCAN_SLACK]
        return self.score_candidates(queries, np.take_along_axis(rows, best, 1), k)

    def _normalise(self, queries: Matrix) -> Matrix:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.embed_dim:
            raise UsageError(
                f"expected queries of shape (n, {self.manifest.embed_dim}), as the index's vectors are, found "
                f"{queries.shape}"
            )
        return normalise_rows(queries)


def mark_rows(owners: pa.Table, num_rows: int) -> Mask:
    """Mark the vector rows that tracks own.

    Args:
        owners: Tracks, with first_row and num_vectors.
        num_rows: Length of the result.
    """
    first, length = owners.column("first_row").to_numpy(), owners.column("num_vectors").to_numpy()
    if length.size == 0 or length.max() == 1:
        marks = np.zeros(num_rows, np.bool_)
        marks[first] = True
        return marks
    edges = np.zeros(num_rows + 1, np.int8)
    edges[first] += 1
    edges[first + length] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)
