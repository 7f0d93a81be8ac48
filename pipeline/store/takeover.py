"""Take over: a file that the store has under another id keeps its features, without decoding and without a model.

Rows of ``frames`` are copied part by part, with the other id; the ledger's rows are those of the other track with
the catalog's facts of this one. What the other track's features are is read from the ledger as the run found it:
meanwhile that id may have been given to a new file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.location import StoreLocation
from pipeline.schema import TRACKS
from pipeline.store.ledger import list_table_files, read_rows, relabel_track_rows
from pipeline.store.parts import Part, write_part
from pipeline.store.segments import sort_rows, take_rows

_MAX_VALUES_PER_PART = 2**26
_MAX_READ_BYTES = 64 * 2**20  # of files that are read at once
_NUM_READERS = 8  # small files are mostly waited for

Key = tuple[str, str]  # track_id and content_hash


@dataclass(frozen=True)
class Match:
    """A recognised track and where its features lie.

    Args:
        track_id: The track.
        content_hash: Its content.
        source_id: The id under which the store has that content.
        is_move: Whether the catalog no longer has that id, and no other track has taken its place.
    """

    track_id: str
    content_hash: str
    source_id: str
    is_move: bool


def split_by_id(unchanged: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Part rows of ``schema.UNCHANGED``: content that the store has under this id, and under another."""
    columns = (unchanged.column(name).to_pylist() for name in ("held", "content_hash"))
    is_own = pa.array(
        (
            any(name.endswith(f"@{content_hash}") for name in held or ())
            for held, content_hash in zip(*columns, strict=True)
        ),
        pa.bool_(),
    )
    return unchanged.filter(is_own), unchanged.filter(pc.invert(is_own))


def match_sources(recognised: pa.Table, sources: pa.Table, departed: Collection[str]) -> list[Match]:
    """Find for each recognised track one that has its content.

    Of several tracks with the content of one that left the catalog, the first by id is that one, moved.

    Args:
        recognised: Rows of ``schema.UNCHANGED``.
        sources: track_id and content_hash of tracks in the ledger.
        departed: Ids in the ledger that the catalog no longer has.

    Returns:
        Matches, sorted by track_id; none for tracks whose content no source has.
    """
    hashes = recognised.column("content_hash")
    sources = sources.filter(pc.is_in(sources.column("content_hash"), hashes.combine_chunks())).sort_by("track_id")
    names: dict[str, list[str]] = defaultdict(list)
    for track_id, content_hash in _keys(sources):
        names[content_hash].append(track_id)
    gone = {
        key: [name for name in names_of_content if name in departed] for key, names_of_content in names.items()
    }
    matches = []
    for row in recognised.select(["track_id", "content_hash"]).sort_by("track_id").to_pylist():
        content_hash = row["content_hash"]
        if content_hash not in names:
            continue
        is_move = bool(gone[content_hash])
        source_id = gone[content_hash].pop(0) if is_move else names[content_hash][0]
        matches.append(Match(row["track_id"], content_hash, source_id, is_move))
    return matches


def copy_tracks(
    matches: Sequence[Match],
    recognised: pa.Table,
    store: StoreLocation,
    ledger: DeltaTable,
    frames: DeltaTable,
    recipes: Sequence[str],
    stored: Mapping[str, Collection[str]],
    run_id: str,
) -> tuple[list[Part], pa.Table]:
    """Write the features of matched tracks under their new ids; nothing is committed.

    Args:
        matches: Some of ``match_sources``.
        recognised: Their rows of ``schema.UNCHANGED``, with those of others or without.
        store: The store.
        ledger: ``tracks`` at a version that has the sources.
        frames: ``frames`` at one that has their features.
        recipes: Recipe ids.
        stored: For each of the tracks, what ``frames`` has of it already, as in ``schema.PLAN``.
        run_id: The run that writes.

    Returns:
        Parts of ``frames``, and rows of ``schema.TRACKS``.

    Raises:
        StorageError: A file cannot be read or written.
    """
    targets: dict[Key, list[str]] = defaultdict(list)
    for match in matches:
        targets[match.source_id, match.content_hash].append(match.track_id)
    parts: list[Part] = []
    rows = [TRACKS.empty_table()]
    for recipe in recipes:
        sources = _read_sources(ledger, store, recipe, targets)
        resolutions = sources.column("resolutions").to_pylist()
        held = {key: set(names) for key, names in zip(_keys(sources), resolutions, strict=True)}
        parts += _copy_frames(frames, store, recipe, targets, held, stored, run_id)
        rows.append(_rename(sources, targets))
    tracks = pa.concat_tables(rows)
    facts = recognised.drop_columns(["content_hash", "held"])
    tracks = relabel_track_rows(tracks, facts)
    position = tracks.schema.get_field_index("run_id")
    return parts, tracks.set_column(position, TRACKS.field("run_id"), pa.repeat(run_id, tracks.num_rows))


def _read_sources(
    ledger: DeltaTable, store: StoreLocation, recipe: str, targets: Mapping[Key, list[str]]
) -> pa.Table:
    """Read the ledger's rows of the sources, file by file."""
    return pa.concat_tables(
        [
            TRACKS.empty_table(),
            *(
                rows.filter(pa.array([key in targets for key in _keys(rows)], pa.bool_()))
                for _, rows in _read_files(ledger, "tracks", store, recipe, targets)
            ),
        ]
    )


def _copy_frames(
    frames: DeltaTable,
    store: StoreLocation,
    recipe: str,
    targets: Mapping[Key, list[str]],
    held: Mapping[Key, set[str]],
    stored: Mapping[str, Collection[str]],
    run_id: str,
) -> Iterator[Part]:
    """Write the sources' features with the new ids, in few parts: those that they lie in may be small."""

    def list_names(resolution: str, key: Key) -> list[str]:
        """List the ids under which a source's rows at a resolution are still to be written."""
        if resolution not in held.get(key, ()):
            return []
        fact = f"{recipe}/{resolution}@{key[1]}"
        return [name for name in targets[key] if fact not in stored.get(name, ())]

    files = _read_files(frames, "frames", store, recipe, targets)
    for resolution, found in groupby(files, key=lambda item: str(item[0]["partition.resolution"])):
        list_own = partial(list_names, resolution)
        renamed = (piece for _, rows in found for piece in _rename_rows(rows, list_own))
        partition = {"recipe": recipe, "resolution": resolution}
        for rows in _gather_rows(renamed):
            yield write_part(rows, "frames", store.table_url("frames"), partition, run_id, store.options)


def _rename_rows(rows: pa.Table, list_names: Callable[[Key], list[str]]) -> Iterator[tuple[pa.Table, int]]:
    """Yield rows of ``frames`` under the ids that are listed for theirs, and the number of values in them.

    Whole tracks come together, some 256 MB at a time: many may be copies of one.
    """
    order = [(name, row) for row, key in enumerate(_keys(rows)) for name in list_names(key)]
    order.sort()  # rows of one track stay in their order
    num_frames = rows.column("num_frames").to_pylist()
    embed_dim = next((len(row[0]) for row in rows.column("embeddings") if row.is_valid and len(row)), 1)
    group: list[tuple[str, int]] = []
    num_values = 0
    for _, items in groupby(order, key=itemgetter(0)):
        track = list(items)
        in_track = sum(num_frames[row] or 0 for _, row in track) * embed_dim
        if group and num_values + in_track > _MAX_VALUES_PER_PART:
            yield _take_as(rows, group), num_values
            group, num_values = [], 0
        group += track
        num_values += in_track
    if group:
        yield _take_as(rows, group), num_values


def _gather_rows(pieces: Iterable[tuple[pa.Table, int]]) -> Iterator[pa.Table]:
    """Yield pieces together, as many as make a part, sorted by track."""
    gathered: list[pa.Table] = []
    num_gathered = 0
    for rows, num_values in pieces:
        if gathered and num_gathered + num_values > _MAX_VALUES_PER_PART:
            yield sort_rows(pa.concat_tables(gathered))
            gathered, num_gathered = [], 0
        gathered.append(rows)
        num_gathered += num_values
    if gathered:
        yield sort_rows(pa.concat_tables(gathered))


def _take_as(rows: pa.Table, order: Sequence[tuple[str, int]]) -> pa.Table:
    """Return some rows, each under another id."""
    taken = take_rows(rows, [row for _, row in order])
    names = pa.array([name for name, _ in order], pa.string())
    return taken.set_column(rows.schema.get_field_index("track_id"), rows.schema.field("track_id"), names)


def _rename(rows: pa.Table, targets: Mapping[Key, list[str]]) -> pa.Table:
    """Return for each target its source's row of the ledger, under its own id."""
    order = [(name, row) for row, key in enumerate(_keys(rows)) for name in targets[key]]
    return _take_as(rows, order)


def _read_files(
    table: DeltaTable, table_name: str, store: StoreLocation, recipe: str, targets: Mapping[Key, Any]
) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Read a recipe's files whose span of ids holds one of the sources, several at once, by partition and ids."""
    source_ids = sorted({source_id for source_id, _ in targets})

    def may_hold(file: Mapping[str, Any]) -> bool:
        low, high = file.get("min.track_id"), file.get("max.track_id")
        return low is None or high is None or bisect_left(source_ids, low) < bisect_right(source_ids, high)

    files = [file for file in list_table_files(table, table_name, recipe) if may_hold(file)]
    files.sort(key=lambda file: (file.get("partition.resolution") or "", file.get("min.track_id") or ""))
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        for group in _group_files(files):
            yield from zip(group, readers.map(partial(read_rows, table_name, store), group), strict=True)


def _group_files(files: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """Yield files that may be in memory at once."""
    start = size_bytes = 0
    for stop, file in enumerate(files):
        own_bytes = int(file["size_bytes"])
        if stop > start and size_bytes + own_bytes > _MAX_READ_BYTES:
            yield files[start:stop]
            start, size_bytes = stop, 0
        size_bytes += own_bytes
    yield files[start:]


def _keys(rows: pa.Table) -> list[Key]:
    return list(zip(*(rows.column(name).to_pylist() for name in ("track_id", "content_hash")), strict=True))
