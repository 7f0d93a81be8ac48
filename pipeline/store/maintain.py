"""Maintain: compact small parts, drop dead rows, delete tracks and recipes for good, and say what a store weighs.

Every operation claims the store as a run does, commits to ``frames`` first and to the ledger last, and publishes
what it leaves. Readers that pinned an older version keep reading its files until a vacuum removes them.

Compaction publishes in stages: broken off, or overtaken by a run, it has done what it has published, and the next
one goes on from there.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import DEFAULT_DEAD_SHARE
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.schema import KEYS
from pipeline.storage import join_url, list_files, read_file
from pipeline.store.joining import TARGET_PART_BYTES
from pipeline.store.ledger import Actions, build_removal, extract_rows, join_keys, list_table_files, read_rows
from pipeline.store.parts import Part, write_part
from pipeline.store.rewrite import Rewrite, rewrite_parts
from pipeline.store.table_commits import vacuum_table
from pipeline.store.tables import read_columns
from pipeline.store.usage import PartState, inspect_parts, list_partitions
from pipeline.store.writer import StoreWriter

RunAll = Callable[[Callable[[Rewrite], Part | None], Sequence[Rewrite]], Iterable[Part | None]]

STAGE_S = 60.0  # of rewriting go into one commit: what is lost where it is broken off
TARGET_LEDGER_BYTES = 2 * 2**20  # some 20,000 rows: a change to one track rewrites its part of the ledger


def compact_store(writer: StoreWriter, dead_share: float = DEFAULT_DEAD_SHARE, run_all: RunAll = map) -> int:
    """Rewrite parts that are small or largely dead, and publish the result.

    Args:
        writer: An open store.
        dead_share: Parts with a larger share of dead rows are rewritten.
        run_all: Rewrites groups of parts; what it yields is published now and then.

    Returns:
        How many parts were replaced.

    Raises:
        UsageError: The last run has not closed: publishing now would show half of it.
        RunError: Another run has claimed the store.
        StorageError: The store cannot be read or written.
    """
    check_closed(writer)
    stages = _Stages(writer)
    rewrite = partial(rewrite_parts, store=writer.store, run_id=writer.run_id)
    for recipe, partitions in groupby(list_partitions(writer.frames), itemgetter(0)):
        live = read_columns(writer.tracks, KEYS, recipe).sort_by("track_id")
        live_keys = join_keys(live)
        for _, resolution in partitions:
            states = inspect_parts(writer.store, writer.frames, recipe, resolution, live_keys)
            groups = _group_parts(states, dead_share, TARGET_PART_BYTES)
            rewrites = [_plan_rewrite(group, live) for group in groups]
            for group, part in zip(groups, run_all(rewrite, rewrites), strict=True):
                stages.add([build_removal("frames", state.file) for state in group], part)
    stages.commit()
    writer.commit_ledger(_compact_ledger(writer), "maintain")
    return stages.num_replaced


def delete_tracks(writer: StoreWriter, track_ids: Sequence[str]) -> int:
    """Take tracks out of all current tables, at every recipe, and publish the result.

    Args:
        writer: An open store.
        track_ids: Which tracks.

    Returns:
        How many of them were in the ledger.

    Raises:
        UsageError: The last run has not closed: publishing now would show half of it.
        RunError: Another run has claimed the store.
        StorageError: The store cannot be read or written.
    """
    check_closed(writer)
    deleted: set[str] = set()
    for name in ("frames", "failures", "tracks"):
        taken = extract_rows(writer.table(name), name, writer.store, None, list(set(track_ids)), writer.run_id)
        if name == "tracks":
            deleted |= set(taken.rows.column("track_id").to_pylist())
            writer.commit_ledger(taken.actions, "delete")
        elif taken.actions:
            writer.commit(name, taken.actions, "delete")
    return len(deleted)


def drop_recipe(writer: StoreWriter, recipe: str) -> int:
    """Take all that is stored under a recipe out of the current tables, and publish the result.

    Args:
        writer: An open store.
        recipe: Recipe id.

    Returns:
        How many files left the tables.

    Raises:
        UsageError: There is no such recipe, or the last run has not closed.
        RunError: Another run has claimed the store.
        StorageError: The store cannot be read or written.
    """
    check_closed(writer)
    known = {file["partition.recipe"] for file in list_table_files(writer.tracks, "tracks")}
    if recipe not in known:
        raise UsageError(
            f"expected one of the store's recipes ({', '.join(sorted(known)) or 'none'}), found {recipe}"
        )
    num_files = 0
    for name in ("frames", "tracks"):
        files = list_table_files(writer.table(name), name, recipe)
        num_files += len(files)
        actions: Actions = [build_removal(name, file) for file in files]
        if name == "tracks":
            writer.commit_ledger(actions, "drop_recipe")
        elif actions:
            writer.commit(name, actions, "drop_recipe")
    return num_files


def vacuum_store(writer: StoreWriter, retention_hours: int) -> int:
    """Remove files that are in no current table and have not been for a while, never committed ones included.

    Args:
        writer: An open store, so that no run is writing files meanwhile.
        retention_hours: Files that left, or were written, later than so long ago stay.

    Returns:
        How many files were removed.

    Raises:
        StorageError: The store cannot be read or written.
    """
    return sum(len(vacuum_table(writer.table(name), retention_hours)) for name in ("frames", "tracks", "failures"))


def find_stored_ids(store: StoreLocation, track_ids: Sequence[str]) -> dict[str, list[str]]:
    """Look for tracks in every data file that physically lies in a store, committed or not.

    Args:
        store: The store.
        track_ids: Which tracks.

    Returns:
        For each file that holds rows of any of them, relative to the store, their ids.
    """
    wanted = pa.array(sorted(set(track_ids)), pa.string())
    ids_by_file = {}
    for name in ("tracks", "frames", "failures"):
        listing = list_files(store.table_url(name), store.options)
        for path in listing.column("path").to_pylist():
            if path.endswith(".parquet") and not path.startswith("_delta_log/"):
                data = pa.BufferReader(read_file(join_url(store.table_url(name), path), store.options))
                ids = pq.ParquetFile(data).read(["track_id"], use_threads=False).column("track_id")
                hits = pc.unique(ids.filter(pc.is_in(ids, wanted))).to_pylist()
                if hits:
                    ids_by_file[f"{name}/{path}"] = hits
    return ids_by_file


def check_closed(writer: StoreWriter) -> None:
    """Raise UsageError where the last run has not closed: what is published now would be half of it."""
    if writer.unclosed_run is not None:
        raise UsageError(
            f"run {writer.unclosed_run} has committed to the store at {writer.store.url} and has not closed; "
            "run the embedding command again first, so that it can"
        )


def _group_parts(states: Sequence[PartState], dead_share: float, target_bytes: int) -> list[list[PartState]]:
    """List runs of neighbouring parts that become one; a part that is fine as it is stays out of it."""
    groups: list[list[PartState]] = []
    group: list[PartState] = []
    size_bytes = 0
    for state in states:
        own_bytes = int(state.file["size_bytes"])
        if own_bytes >= target_bytes // 4 and state.dead_share <= dead_share:
            continue
        if group and size_bytes + own_bytes > target_bytes:
            groups.append(group)
            group, size_bytes = [], 0
        group.append(state)
        size_bytes += own_bytes
    # A lone part is worth a rewrite only for its dead rows.
    return [g for g in [*groups, group] if len(g) > 1 or (g and g[0].dead_share > dead_share)]


def _plan_rewrite(group: Sequence[PartState], live: pa.Table) -> Rewrite:
    """Say what becomes of some parts; of the keys that are alive, sorted, it is told those of its own span."""
    parts = [state.as_part() for state in group]
    if not any(state.dead_share for state in group):
        return Rewrite(parts, None)
    first, stop = 0, live.num_rows
    if all(part.min_track_id is not None and part.max_track_id is not None for part in parts):
        ids, read = live.column("track_id"), pa.StringScalar.as_py
        first = bisect_left(ids, min(str(part.min_track_id) for part in parts), key=read)
        stop = bisect_right(ids, max(str(part.max_track_id) for part in parts), key=read)
    return Rewrite(parts, join_keys(live[first:stop]))


class _Stages:
    """Rewritten parts on their way to readers, a minute's work a commit.

    Args:
        writer: An open store.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self.writer = writer
        self.num_replaced = 0
        self._actions: Actions = []
        self._began_s = time.monotonic()

    def add(self, removals: Actions, part: Part | None) -> None:
        """Let some parts be replaced, and publish where the last time was long ago."""
        self.writer.renew_lease()
        self.num_replaced += len(removals)
        self._actions += [*removals, *([part.as_add_action()] if part else [])]
        if time.monotonic() - self._began_s >= STAGE_S:
            self.commit()
            self.writer.commit_ledger([], "maintain")

    def commit(self) -> None:
        """Commit what was rewritten; a commit of the ledger is to follow."""
        if self._actions:
            self.writer.commit("frames", self._actions, "compact")
        self._actions, self._began_s = [], time.monotonic()


def _compact_ledger(writer: StoreWriter) -> Actions:
    """Replace the ledger's small files by few that hold the same rows; none of its rows is ever dead."""
    actions: Actions = []
    url = writer.store.table_url("tracks")
    files = sorted(list_table_files(writer.tracks, "tracks"), key=lambda file: str(file["min.track_id"]))
    for recipe in sorted({file["partition.recipe"] for file in files}):
        states = [PartState(file, 1, 1) for file in files if file["partition.recipe"] == recipe]
        for group in _group_parts(states, DEFAULT_DEAD_SHARE, TARGET_LEDGER_BYTES):
            rows = pa.concat_tables([read_rows("tracks", writer.store, state.file) for state in group])
            rows = rows.sort_by("track_id")
            part = write_part(rows, "tracks", url, {"recipe": recipe}, writer.run_id, writer.store.options)
            actions += [*(build_removal("tracks", state.file) for state in group), part.as_add_action()]
    return actions
