"""Failures by name: which files cannot be embedded, why, and what to do about each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.location import StoreLocation
from pipeline.report.advice import ADVICE
from pipeline.store.tables import open_table, read_columns

COLUMNS = ("track_id", "uri", "stage", "error_type", "error_message", "event_time", "run_id", "recipe")
NO_ADVICE = "See the message."


def list_failures(
    store: StoreLocation,
    recipes: Collection[str] | None = None,
    run_id: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """List the tracks that could not be embedded as of their last try, one row each.

    Args:
        store: The store.
        recipes: Only failures of these; by default of all. A track that fails alike for several is one row.
        run_id: A run whose own failures come first.
        limit: How many rows at most.

    Returns:
        Rows of track_id, uri, stage, reason, message, advice, time (ISO 8601) and run_id, sorted by track_id.

    Raises:
        StorageError: There is no store, or it cannot be read.
    """
    table = open_table(store, "failures")
    keys = read_columns(table, ["track_id", "run_id", "recipe"]).to_pylist()
    chosen_keys = [row for row in keys if recipes is None or row["recipe"] in recipes]
    own = {row["track_id"] for row in chosen_keys if row["run_id"] == run_id}
    known = {row["track_id"] for row in chosen_keys}
    chosen = sorted(known, key=lambda track_id: (run_id is not None and track_id not in own, track_id))[:limit]
    if not chosen:
        return []
    rows = read_columns(table, list(COLUMNS), track_ids=chosen)
    position = {track_id: number for number, track_id in enumerate(chosen)}
    described: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows.sort_by([("event_time", "descending"), ("recipe", "ascending")]).to_pylist():
        if row["track_id"] in position and (recipes is None or row["recipe"] in recipes):
            described.setdefault((row["track_id"], row["error_type"]), _describe(row))
    return sorted(described.values(), key=lambda row: position[row["track_id"]])


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "track_id": row["track_id"],
        "uri": row["uri"],
        "stage": row["stage"],
        "reason": row["error_type"],
        "message": row["error_message"],
        "advice": ADVICE.get(row["error_type"], NO_ADVICE),
        "time": row["event_time"].isoformat(timespec="seconds") if row["event_time"] else None,
        "run_id": row["run_id"],
    }
