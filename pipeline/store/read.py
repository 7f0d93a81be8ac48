"""Read: one consistent snapshot of a store, live rows only, for people and programs.

Readers that speak SQL need none of this: the tables are plain Delta Lake. What this adds is the snapshot (the
last closed run, never half of one), the join that leaves dead frames out, and point reads that touch only the
parts and row groups of the tracks asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.schema import FEATURE_LIST, FRAMES, KEYS, TABLES, TRACKS
from pipeline.storage import Options
from pipeline.store.read_parts import (
    FRAME_COLUMNS,
    FrameParts,
    explain_unreadable,
    keep_live,
    open_parts,
    read_tracks_of,
)
from pipeline.store.segments import MAX_VALUES, find_frames, join_rows, match_span, sort_rows, take_rows
from pipeline.store.snapshot import choose_recipe, find_versions
from pipeline.store.tables import open_table, read_columns

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl


class FeatureStore:
    """One snapshot of a feature store; what is committed later does not change what it returns.

    Args:
        url: The store: a folder or bucket prefix.
        snapshot: ``published`` for the last closed run, ``latest`` for all that is committed, a version of
            ``tracks``, or a time (the last run closed by then).
        options: File system options of the store.

    Raises:
        StorageError: There is no store, or it cannot be read.
        StoreFormatError: It has another format.
        UsageError: There is no such snapshot.
    """

    def __init__(
        self, url: str, snapshot: str | int | datetime = "published", options: Options | None = None
    ) -> None:
        self.location = StoreLocation(url, options)
        self.version, self.frames_version = find_versions(self.location, snapshot)
        versions = {"tracks": self.version, "frames": self.frames_version}
        tables = {name: open_table(self.location, name, version) for name, version in versions.items()}
        self._files = {name: pa.table(table.get_add_actions(flatten=True)) for name, table in tables.items()}

    def recipes(self) -> pa.Table:
        """Return the recipes in this snapshot: recipe, definition (JSON), checkpoint, created_time, num_tracks."""
        counted = self._scan_tracks(["recipe"]).group_by("recipe").aggregate([([], "count_all")])
        counted = counted.rename_columns(["recipe", "num_tracks"])
        known = read_columns(open_table(self.location, "recipes"), TABLES["recipes"].names)
        known = known.join(counted, "recipe", join_type="right outer").sort_by("recipe")
        return known.select([*TABLES["recipes"].names, "num_tracks"])

    def tracks(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002 - the word that Arrow's own readers use
        recipe: str | None = None,
    ) -> pa.Table:
        """Return the ledger: one row per recipe and track.

        Args:
            columns: Of ``schema.TRACKS``; all by default.
            filter: Arrow expression over any columns, such as ``pc.field("artist") == "X"``.
            recipe: Only this recipe.

        Raises:
            UsageError: There is no such recipe.
            StorageError: Files cannot be read, or a vacuum took those of this snapshot.
        """
        if recipe is not None:
            of_recipe = pc.field("recipe") == self._choose_recipe(recipe)
            filter = of_recipe if filter is None else of_recipe & filter  # noqa: A001
        return self._scan_tracks(list(columns or TRACKS.names), filter)

    def frames(
        self,
        track_ids: Sequence[str],
        resolution: str,
        start_s: float | None = None,
        end_s: float | None = None,
        recipe: str | None = None,
        as_of: datetime | None = None,
    ) -> pa.Table:
        """Return the features of some tracks, in the order asked for; tracks that are not there are left out.

        Args:
            track_ids: Which tracks.
            resolution: Name of a resolution, such as ``16hz``; ``global`` has one vector a track, and no times.
            start_s: Leave out frames that end at or before this time.
            end_s: Leave out frames that begin at or after this time.
            recipe: Recipe id; may be left out where the snapshot has only one.
            as_of: Read the snapshot of that time (with its zone) instead, as ``FeatureStore(url, as_of)`` does:
                what a model that was trained then saw. A vacuum takes such history away.

        Returns:
            Table of track_id, content_hash, start_frame, num_frames, frame_rate_hz, embeddings (num_frames ×
            embed_dim), one row a track; ``start_frame`` is which of the track's frames the first one is. Of a long
            track only the minutes around the span are read.

        Raises:
            UsageError: No such recipe or resolution, the recipe has to be named, a time is not a number or asked
                of ``global``, or no run had closed by ``as_of``.
            StorageError: Files cannot be read, or a vacuum took those of this snapshot.
        """
        if as_of is not None:
            then = FeatureStore(self.location.url, as_of, self.location.options)
            return then.frames(track_ids, resolution, start_s, end_s, recipe)
        recipe = self._choose_recipe(recipe)
        frame_rate_hz = self._read_frame_rate(recipe, resolution)
        track_ids = [str(track_id) for track_id in track_ids]  # they may be Arrow's or NumPy's
        parts = self._list_files("frames", recipe, resolution)
        ledger = self._list_files("tracks", recipe)
        live = read_tracks_of(self.location, "tracks", ledger, track_ids, [*KEYS, "resolutions"])
        first, stop = find_frames(frame_rate_hz, start_s, end_s)
        near = None if frame_rate_hz is None else match_span(frame_rate_hz, first, stop)
        rows = keep_live(read_tracks_of(self.location, "frames", parts, track_ids, FRAME_COLUMNS, near), live)
        features = join_rows(sort_rows(rows), first, stop)
        if first > 0 or stop is not None:
            features = pa.concat_tables([features, _list_absent(live, features, resolution, frame_rate_hz, first)])
        places: dict[str, list[int]] = {}
        for place, track_id in enumerate(features.column("track_id").to_pylist()):
            places.setdefault(track_id, []).append(place)
        return take_rows(features, [place for track_id in track_ids for place in places.get(track_id, ())])

    def vectors(self, resolution: str = "global", recipe: str | None = None) -> tuple[pa.Array, np.ndarray]:
        """Return all vectors of one resolution as a matrix.

        Args:
            resolution: ``global``, or a resolution with frames: then every frame is a row.
            recipe: Recipe id; may be left out where the snapshot has only one.

        Returns:
            Track ids, one a row, and float32 of shape (num_vectors, embed_dim), sorted by track id and time.
        """
        table = self._read_live(resolution, self._choose_recipe(recipe))
        ids = np.repeat(table.column("track_id").to_numpy(), table.column("num_frames").to_numpy())
        return pa.array(ids, pa.string()), _as_matrix(pc.list_flatten(table.column("embeddings")))

    def iter_frames(
        self, resolution: str, recipe: str | None = None, shard: int = 0, num_shards: int = 1
    ) -> Iterator[pa.Table]:
        """Stream all live frames of a resolution, some tracks a table and one row a track, in bounded memory.

        Args:
            resolution: Name of a resolution.
            recipe: Recipe id; may be left out where the snapshot has only one.
            shard: Which share of the parts.
            num_shards: How many shares there are.
        """
        parts = self.list_parts(resolution, recipe)
        for path in parts.paths[shard::num_shards]:
            yield from (rows for rows in parts.stream(path) if rows.num_rows)

    def list_parts(self, resolution: str, recipe: str | None = None) -> FrameParts:
        """List the parts of a resolution, with all that is needed to read them elsewhere.

        Args:
            resolution: Name of a resolution.
            recipe: Recipe id; may be left out where the snapshot has only one.
        """
        recipe = self._choose_recipe(recipe)
        self._read_frame_rate(recipe, resolution)
        files = self._list_files("frames", recipe, resolution)
        order = [("min.track_id", "ascending"), ("path", "ascending")]  # not of file names alone: they are random
        paths = files.sort_by(order).column("path").to_pylist()
        live = self.tracks(KEYS, recipe=recipe).sort_by("track_id")
        return FrameParts(self.location, tuple(paths), live)

    def to_arrow(self, resolution: str = "global", recipe: str | None = None) -> pa.Table:
        """Return one resolution whole: all live frames; for ``global`` the ledger, each row with its vector.

        That is a column ``embedding`` (embed_dim,), null of a track that has none.
        """
        recipe = self._choose_recipe(recipe)
        rows = self._read_live(resolution, recipe)
        return _attach_vectors(self.tracks(recipe=recipe), rows) if resolution == "global" else rows

    def to_pandas(self, resolution: str = "global", recipe: str | None = None) -> pd.DataFrame:
        """Return one resolution whole as a pandas data frame."""
        return self.to_arrow(resolution, recipe).to_pandas()

    def to_polars(self, resolution: str = "global", recipe: str | None = None) -> pl.DataFrame:
        """Return one resolution whole as a Polars data frame."""
        import polars as pl

        return pl.DataFrame(self.to_arrow(resolution, recipe))

    def to_duckdb(
        self, connection: duckdb.DuckDBPyConnection, resolution: str = "global", recipe: str | None = None
    ) -> duckdb.DuckDBPyRelation:
        """Return one resolution whole as a DuckDB relation on a connection."""
        return connection.from_arrow(self.to_arrow(resolution, recipe))

    def _choose_recipe(self, recipe: str | None) -> str:
        return choose_recipe(self._list_files("tracks"), recipe, self.location)

    def _read_frame_rate(self, recipe: str, resolution: str) -> float | None:
        stored = set(self._list_files("frames", recipe).column("partition.resolution").to_pylist())
        if resolution in stored:
            return RESOLUTIONS[resolution].frame_rate_hz
        known = ", ".join(name for name in RESOLUTIONS if name in stored) or "none"
        raise UsageError(f"expected a resolution that is stored ({known}), found {resolution!r}")

    def _read_live(self, resolution: str, recipe: str) -> pa.Table:
        """Return all live frames of a resolution, a row a track, in ``TRACK_ORDER``."""
        empty = FRAMES.empty_table().select(list(FRAME_COLUMNS))
        if resolution == "global" and not self._list_files("frames", recipe, resolution).num_rows:
            return empty  # it is what is read by default, asked for or not
        return join_rows(sort_rows(pa.concat_tables([empty, *self.iter_frames(resolution, recipe)])))

    def _list_files(self, table_name: str, recipe: str | None = None, resolution: str | None = None) -> pa.Table:
        """List the snapshot's files of a table, of one partition or of all."""
        files = self._files[table_name]
        for name, value in (("recipe", recipe), ("resolution", resolution)):
            if value is not None:
                files = files.filter(pc.equal(files.column(f"partition.{name}"), value))
        return files

    def _scan_tracks(self, columns: list[str], where: pc.Expression | None = None) -> pa.Table:
        files = self._list_files("tracks")
        recipes = [pc.field("recipe") == recipe for recipe in files.column("partition.recipe").to_pylist()]
        parts = open_parts(self.location, "tracks", files.column("path").to_pylist(), recipes)
        scanner = parts.scanner(columns=columns, filter=where)  # refuses what the caller's filter has wrong
        with explain_unreadable(self.location.table_url("tracks")):
            return scanner.to_table()


def _attach_vectors(ledger: pa.Table, rows: pa.Table) -> pa.Table:
    """Return ledger rows, sorted by track, with their vectors in rows of ``frames`` at ``global``, or null."""
    ledger = ledger.sort_by("track_id")
    vectors = pa.table({"embedding": pc.list_flatten(rows.column("embeddings"))})
    nothing = pa.table({"embedding": pa.nulls(1, FEATURE_LIST)})
    place = pc.index_in(ledger.column("track_id"), rows.column("track_id").combine_chunks())
    vectors = pa.concat_tables([vectors.cast(nothing.schema), nothing])
    column = take_rows(vectors, pc.fill_null(place, rows.num_rows))["embedding"]
    if sum(len(chunk.flatten()) for chunk in column.chunks) <= MAX_VALUES:
        column = column.combine_chunks()  # there is one for each run of neighbours
    return ledger.append_column("embedding", column)


def _list_absent(
    live: pa.Table, found: pa.Table, resolution: str, frame_rate_hz: float | None, first_frame: int
) -> pa.Table:
    """Return a row without frames for each track that has some at the resolution, and none of them in the span."""
    missing = live.filter(pc.invert(pc.is_in(live.column("track_id"), found.column("track_id").combine_chunks())))
    rows = [
        {
            "track_id": row["track_id"],
            "content_hash": row["content_hash"],
            "start_frame": first_frame,
            "num_frames": 0,
            "frame_rate_hz": frame_rate_hz,
            "embeddings": [],
        }
        for row in missing.to_pylist()
        if resolution in row["resolutions"]
    ]
    return pa.Table.from_pylist(rows, schema=found.schema)


def _as_matrix(vectors: pa.ChunkedArray) -> np.ndarray:
    """Return a list column as float32 of shape (num_vectors, embed_dim)."""
    if len(vectors) == 0:
        return np.empty((0, 0), np.float32)
    return np.asarray(pc.list_flatten(vectors), np.float32).reshape(len(vectors), -1)
