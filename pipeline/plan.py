"""Plan: what a catalog asks for, less what the store holds.

A track is unchanged when the ledger has it at every wanted recipe and resolution and its URI, its etag (or,
where the storage has none, its size and modification time) are as recorded. Otherwise it is looked at: the
bytes are read, and their hash decides whether it is embedded. A file that failed is not tried again until
it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Stage
from pipeline.schema import CATALOG, PLAN

FACT_COLUMNS = ("uri", "etag", "size_bytes", "modified_time")
LABEL_COLUMNS = ("title", "artist", "album", "genre")
LEDGER_COLUMNS = ("track_id", *FACT_COLUMNS, *LABEL_COLUMNS, "content_hash", "resolutions")
FAILURE_COLUMNS = ("track_id", *FACT_COLUMNS, "stage", "error_type")

# Failures that lie in the file itself. What lies in the way to it (network, permissions) is tried every time.
_LASTING_STAGES = (Stage.CATALOG.value, Stage.DECODE.value, Stage.EMBED.value)


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Args:
        to_process: Rows of ``schema.PLAN``, sorted by track_id: to read, and to embed where the bytes say so.
        relabeled: Rows of ``schema.CATALOG``: content as stored, but title, artist, album or genre moved.
        num_tracks: Tracks in the catalog.
        num_unchanged: Tracks that need no look, relabeled ones included.
        num_known_failures: Tracks that failed before and have not changed since.
        known_failures_by_reason: Of those, how many for each reason.
        departed: For each recipe, ids in the ledger that the catalog no longer has.
    """

    to_process: pa.Table
    relabeled: pa.Table
    num_tracks: int
    num_unchanged: int
    num_known_failures: int
    known_failures_by_reason: dict[str, int]
    departed: dict[str, list[str]]


def plan_tracks(
    catalog: pa.Table,
    ledgers: Mapping[str, pa.Table],
    failures: Mapping[str, pa.Table],
    resolutions: Sequence[str],
    retry_failures: bool = False,
) -> Plan:
    """Compare a catalog with the store's ledger.

    Args:
        catalog: Rows of ``schema.CATALOG`` with unique track ids.
        ledgers: For each wanted recipe, its rows of ``tracks`` with ``LEDGER_COLUMNS``.
        failures: For each wanted recipe, its rows of ``failures`` with ``FAILURE_COLUMNS``.
        resolutions: Wanted resolutions.
        retry_failures: Try known-bad files again.

    Returns:
        The plan; num_tracks = rows to process + num_unchanged + num_known_failures.
    """
    matches = {recipe: _match(catalog, ledger) for recipe, ledger in ledgers.items()}
    settled = [_is_settled(catalog, found, resolutions) for found in matches.values()]
    failure_matches = {recipe: _match(catalog, failures[recipe]) for recipe in ledgers}
    known_bad = [_is_known_failure(catalog, found) for found in failure_matches.values()]
    unchanged = np.logical_and.reduce(settled)
    # Bad for one recipe is bad for all that lack the track: what fails for good lies in the file.
    failed = ~unchanged & np.logical_and.reduce([s | bad for s, bad in zip(settled, known_bad, strict=True)])
    if retry_failures:
        failed[:] = False
    relabeled = unchanged & np.logical_or.reduce([_is_relabeled(catalog, found) for found in matches.values()])
    to_look_at = np.flatnonzero(~(unchanged | failed))
    return Plan(
        to_process=_build_plan_rows(catalog, matches, resolutions, to_look_at),
        relabeled=catalog.filter(pa.array(relabeled)),
        num_tracks=catalog.num_rows,
        num_unchanged=int(unchanged.sum()),
        num_known_failures=int(failed.sum()),
        known_failures_by_reason=_count_reasons(list(failure_matches.values()), failed),
        departed={
            recipe: _find_departed(ledger.column("track_id"), catalog.column("track_id"))
            for recipe, ledger in ledgers.items()
        },
    )


def _match(catalog: pa.Table, recorded: pa.Table) -> pa.Table:
    """Return for each catalog row the recorded row of the same track, or a row of nulls."""
    return recorded.take(pc.index_in(catalog.column("track_id"), recorded.column("track_id")))


def _is_settled(catalog: pa.Table, found: pa.Table, resolutions: Sequence[str]) -> np.ndarray:
    """Say for each row whether the store holds it whole and nothing hints at a change."""
    held = pc.binary_join(found.column("resolutions"), ",").combine_chunks().dictionary_encode()
    # A ledger has a handful of distinct sets of resolutions, whatever its length.
    holds_all = np.array(
        [set(resolutions) <= set(text.split(",")) for text in held.dictionary.to_pylist()] + [False]
    )
    whole = holds_all[pc.fill_null(held.indices, len(held.dictionary)).to_numpy()]
    return whole & _has_same_facts(catalog, found)


def _has_same_facts(catalog: pa.Table, found: pa.Table) -> np.ndarray:
    """Say for each row whether its file can be taken for the recorded one without reading it."""
    same = {name: _as_mask(pc.equal(catalog.column(name), found.column(name))) for name in FACT_COLUMNS}
    both_have_etags = _as_mask(pc.and_(pc.is_valid(catalog.column("etag")), pc.is_valid(found.column("etag"))))
    same_size_and_time = same["size_bytes"] & same["modified_time"]
    return same["uri"] & np.where(both_have_etags, same["etag"], same_size_and_time)


def _is_known_failure(catalog: pa.Table, found: pa.Table) -> np.ndarray:
    """Say for each row whether this very file failed before, for a reason that lies in the file."""
    lasting = _as_mask(pc.is_in(found.column("stage"), pa.array(_LASTING_STAGES)))
    both_without_audio = _as_mask(pc.and_(pc.is_null(catalog.column("uri")), pc.is_null(found.column("uri"))))
    return lasting & (_has_same_facts(catalog, found) | both_without_audio)


def _is_relabeled(catalog: pa.Table, found: pa.Table) -> np.ndarray:
    """Say for each row whether the catalog describes the track in other words than the ledger."""
    differs = np.zeros(catalog.num_rows, bool)
    for name in LABEL_COLUMNS:
        equal = pc.equal(pc.fill_null(catalog.column(name), ""), pc.fill_null(found.column(name), ""))
        differs |= ~_as_mask(equal)
    return differs


def _build_plan_rows(
    catalog: pa.Table, matches: Mapping[str, pa.Table], resolutions: Sequence[str], rows: np.ndarray
) -> pa.Table:
    held: list[list[str]] = [[] for _ in rows]
    for recipe, found in matches.items():
        ledger_rows = found.select(["resolutions", "content_hash"]).take(pa.array(rows))
        for index in np.flatnonzero(_as_mask(pc.is_valid(ledger_rows.column("content_hash")))):
            content_hash = ledger_rows.column("content_hash")[index].as_py()
            names = ledger_rows.column("resolutions")[index].as_py()
            held[index] += [f"{recipe}/{name}@{content_hash}" for name in names]
    wanted = [f"{recipe}/{name}" for recipe in matches for name in resolutions]
    plan = catalog.select(CATALOG.names).take(pa.array(rows))
    plan = plan.append_column(PLAN.field("wanted"), pa.array([wanted] * len(rows), PLAN.field("wanted").type))
    plan = plan.append_column(PLAN.field("held"), pa.array(held, PLAN.field("held").type))
    return plan.sort_by("track_id")


def _count_reasons(matches: Sequence[pa.Table], failed: np.ndarray) -> dict[str, int]:
    """Count known failures by reason; a track that is bad for several recipes counts once."""
    reasons = pc.coalesce(*(found.column("error_type") for found in matches)).filter(pa.array(failed))
    return {item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()}


def _find_departed(ledger_ids: pa.ChunkedArray, catalog_ids: pa.ChunkedArray) -> list[str]:
    departed = pc.invert(pc.is_in(ledger_ids, catalog_ids.combine_chunks()))
    return list(ledger_ids.filter(departed).to_pylist())


def _as_mask(values: pa.ChunkedArray) -> np.ndarray:
    """Return a boolean column as a NumPy mask, null counting as false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)
