"""The catalog as a page wants it: names that begin with what was typed, points on a map."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NAME_COLUMNS = ("title", "artist", "track_id")  # in the order in which suggestions come


class TrackNames:
    """Tracks by name, whatever its case and accents.

    Args:
        tracks: The tracks of an index, sorted by track_id: at least ``NAME_COLUMNS``, ``map_x`` and ``map_y``.
        mark_shown: Marks those that are not taken down as of now: of the others nobody is told.
    """

    def __init__(self, tracks: pa.Table, mark_shown: Callable[[], NDArray[np.bool_]]) -> None:
        self.tracks = tracks
        self._mark_shown = mark_shown
        self._ids = tracks.column("track_id")
        self._folded = [_fold(tracks.column(name)) for name in NAME_COLUMNS]
        self._points = np.stack(
            [tracks.column(name).to_numpy().astype(np.float64) for name in ("map_x", "map_y")], axis=1
        )

    def find(self, track_id: str) -> int | None:
        """Return the position of a track, or None."""
        position = self.locate(track_id)
        return position if position is not None and self._mark_shown()[position] else None

    def locate(self, track_id: str) -> int | None:
        """Return the position of a track, taken down or not; or None."""
        position = bisect_left(self._ids, track_id, key=pa.StringScalar.as_py)
        return position if position < len(self._ids) and self._ids[position].as_py() == track_id else None

    def suggest(self, text: str, limit: int) -> list[int]:
        """Return positions of tracks by what was typed of their title, artist or id.

        Names that begin with it come first, then names that have it anywhere.
        """
        typed = _fold(pa.chunked_array([[text]], pa.string()))[0].as_py().strip()
        shown = self._mark_shown()
        if not typed:
            first: list[int] = np.flatnonzero(shown)[:limit].tolist()
            return first
        found: dict[int, None] = {}
        for matches in (pc.starts_with, pc.match_substring):
            for names in self._folded:
                # Arrow's index of the true ones; nulls (tracks without that name) are none.
                positions = pc.indices_nonzero(matches(names, typed)).to_numpy()
                positions = positions[shown[positions]]
                found.update(dict.fromkeys(positions[:limit].tolist()))
                if len(found) >= limit:
                    return list(found)[:limit]
        return list(found)

    def sample_map(
        self, limit: int, box: tuple[float, float, float, float] | None = None
    ) -> tuple[list[int], int]:
        """Choose the tracks to draw.

        Args:
            limit: How many at most; a larger catalog is thinned out evenly, and always in the same way.
            box: Only those within x_min, y_min, x_max, y_max.

        Returns:
            Positions, and the number of tracks that there are (in the box).
        """
        inside = self._list_inside(box)
        chosen = inside
        if len(inside) > limit:
            chosen = inside[np.linspace(0, len(inside) - 1, limit).round().astype(np.int64)]
        return chosen.tolist(), len(inside)

    def map_point(self, position: int) -> tuple[float, float] | None:
        """Return where a track lies on the map; None where it has no vector."""
        x, y = self._points[position].tolist()
        return (x, y) if np.isfinite([x, y]).all() else None

    def _list_inside(self, box: tuple[float, float, float, float] | None) -> NDArray[np.int64]:
        is_inside = np.isfinite(self._points).all(axis=1) & self._mark_shown()
        if box is not None:
            low, high = np.array(box).reshape(2, 2)
            is_inside &= ((self._points >= low) & (self._points <= high)).all(axis=1)
        return np.flatnonzero(is_inside)


def _fold(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return names in lower case and without accents, so that "bjork" finds "Björk"."""
    apart = pc.utf8_normalize(names, form="NFKD")
    return pc.utf8_lower(pc.replace_substring_regex(apart, r"\p{Mn}", ""))
