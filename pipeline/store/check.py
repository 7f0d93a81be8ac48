"""Check: does a store keep its promises? Every ledger row whole, nothing twice, nothing missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.config import RESOLUTIONS
from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import TABLES
from pipeline.storage import list_files
from pipeline.store.ledger import join_keys
from pipeline.store.read import FeatureStore
from pipeline.store.segments import TRACK_ORDER
from pipeline.store.tables import open_table, read_columns, read_history

MAX_EXAMPLES = 3


@dataclass
class StoreCheck:
    """What a check found.

    Args:
        problems: One line each; empty for a sound store.
        num_tracks: Ledger rows by recipe.
        num_frame_rows: Live rows by "recipe/resolution".
        num_dead_rows: Rows of ``frames`` that no ledger row names.
        num_failures: Rows of ``failures``.
        size_bytes: Bytes of the live files of each table.
        last_run: Counts of the last closed run; None where no run has closed.
    """

    problems: list[str] = field(default_factory=list)
    num_tracks: dict[str, int] = field(default_factory=dict)
    num_frame_rows: dict[str, int] = field(default_factory=dict)
    num_dead_rows: int = 0
    num_failures: int = 0
    size_bytes: dict[str, int] = field(default_factory=dict)
    last_run: dict[str, object] | None = None


def check_store(store: StoreLocation, deep: bool = False) -> StoreCheck:
    """Check the newest committed state of a store.

    Args:
        store: The store.
        deep: Also read every vector: equal lengths, finite values, as many frames as the row says.

    Returns:
        What was found.

    Raises:
        StorageError: There is no store, or it cannot be read.
        StoreFormatError: It has another format.
    """
    report = StoreCheck()
    tables = {name: open_table(store, name) for name in TABLES}
    for name, table in tables.items():
        report.problems += _check_files(store, name, table, report)
    if report.problems:
        return report  # rows cannot be read from files that are not there
    try:
        report.problems += _check_rows(store, tables, deep, report)
    except StorageError as error:
        report.problems.append(str(error))
    report.problems += _check_last_run(tables["tracks"], report)
    return report


def _check_rows(
    store: StoreLocation, tables: Mapping[str, DeltaTable], deep: bool, report: StoreCheck
) -> Iterator[str]:
    """The tables' rows are unique and belong together."""
    columns = {name: TABLES[name].names for name in TABLES}
    if not deep:
        columns |= {
            "tracks": ["recipe", "track_id", "content_hash", "resolutions"],
            "failures": ["recipe", "track_id"],
        }
    ledger = read_columns(tables["tracks"], columns["tracks"])
    yield from _check_unique("tracks", ledger, ["recipe", "track_id"])
    failures = read_columns(tables["failures"], columns["failures"])
    report.num_failures = failures.num_rows
    yield from _check_unique("failures", failures, ["recipe", "track_id"])
    # The frames that readers of this ledger see, whatever a run commits meanwhile.
    snapshot = FeatureStore(store.url, tables["tracks"].version(), store.options)
    seen = open_table(store, "frames", snapshot.frames_version)
    key = ["recipe", "resolution", "track_id", "content_hash", "start_frame"]
    frames = read_columns(seen, [*key, "num_frames"])
    yield from _check_unique("frames", frames, key)
    num_live = 0
    for recipe in sorted(pc.unique(ledger.column("recipe")).to_pylist()):
        rows = ledger.filter(pc.equal(ledger.column("recipe"), recipe))
        report.num_tracks[recipe] = rows.num_rows
        frames_of_recipe = frames.filter(pc.equal(frames.column("recipe"), recipe))
        for resolution in _list_resolutions(rows):
            num_found, problems = _check_resolution(rows, frames_of_recipe, recipe, resolution)
            report.num_frame_rows[f"{recipe}/{resolution}"] = num_found
            num_live += num_found
            yield from problems
            if deep and num_found:
                yield from _check_frames(snapshot, recipe, resolution)
    report.num_dead_rows = frames.num_rows - num_live


def _check_files(store: StoreLocation, name: str, table: DeltaTable, report: StoreCheck) -> Iterator[str]:
    """Every file that the log names is there, at the size that it names."""
    actions = pa.table(table.get_add_actions(flatten=True))
    report.size_bytes[name] = pc.sum(actions.column("size_bytes")).as_py() or 0
    listing = list_files(store.table_url(name), store.options)
    sizes = dict(zip(listing.column("path").to_pylist(), listing.column("size_bytes").to_pylist(), strict=True))
    for path, size_bytes in zip(
        actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True
    ):
        if sizes.get(path) != size_bytes:
            yield f"{name}: expected {path} with {size_bytes} bytes, found {sizes.get(path, 'no such file')}"


def _check_unique(name: str, rows: pa.Table, key: list[str]) -> Iterator[str]:
    counted = rows.group_by(key).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1))
    if twice.num_rows:
        examples = twice.slice(0, MAX_EXAMPLES).select(key).to_pylist()
        yield f"{name}: {twice.num_rows} keys of ({', '.join(key)}) stand more than once, such as {examples}"


def _list_resolutions(ledger: pa.Table) -> list[str]:
    held = set(pc.unique(pc.list_flatten(ledger.column("resolutions"))).to_pylist())
    return [name for name in RESOLUTIONS if name in held]


def _check_resolution(ledger: pa.Table, frames: pa.Table, recipe: str, resolution: str) -> tuple[int, list[str]]:
    """Every ledger row that lists a resolution has live rows of it in ``frames``, of which none is missing."""
    frames = frames.filter(pc.equal(frames.column("resolution"), resolution))
    lists_it = np.array([resolution in names for names in ledger.column("resolutions").to_pylist()], bool)
    expected = join_keys(ledger.filter(pa.array(lists_it)))
    keys = join_keys(frames)
    missing = expected.filter(pc.invert(pc.is_in(expected, keys)))
    is_live = pc.is_in(keys, expected)
    problems = [
        f"frames: {len(tracks)} tracks of {recipe} lack {what} {resolution} rows, such as {tracks[:MAX_EXAMPLES]}"
        for what, tracks in (
            ("their", [key.split("\n")[0] for key in missing.to_pylist()]),
            ("some of their", _find_gaps(frames.filter(is_live))),
        )
        if tracks
    ]
    return pc.sum(is_live).as_py() or 0, problems


def _find_gaps(frames: pa.Table) -> list[str]:
    """List the tracks that do not begin at their first frame, or whose rows leave frames out in between."""
    frames = frames.select(["track_id", "start_frame", "num_frames"]).sort_by(TRACK_ORDER)
    ids, starts, lengths = (column.to_numpy() for column in frames.columns)
    ends = starts + lengths
    follows = np.append(False, ids[1:] == ids[:-1])
    expected = np.where(follows, np.append(0, ends[:-1]), 0)
    return sorted(set(ids[starts > expected].tolist()))


def _check_frames(snapshot: FeatureStore, recipe: str, resolution: str) -> Iterator[str]:
    """Every row of a resolution is a whole matrix of finite values, all of one width."""
    name = f"frames: {recipe}/{resolution}"
    examples: dict[int, str] = {}
    parts = snapshot.list_parts(resolution, recipe)
    for path in parts.paths:
        try:
            for row in (row for rows in parts.stream(path) for row in rows.to_batches(max_chunksize=1)):
                track_id, num_frames = (row.column(key)[0].as_py() for key in ("track_id", "num_frames"))
                vectors = row.column("embeddings").flatten()
                embed_dim = _measure_vectors(vectors)
                if embed_dim is None or len(vectors) != num_frames:
                    yield f"{name} of {track_id} is not a whole matrix of finite values"
                else:
                    examples.setdefault(embed_dim, track_id)
        except StorageError as error:
            yield f"frames: {path} cannot be read: {error}"
    yield from _check_widths(name, examples)


def _measure_vectors(vectors: pa.Array) -> int | None:
    """Return the length of a list column's vectors; None unless all have it and hold finite values alone."""
    lengths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    values = pc.list_flatten(vectors)
    whole = len(lengths) == 1 and lengths[0] and values.null_count == 0
    return int(lengths[0]) if whole and np.isfinite(values.to_numpy()).all() else None


def _check_widths(name: str, examples: dict[int, str]) -> Iterator[str]:
    if len(examples) > 1:
        found = ", ".join(f"{embed_dim} of {track_id}" for embed_dim, track_id in sorted(examples.items()))
        yield f"{name}: expected vectors of one length, found {found}"


def _check_last_run(tracks: DeltaTable, report: StoreCheck) -> Iterator[str]:
    """The last closed run's books close."""
    counts = next((c["counts"] for c in read_history(tracks) if c.get("event") == "close"), None)
    if counts is None:
        yield "tracks: no run has closed yet; run the embedding command again"
        return
    report.last_run = json.loads(counts)
    names = ("embedded", "unchanged", "failed", "withheld")  # the books of earlier versions have no withheld
    outcomes = [int(str(report.last_run.get(name, 0))) for name in names]
    if report.last_run["planned"] != sum(outcomes):
        yield f"tracks: the books of the last run do not close: {counts}"
