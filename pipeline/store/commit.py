"""Commit: results of write tasks become visible, first in ``frames``, then in the ledger.

Every commit of the ledger names the version of ``frames`` that goes with it. A run that is killed between
the two leaves frames that no ledger names; the next run takes them back before it plans, so that no row is
ever stored twice. The commit that closes a run carries its counts and publishes it.

``writer`` sees to it that one run writes at a time.
"""

from __future__ import annotations

import json
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.config import Recipe, Shard
from pipeline.location import StoreLocation
from pipeline.schema import CATALOG, FAILURES, TRACKS, UNCHANGED
from pipeline.store.books import Accepted, RunCounts
from pipeline.store.joining import Partition, join_parts, plan_joins, remove_parts
from pipeline.store.ledger import Actions, cut_between_parts, extract_rows, merge_track_rows, relabel_track_rows
from pipeline.store.parts import Part, from_ipc, write_part
from pipeline.store.shared_run import IdRange
from pipeline.store.tables import read_columns
from pipeline.store.takeover import split_by_id
from pipeline.store.writer import StoreWriter

Join = Callable[[Sequence[Part]], Part]
_PRESENT = [*CATALOG.names, "content_hash"]  # what is known of tracks that the ledger has


@dataclass
class _Pending:
    """Accepted results that no commit has made visible yet."""

    parts: list[Part] = field(default_factory=list)
    joined: list[Part] = field(default_factory=list)  # whose rows some of the parts hold
    tracks: list[pa.Table] = field(default_factory=list)
    failures: list[pa.Table] = field(default_factory=list)
    relabeled: list[pa.Table] = field(default_factory=list)


class RunCommitter:
    """The only writer of a run's commits; lives in the driver.

    Args:
        store: Where the tables are; they exist.
        run_id: Identifier of the run, part of its files' names and of its commits.
        recipes: Recipes of the run, by id.
        shard: Which of several drivers of one run this is.
        first_ids: The first track of each shard but the first, by this driver's catalog.

    Raises:
        StorageError: The store cannot be read or written.
        UsageError: Another run is at work.
        RunError: Another run claimed the store at the same moment.
    """

    def __init__(
        self,
        store: StoreLocation,
        run_id: str,
        recipes: Mapping[str, Recipe],
        shard: Shard | None = None,
        first_ids: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.run_id = run_id
        self.recipes = dict(recipes)
        self.counts = RunCounts()
        self.moved_ids: set[str] = set()  # what their tracks were called before
        self._pending = _Pending()
        self._recognised: list[pa.Table] = []
        self._done: set[str] = set()
        self._spans: dict[str, list[tuple[str, str]]] = {}  # of the ledger's parts that the run wrote, by recipe
        self._first_ids: dict[Partition, list[str]] = defaultdict(list)  # of the run's parts of ``frames``, sorted
        self.writer = StoreWriter(store, run_id, shard=shard, first_ids=first_ids, recipes=list(recipes))
        # As the run finds them: it gives each track one outcome, so nothing that it adds itself has to leave.
        self._held_ids = {recipe: _read_ids(self.writer.tracks, recipe) for recipe in self.recipes}
        self._failed_ids = {recipe: _read_ids(self.writer.failures, recipe) for recipe in self.recipes}

    @property
    def store_version(self) -> int:
        """Version of the ledger after the last commit."""
        return self.writer.store_version

    @property
    def ids(self) -> IdRange:
        """The tracks that are this run's."""
        return self.writer.ids

    @property
    def num_open_shards(self) -> int | None:
        """How many of the drivers that share the run have not closed; None where there are no others."""
        return self.writer.shared.num_open if self.writer.shared else None

    @property
    def bytes_written(self) -> int:
        """Bytes of the files that the run's commits added."""
        return self.writer.bytes_written

    @property
    def done(self) -> set[str]:
        """Ids of the tracks that have an outcome in this run."""
        return self._done

    def accept(self, result: pa.Table) -> Accepted:
        """Take one result of a write task.

        A worker that died and was started again may deliver a track twice. Such a result is left out whole,
        with its parts; those of its tracks that have no outcome yet are then processed again.

        Args:
            result: One row of ``schema.RESULTS``.

        Returns:
            What was taken; nothing of a result that was left out.
        """
        row = result.to_pylist()[0]
        tracks, failures, unchanged = (from_ipc(row[name]) for name in ("tracks", "failures", "unchanged"))
        unchanged, recognised = split_by_id(unchanged)
        accepted = Accepted.read(tracks, failures, unchanged, recognised)
        if accepted.ids & self._done:
            return Accepted()
        self._done |= accepted.ids
        self.counts.add(accepted)
        self._pending.parts += [Part(**part) for part in row["parts"]]
        self._pending.tracks.append(tracks)
        self._pending.failures.append(failures)
        self._pending.relabeled.append(unchanged.select(_PRESENT))
        self._recognised.append(recognised)
        return accepted

    def collect_recognised(self) -> pa.Table:
        """Return and forget the rows of ``schema.UNCHANGED`` whose content is known under another id."""
        rows = pa.concat_tables([UNCHANGED.empty_table(), *self._recognised])
        self._recognised = []
        return rows

    def take_over(self, parts: Sequence[Part], tracks: pa.Table) -> None:
        """Take tracks whose features were copied from those of other ids.

        Args:
            parts: Of ``frames``, written and not yet committed.
            tracks: Rows of ``schema.TRACKS``.
        """
        self._pending.parts += parts
        self._pending.tracks.append(tracks)

    def forget(self, track_ids: Iterable[str]) -> None:
        """Let tracks that were recognised in vain have no outcome yet."""
        self._done -= set(track_ids)

    def relabel(self, catalog: pa.Table) -> None:
        """Let the ledger follow the catalog's metadata for tracks whose content is as stored.

        Args:
            catalog: Rows of ``schema.CATALOG``.
        """
        nulls = pa.nulls(catalog.num_rows, pa.string())
        self._pending.relabeled.append(catalog.append_column("content_hash", nulls).select(_PRESENT))

    def join_pending(self, run_all: Callable[[Join, Sequence[Sequence[Part]]], Iterable[Part]] = map) -> None:
        """Join small parts of accepted results; what the next commit makes visible stays the same.

        Args:
            run_all: Joins each of several groups, as ``map`` does, wherever there is room for it.

        Raises:
            StorageError: A part cannot be read or written; all are as they were.
        """
        groups = plan_joins(self._pending.parts, self._first_ids)
        small = [group for group in groups if len(group) > 1]
        url, options = self.store.table_url("frames"), self.store.options
        joined = list(run_all(partial(join_parts, table_url=url, run_id=self.run_id, options=options), small))
        self._pending.parts = [*joined, *(group[0] for group in groups if len(group) == 1)]
        self._pending.joined += [part for group in small for part in group]

    def commit(self, event: str = "progress", departed: Mapping[str, Sequence[str]] | None = None) -> int:
        """Make all accepted results visible.

        Args:
            event: "progress", or "close" for the commit that publishes the run.
            departed: For each recipe, ids whose rows leave the ledger.

        Returns:
            The ledger's version.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run got in between.
        """
        pending, self._pending = self._pending, _Pending()
        departed = departed or {}
        leaving = [set(ids) & self._held_ids[recipe] for recipe, ids in departed.items()]
        self.counts.deleted += len(set().union(*leaving) - self.moved_ids)
        if pending.parts:
            self._commit_parts(pending)
        failures = pa.concat_tables([FAILURES.empty_table(), *pending.failures])
        tracks = pa.concat_tables([TRACKS.empty_table(), *pending.tracks])
        # A track embedded for one recipe may be held whole by another, whose ledger row has old facts.
        present = pa.concat_tables([tracks.select(_PRESENT), *pending.relabeled])
        self._commit_failures(failures, present.column("track_id").to_pylist(), departed)
        build = partial(self._build_all_actions, tracks, present, departed)
        ledger_actions = build()
        if ledger_actions or event != "progress":
            metadata = self._describe_run() if event == "close" else None
            self.writer.commit_ledger(ledger_actions, event, metadata, build)
        return self.store_version

    def close(self, departed: Mapping[str, Sequence[str]] | None = None) -> int:
        """Commit what is left and publish the run.

        Args:
            departed: For each recipe, ids whose rows leave the ledger.

        Returns:
            The ledger's version that readers see from now on.
        """
        return self.commit("close", departed)

    def _commit_parts(self, pending: _Pending) -> None:
        """Commit parts of ``frames``, and remove those that they were joined from, which no commit names."""
        self.writer.commit("frames", [part.as_add_action() for part in pending.parts], "append")
        for part in pending.parts:
            insort(self._first_ids[part.recipe, part.resolution], str(part.min_track_id))
        remove_parts(pending.joined, self.store.table_url("frames"), self.store.options)

    def _describe_run(self) -> dict[str, str]:
        return {"counts": json.dumps(vars(self.counts)), "recipes": json.dumps(list(self.recipes))}

    def _build_all_actions(
        self, tracks: pa.Table, present: pa.Table, departed: Mapping[str, Sequence[str]]
    ) -> Actions:
        actions: Actions = []
        for recipe in self.recipes:
            rows = tracks.filter(pc.equal(tracks.column("recipe"), recipe))
            actions += self._build_ledger_actions(recipe, rows, present, departed.get(recipe, ()))
        return actions

    def _build_ledger_actions(
        self, recipe: str, rows: pa.Table, present: pa.Table, departed: Sequence[str]
    ) -> Actions:
        """Build the actions that put one recipe's rows in, relabel others, and take departed ones out."""
        new_ids = rows.column("track_id").to_pylist()
        relabeled = present.filter(pc.invert(pc.is_in(present.column("track_id"), rows.column("track_id"))))
        leaving = {*new_ids, *relabeled.column("track_id").to_pylist(), *departed} & self._held_ids[recipe]
        actions: Actions = []
        if leaving:
            taken = extract_rows(self.writer.tracks, "tracks", self.store, recipe, list(leaving), self.run_id)
            actions += taken.actions
            rows = merge_track_rows(rows, taken.rows)
            kept = taken.rows.filter(pc.is_in(taken.rows.column("track_id"), relabeled.column("track_id")))
            rows = pa.concat_tables([rows, relabel_track_rows(kept, relabeled)])
        return actions + self._write_ledger_parts(recipe, rows.sort_by("track_id"))

    def _write_ledger_parts(self, recipe: str, rows: pa.Table) -> Actions:
        """Write sorted rows of one recipe, and return the actions that add them."""
        actions: Actions = []
        spans = self._spans.setdefault(recipe, [])
        for cut in cut_between_parts(rows.column("track_id").to_pylist(), spans):
            url = self.store.table_url("tracks")
            part = write_part(rows[cut], "tracks", url, {"recipe": recipe}, self.run_id, self.store.options)
            actions.append(part.as_add_action())
            spans.append((str(part.min_track_id), str(part.max_track_id)))
        return actions

    def _commit_failures(
        self, failures: pa.Table, present_ids: Sequence[str], departed: Mapping[str, Sequence[str]]
    ) -> None:
        """Replace the failures of the tracks in hand; those of present and departed tracks go."""
        for recipe in self.recipes:
            new = failures.filter(pc.equal(failures.column("recipe"), recipe)).column("track_id").to_pylist()
            leaving = {*new, *present_ids, *departed.get(recipe, ())} & self._failed_ids[recipe]
            if leaving:
                build = partial(self._take_failures_out, recipe, list(leaving))
                # One recipe at a time: two of them may share a file, which only one rewrite may remove.
                self.writer.commit("failures", build(), "replace", build)
        if failures.num_rows:
            url = self.store.table_url("failures")
            rows = failures.sort_by("track_id")
            part = write_part(rows, "failures", url, {}, self.run_id, self.store.options)
            self.writer.commit("failures", [part.as_add_action()], "append")

    def _take_failures_out(self, recipe: str, track_ids: Sequence[str]) -> Actions:
        table = self.writer.failures
        return extract_rows(table, "failures", self.store, recipe, track_ids, self.run_id).actions


def _read_ids(table: DeltaTable, recipe: str) -> set[str]:
    return set(read_columns(table, ["track_id"], recipe).column("track_id").to_pylist())
