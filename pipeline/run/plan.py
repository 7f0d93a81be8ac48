"""Plan: what a catalog asks for, less what the store holds.

A track is unchanged when the ledger has it at every wanted recipe and resolution and its URI, its etag (or,
where the storage has none, its size and modification time) are as recorded. Otherwise it is looked at: the
bytes are read, and their hash decides whether it is embedded. A file that failed for a reason of its own is not
tried again until it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.columns import repeat_value, take_rows
from pipeline.catalog.members import forget_places
from pipeline.decode.known_content import KnownContent, list_prefixes
from pipeline.errors import Reason, Stage
from pipeline.listing import is_rising
from pipeline.schema import CATALOG, LABELS, PLAN

FACT_COLUMNS = ("uri", "etag", "size_bytes", "modified_time")
LEDGER_COLUMNS = ("track_id", *FACT_COLUMNS, *LABELS, "content_hash", "resolutions")
FAILURE_COLUMNS = ("track_id", *FACT_COLUMNS, "stage", "error_type")

# Failures that lie in the file itself. What lies in the way to it (network, permissions) or in the machine is
# tried every time.
_LASTING_STAGES = (Stage.CATALOG.value, Stage.DECODE.value, Stage.EMBED.value)
_PASSING_REASONS = (Reason.OUT_OF_MEMORY.value, Reason.EMBED_FAILED.value)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Args:
        to_process: Rows of ``schema.PLAN``, sorted by track_id: to read, and to embed where the bytes say so.
        relabeled: Rows of ``schema.CATALOG``: content as stored, but title, artist or the like moved, or a
            failure is on record that no longer stands.
        num_tracks: Tracks in the catalog.
        num_unchanged: Tracks that need no look, relabeled ones included.
        num_known_failures: Tracks that failed before and have not changed since.
        known_failures_by_reason: Of those, how many for each reason.
        departed: For each recipe, ids in its given ledger or failures that the catalog no longer has.
        departed_tracks: track_id and uri of those that the ledger has.
        num_held: Tracks that the given ledgers have at any of the recipes.
        sources: track_id, content_hash and size_bytes of tracks that the ledger has whole, at all recipes: what
            others of the same content can be taken from.
        num_withheld: Tracks whose ids were taken down.
        withheld_hashes: Contents that were taken down.
    """

    to_process: pa.Table
    relabeled: pa.Table
    num_tracks: int
    num_unchanged: int
    num_known_failures: int
    known_failures_by_reason: dict[str, int]
    departed: dict[str, list[str]]
    departed_tracks: pa.Table
    num_held: int
    sources: pa.Table
    num_withheld: int = 0
    withheld_hashes: frozenset[str] = frozenset()

    @property
    def num_departed(self) -> int:
        """How many tracks the ledger has that the catalog no longer has."""
        return int(self.departed_tracks.num_rows)

    @property
    def known_hashes(self) -> pa.ChunkedArray:
        """Contents that need not be decoded: the store has them, or must not."""
        withheld = pa.array(sorted(self.withheld_hashes), pa.string())
        return pa.chunked_array([*self.sources.column("content_hash").chunks, withheld], pa.string())

    @property
    def known_content(self) -> KnownContent:
        """The same, as it is told to those who decode."""
        return KnownContent(list_prefixes(self.known_hashes), pc.unique(self.sources.column("size_bytes")))


def plan_tracks(
    catalog: pa.Table,
    ledgers: Mapping[str, pa.Table],
    failures: Mapping[str, pa.Table],
    resolutions: Sequence[str],
    retry_failures: bool = False,
    sources: pa.Table | None = None,
) -> Plan:
    """Compare a catalog with the store's ledger.

    Args:
        catalog: Rows of ``schema.CATALOG`` with unique track ids.
        ledgers: For each wanted recipe, its rows of ``tracks`` with ``LEDGER_COLUMNS``.
        failures: For each wanted recipe, its rows of ``failures`` with ``FAILURE_COLUMNS``.
        resolutions: Wanted resolutions.
        retry_failures: Try known-bad files again.
        sources: As ``Plan`` has them, where the ledgers are a part of the store's.

    Returns:
        The plan; num_tracks = rows to process + num_unchanged + num_known_failures.
    """
    matches = {recipe: _match(catalog, ledger) for recipe, ledger in ledgers.items()}
    failure_matches = {recipe: _match(catalog, failures[recipe]) for recipe in ledgers}
    settled = [_is_settled(catalog, found, resolutions) for found in matches.values()]
    known_bad = [_is_known_failure(catalog, found) for found in failure_matches.values()]
    unchanged = np.logical_and.reduce(settled)
    # A recipe that has neither the track nor its failure has yet to look at the file for itself.
    failed = ~unchanged & np.logical_and.reduce([s | bad for s, bad in zip(settled, known_bad, strict=True)])
    if retry_failures:
        failed[:] = False
    outdated = [_is_relabeled(catalog, found) for found in matches.values()]
    outdated += [_as_mask(pc.is_valid(found.column("stage"))) for found in failure_matches.values()]
    relabeled = unchanged & np.logical_or.reduce(outdated)
    to_look_at = np.flatnonzero(~(unchanged | failed))
    return Plan(
        to_process=_build_plan_rows(catalog, matches, resolutions, to_look_at),
        relabeled=catalog.filter(pa.array(relabeled)),
        num_tracks=catalog.num_rows,
        num_unchanged=int(unchanged.sum()),
        num_known_failures=int(failed.sum()),
        known_failures_by_reason=_count_reasons(list(failure_matches.values()), known_bad, failed),
        departed={
            recipe: sorted(_find_departed(ledgers[recipe], catalog) | _find_departed(failures[recipe], catalog))
            for recipe in ledgers
        },
        departed_tracks=_list_departed(ledgers.values(), catalog),
        num_held=len(pc.unique(_chain(ledger.column("track_id") for ledger in ledgers.values()))),
        sources=list_sources(list(ledgers.values()), resolutions) if sources is None else sources,
    )


def add_stored_facts(rows: pa.Table, facts: Mapping[str, pa.Table]) -> pa.Table:
    """Tell planned rows which of their features ``frames`` has, live or dead.

    Args:
        rows: Rows of ``schema.PLAN``.
        facts: For each recipe, track_id, content_hash and resolution of rows of ``frames``.

    Returns:
        The rows with their ``stored`` filled in.
    """
    stored: dict[str, dict[str, None]] = {}
    for recipe, table in facts.items():
        table = table.filter(pc.is_in(table.column("track_id"), rows.column("track_id").combine_chunks()))
        columns = (table.column(name).to_pylist() for name in ("track_id", "resolution", "content_hash"))
        for track_id, resolution, content_hash in zip(*columns, strict=True):
            stored.setdefault(track_id, {})[f"{recipe}/{resolution}@{content_hash}"] = None  # once a long track
    if not stored:
        return rows
    ids = rows.column("track_id").to_pylist()
    column = pa.array([list(stored.get(track_id, ())) for track_id in ids], PLAN.field("stored").type)
    return rows.set_column(rows.schema.get_field_index("stored"), PLAN.field("stored"), column)


def _match(catalog: pa.Table, recorded: pa.Table) -> pa.Table:
    """Return for each catalog row the recorded row of the same track, or a row of nulls."""
    if not recorded.num_rows:
        return pa.table({each.name: repeat_value(None, catalog.num_rows, each.type) for each in recorded.schema})
    return recorded.take(pc.index_in(catalog.column("track_id"), recorded.column("track_id")))


def list_sources(ledgers: Sequence[pa.Table], resolutions: Sequence[str]) -> pa.Table:
    """List id, content and size of the tracks that each ledger has whole, and with the same content."""
    names = ["track_id", "content_hash", "size_bytes"]
    found = [ledger.filter(pa.array(_is_whole(ledger, resolutions))).select(names) for ledger in ledgers]
    sources = found[0]
    for other in found[1:]:
        theirs = other["content_hash"].take(pc.index_in(sources["track_id"], other["track_id"]))
        sources = sources.filter(pc.fill_null(pc.equal(sources.column("content_hash"), theirs), False))
    return sources


def _list_departed(ledgers: Iterable[pa.Table], catalog: pa.Table) -> pa.Table:
    """List id and file of the tracks in ledgers that the catalog does not have."""
    rows = pa.concat_tables(ledger.select(["track_id", "uri"]) for ledger in ledgers)
    if not rows.num_rows:
        return rows
    rows = rows.filter(pc.invert(pc.is_in(rows.column("track_id"), catalog.column("track_id").combine_chunks())))
    return rows.group_by("track_id").aggregate([("uri", "min")]).rename_columns(["track_id", "uri"])


def _chain(columns: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _is_settled(catalog: pa.Table, found: pa.Table, resolutions: Sequence[str]) -> Mask:
    """Say for each row whether the store holds it whole and nothing hints at a change."""
    return _is_whole(found, resolutions) & _has_same_facts(catalog, found)


def _is_whole(found: pa.Table, resolutions: Sequence[str]) -> Mask:
    """Say for each of a ledger's rows, some of which may be null, whether it lists all resolutions."""
    held = pc.binary_join(found.column("resolutions"), ",").combine_chunks().dictionary_encode()
    # A ledger has a handful of distinct sets of resolutions, whatever its length.
    holds_all = np.array(
        [set(resolutions) <= set(text.split(",")) for text in held.dictionary.to_pylist()] + [False]
    )
    whole: Mask = holds_all[pc.fill_null(held.indices, len(held.dictionary)).to_numpy()]
    return whole


def _has_same_facts(catalog: pa.Table, found: pa.Table) -> Mask:
    """Say for each row whether its file can be taken for the recorded one without reading it."""
    names = [name for name in FACT_COLUMNS if name != "uri"]
    same = {name: _as_mask(pc.equal(catalog.column(name), found.column(name))) for name in names}
    same["uri"] = _as_mask(pc.equal(forget_places(catalog.column("uri")), forget_places(found.column("uri"))))
    both_have_etags = _as_mask(pc.and_(pc.is_valid(catalog.column("etag")), pc.is_valid(found.column("etag"))))
    same_size_and_time = same["size_bytes"] & same["modified_time"]
    return same["uri"] & ((both_have_etags & same["etag"]) | (~both_have_etags & same_size_and_time))


def _is_known_failure(catalog: pa.Table, found: pa.Table) -> Mask:
    """Say for each row whether this very file failed before, for a reason that lies in the file."""
    lasting = _as_mask(pc.is_in(found.column("stage"), pa.array(_LASTING_STAGES)))
    lasting &= ~_as_mask(pc.is_in(found.column("error_type"), pa.array(_PASSING_REASONS)))
    both_without_audio = _as_mask(pc.and_(pc.is_null(catalog.column("uri")), pc.is_null(found.column("uri"))))
    return lasting & (_has_same_facts(catalog, found) | both_without_audio)


def _is_relabeled(catalog: pa.Table, found: pa.Table) -> Mask:
    """Say for each row whether the catalog describes the track in other words than the ledger.

    Where it says nothing, the ledger has what the file's tags say.
    """
    differs = ~_as_mask(pc.fill_null(pc.equal(catalog.column("uri"), found.column("uri")), True))  # moved members
    for name in LABELS:
        named, known = catalog.column(name), found.column(name)
        known = pc.fill_null(known, "") if known.type == pa.string() else known
        differs |= _as_mask(pc.is_valid(named)) & ~_as_mask(pc.fill_null(pc.equal(named, known), False))
    return differs


def _build_plan_rows(
    catalog: pa.Table,
    matches: Mapping[str, pa.Table],
    resolutions: Sequence[str],
    rows: npt.NDArray[np.int64],
) -> pa.Table:
    if not is_rising(catalog.column("track_id")):
        rows = rows[pc.sort_indices(catalog.column("track_id").take(pa.array(rows))).to_numpy()]
    wanted = [f"{recipe}/{name}" for recipe in matches for name in resolutions]
    plan = take_rows(catalog.select(CATALOG.names), pa.array(rows))
    plan = plan.append_column(PLAN.field("wanted"), repeat_value(wanted, len(rows), PLAN.field("wanted").type))
    plan = plan.append_column(PLAN.field("held"), _list_held(matches, rows))
    plan = plan.append_column(PLAN.field("stored"), repeat_value([], len(rows), PLAN.field("stored").type))
    return plan.append_column(PLAN.field("owner_uri"), _list_owners(plan.column("uri"), matches, rows))


def _list_owners(
    uris: pa.ChunkedArray, matches: Mapping[str, pa.Table], rows: npt.NDArray[np.int64]
) -> pa.ChunkedArray:
    """List the files that the store has for each of the rows' ids, null where it is the row's own."""
    recorded = pc.coalesce(*(take_rows(each.select(["uri"]), pa.array(rows))["uri"] for each in matches.values()))
    is_other = pc.not_equal(forget_places(recorded), forget_places(uris))
    return pc.if_else(pc.fill_null(is_other, False), recorded, None)


def _list_held(matches: Mapping[str, pa.Table], rows: npt.NDArray[np.int64]) -> pa.Array | pa.ChunkedArray:
    """List for each of the rows what the store holds of it, as "recipe/resolution@content_hash"."""
    if all(found.column("content_hash").null_count == found.num_rows for found in matches.values()):
        return repeat_value([], len(rows), PLAN.field("held").type)
    held: list[list[str]] = [[] for _ in rows]
    for recipe, found in matches.items():
        stored = found.select(["resolutions", "content_hash"]).take(pa.array(rows))
        columns = (stored.column(name).to_pylist() for name in stored.column_names)
        for names_held, resolutions, content_hash in zip(held, *columns, strict=True):
            names_held += [f"{recipe}/{name}@{content_hash}" for name in resolutions or ()]
    return pa.array(held, PLAN.field("held").type)


def _count_reasons(matches: Sequence[pa.Table], known_bad: Sequence[Mask], failed: Mask) -> dict[str, int]:
    """Count known failures by reason; a track that is bad for several recipes counts once."""
    known = [
        pc.if_else(pa.array(bad), found.column("error_type"), None)
        for found, bad in zip(matches, known_bad, strict=True)
    ]
    reasons = pc.coalesce(*known).filter(pa.array(failed))
    return {item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()}


def _find_departed(recorded: pa.Table, catalog: pa.Table) -> set[str]:
    """Return the ids of recorded tracks that the catalog does not have."""
    if not recorded.num_rows:
        return set()
    ids = recorded.column("track_id")
    present = pc.is_in(ids, catalog.column("track_id").combine_chunks())
    return set(ids.filter(pc.invert(present)).to_pylist())


def _as_mask(values: pa.ChunkedArray) -> Mask:
    """Return a boolean column as a NumPy mask, null counting as false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)
