"""Withheld: what was taken down stays down. Ids and contents that no run embeds and no search returns.

The table is written by whoever has claimed the store, and read by everybody at its newest version, whatever
snapshot they look at: a take-down holds from the moment of its commit on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import KEYS, WITHHELD
from pipeline.store.ledger import extract_rows
from pipeline.store.table_commits import append_rows, commit_actions
from pipeline.store.tables import has_table, open_table, read_columns, refresh
from pipeline.store.writer import StoreWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Withheld:
    """What is taken down.

    Args:
        ids: Track ids.
        hashes: Contents, whatever they are called.
    """

    ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()


def read_withheld(store: StoreLocation) -> Withheld:
    """Return what is taken down in a store as of now; nothing where there is no store yet.

    Raises:
        StorageError: The table cannot be read.
    """
    if not has_table(store, "withheld"):
        return Withheld()
    return _read_keys(open_table(store, "withheld"))


def find_contents(store: StoreLocation, track_ids: Sequence[str]) -> pa.Table:
    """Return id and content, ``KEYS``, of tracks as the ledger or the failures have them; each pair once."""
    wanted = pa.array(sorted(set(track_ids)), pa.string())
    rows = pa.concat_tables(
        read_columns(open_table(store, name), list(KEYS), track_ids=track_ids) for name in ("tracks", "failures")
    )
    rows = rows.filter(pc.is_in(rows.column("track_id"), wanted))
    return (
        rows.group_by(list(KEYS)).aggregate([]).select(list(KEYS)).sort_by([(name, "ascending") for name in KEYS])
    )


def find_other_names(store: StoreLocation, contents: pa.Table) -> list[str]:
    """Return ids of tracks in the ledger that have the same content as some others, and are none of them."""
    rows = read_columns(open_table(store, "tracks"), list(KEYS))
    same = pc.is_in(rows.column("content_hash"), contents.column("content_hash").combine_chunks().drop_null())
    others = pc.and_not(same, pc.is_in(rows.column("track_id"), contents.column("track_id").combine_chunks()))
    return sorted(set(rows.filter(others).column("track_id").to_pylist()))


def withhold(writer: StoreWriter, contents: pa.Table, reason: str | None) -> None:
    """Enter tracks as taken down; those that are entered with the same content already stay as they are.

    Args:
        writer: An open store.
        contents: ``KEYS`` of the tracks, from ``find_contents``.
        reason: Why, in the words of whoever took them down.

    Raises:
        StorageError: The table cannot be read or written.
    """
    entered = _join(read_columns(open_table(writer.store, "withheld"), list(KEYS)))
    rows = contents.filter(pc.invert(pc.is_in(_join(contents), entered)))
    if not rows.num_rows:
        return
    columns = {
        "track_id": rows.column("track_id"),
        "content_hash": rows.column("content_hash"),
        "reason": pa.repeat(pa.scalar(reason, pa.string()), rows.num_rows),
        "event_time": pa.repeat(pa.scalar(datetime.now(UTC), WITHHELD.field("event_time").type), rows.num_rows),
        "run_id": pa.repeat(writer.run_id, rows.num_rows),
    }
    rows = pa.table(columns, schema=WITHHELD).sort_by("track_id")
    append_rows(writer.store, "withheld", rows, {"run_id": writer.run_id, "event": "withhold"})


def restore(writer: StoreWriter, track_ids: Sequence[str]) -> list[str]:
    """Take entries back: the next run embeds these tracks again, if the catalog has them.

    Args:
        writer: An open store.
        track_ids: Which.

    Returns:
        Those of them that were entered.

    Raises:
        StorageError: The table cannot be read or written.
    """
    if not has_table(writer.store, "withheld"):
        return []
    table = open_table(writer.store, "withheld")
    taken = extract_rows(table, "withheld", writer.store, None, list(set(track_ids)), writer.run_id)
    if taken.actions:
        commit_actions(table, "withheld", taken.actions, {"run_id": writer.run_id, "event": "restore"})
    return sorted(set(taken.rows.column("track_id").to_pylist()))


class WithheldWatch:
    """What is taken down as of now, for whoever asks often, from any number of threads.

    A look is a listing of what was committed since the last one; those who ask while one is under way share the
    next.

    Args:
        store: The store.
    """

    def __init__(self, store: StoreLocation) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._looked_s = -1.0
        self._table: DeltaTable | None = None
        self._found = Withheld()

    def read(self) -> Withheld:
        """Return what is taken down; the same object for as long as nothing changes.

        Storage that does not answer is a warning: what was known last goes on.
        """
        asked_s = time.monotonic()
        with self._lock:
            if self._looked_s <= asked_s:
                looked_s = time.monotonic()
                try:
                    self._look()
                except StorageError as error:
                    logger.warning("what was taken down of late is not known: %s", error)
                self._looked_s = looked_s
            return self._found

    def _look(self) -> None:
        if self._table is None:
            if not has_table(self.store, "withheld"):
                return
            table = open_table(self.store, "withheld")
        else:
            table, version = self._table, self._table.version()
            refresh(table)
            if table.version() == version:
                return
        self._found = _read_keys(table)
        self._table = table


def _read_keys(table: DeltaTable) -> Withheld:
    rows = read_columns(table, list(KEYS))
    ids, hashes = (frozenset(rows.column(name).drop_null().to_pylist()) for name in KEYS)
    return Withheld(ids, hashes)


def _join(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(
        rows.column("track_id"), rows.column("content_hash"), "\n", null_handling="replace"
    ).combine_chunks()
