"""Snapshots: which versions of the two tables go together, and which of them a reader opens."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.store.tables import PUBLISHING_EVENTS, open_table, read_history

Snapshot = str | int | datetime

_HISTORY_STEPS = (20, 200, 2000, None)  # commits looked at in turn: the newest closed run is nearly always near


class NoVectorsError(UsageError):
    """The published snapshot has no vectors of a recipe at a resolution, or no longer."""


def find_versions(location: StoreLocation, snapshot: Snapshot) -> tuple[int, int]:
    """Return the versions of ``tracks`` and ``frames`` that a snapshot stands for.

    Args:
        location: The store.
        snapshot: ``published``, ``latest``, a version of ``tracks``, or a time with its zone.

    Raises:
        StorageError: There is no store, or it cannot be read.
        UsageError: There is no such snapshot.
    """
    table = open_table(location, "tracks")
    for limit in _HISTORY_STEPS:
        history = read_history(table, limit)
        for position, commit in enumerate(history):
            if _is_snapshot(commit, snapshot):
                named = [c["frames_version"] for c in history[position:] if "frames_version" in c]
                if named or limit is None:  # before the first run both tables are empty
                    return int(commit["version"]), int(named[0] if named else 0)
    raise UsageError(
        f"no snapshot {snapshot!r} in the store at {location.url}: expected 'published' (once a run has "
        "closed), 'latest', a version of tracks or a time after its first run"
    )


def choose_recipe(files: pa.Table, recipe: str | None, location: StoreLocation) -> str:
    """Return the recipe that was asked for, or the one that there is.

    Args:
        files: Of the table of tracks, with their ``partition.recipe``.
        recipe: Recipe id; None for the only one.
        location: The store, for messages.

    Raises:
        NoVectorsError: There is no such recipe.
        UsageError: There are several, and none is named.
    """
    known = sorted(set(files.column("partition.recipe").to_pylist()))
    if recipe in known:
        return str(recipe)
    if recipe is None and len(known) == 1:
        return str(known[0])
    given = "no recipe named: name one (--recipe)" if recipe is None else recipe
    kind = UsageError if recipe is None and known else NoVectorsError
    raise kind(
        f"expected one of the recipes of the store at {location.url} ({', '.join(known) or 'none'}), found {given}"
    )


def _is_snapshot(commit: Mapping[str, Any], snapshot: str | int | datetime) -> bool:
    """Say whether a commit of the ledger is the one that a snapshot names; newest commits are asked first."""
    if snapshot == "latest":
        return True
    if isinstance(snapshot, int):
        return bool(commit["version"] == snapshot)
    closed = commit.get("event") in PUBLISHING_EVENTS
    if isinstance(snapshot, datetime) and snapshot.tzinfo:
        return closed and datetime.fromtimestamp(commit["timestamp"] / 1000, UTC) <= snapshot
    if snapshot == "published":
        return closed
    raise UsageError(f"expected 'published', 'latest', a version or a time with its zone, found {snapshot!r}")
