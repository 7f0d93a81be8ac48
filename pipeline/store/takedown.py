"""Take down: withhold tracks, and take them out of the tables; what that comes to, without doing it; and back."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.location import StoreLocation
from pipeline.store.maintain import check_closed, delete_tracks
from pipeline.store.tables import open_table, read_columns
from pipeline.store.withheld import find_contents, find_other_names, read_withheld, restore, withhold
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class TakeDown:
    """What a take-down did, or would do.

    Args:
        deleted: Tracks that leave the ledger.
        withheld: Tracks that are kept from coming back.
        not_found: Ids that the store does not know and has not taken down.
        same_content: Ids of other tracks with the content of these: they stay.
    """

    deleted: int
    withheld: int
    not_found: list[str]
    same_content: list[str]


def preview_take_down(store: StoreLocation, track_ids: Sequence[str]) -> TakeDown:
    """Say what ``take_down`` would do; nothing is written.

    Raises:
        StorageError: There is no store, or it cannot be read.
    """
    contents = find_contents(store, track_ids)
    stored = set(contents.column("track_id").to_pylist())
    ledger = read_columns(open_table(store, "tracks"), ["track_id"], track_ids=track_ids)
    held = set(ledger.column("track_id").to_pylist()) & set(track_ids)
    missing = set(track_ids) - stored - read_withheld(store).ids
    return TakeDown(len(held), len(stored), sorted(missing), find_other_names(store, contents))


def take_down(writer: StoreWriter, track_ids: Sequence[str], reason: str | None = None) -> TakeDown:
    """Withhold tracks and delete them from the current tables.

    Args:
        writer: An open store.
        track_ids: Which.
        reason: Why, to be kept.

    Raises:
        UsageError: The last run has not closed.
        StorageError: The store cannot be read or written.
        RunError: Another run has claimed it.
    """
    check_closed(writer)
    preview = preview_take_down(writer.store, track_ids)
    # First: searches stop at once, and of a take-down that is killed nothing comes back.
    withhold(writer, find_contents(writer.store, track_ids), reason)
    delete_tracks(writer, track_ids)
    return preview


def restore_tracks(
    store: StoreLocation, track_ids: Sequence[str], dry_run: bool = False
) -> tuple[list[str], list[str]]:
    """Take the take-down of some tracks back.

    Args:
        store: The store.
        track_ids: Which.
        dry_run: Only say what would be done.

    Returns:
        Ids that were taken down, and those that were not.

    Raises:
        UsageError: The last run has not closed.
        StorageError: The store cannot be read or written.
        RunError: Another run has claimed it.
    """
    withheld = set(read_withheld(store).ids) & set(track_ids)
    if withheld and not dry_run:
        writer = StoreWriter(store, f"restore-{uuid.uuid4().hex[:12]}")
        check_closed(writer)
        restore(writer, sorted(withheld))
        writer.commit_ledger([], "delete")  # the store is nobody's again
    return sorted(withheld), sorted(set(track_ids) - withheld)
