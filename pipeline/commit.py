"""Commit: results of write tasks become visible, first in ``frames``, then in the ledger.

Every commit of the ledger names the version of ``frames`` that goes with it. A run that is killed between
the two leaves frames that no ledger names; the next run takes them back before it plans, so that no row is
ever stored twice. The commit that closes a run carries its counts and publishes it.

One run writes at a time. A run that begins claims the ledger first and then the other tables, by a commit with
the next number of one application transaction; an older run that is still at work fails at its next commit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipeline.config import Recipe
from pipeline.errors import RunError
from pipeline.ledger import Actions, extract_rows, merge_track_rows, relabel_track_rows
from pipeline.parts import Part, from_ipc, write_part
from pipeline.schema import FAILURES, RECIPES, TRACKS, UNCHANGED
from pipeline.storage import StoreLocation
from pipeline.tables import commit_actions, open_table, read_columns, restore_table

WRITER_APP_ID = "music-feature-store.writer"


@dataclass
class RunCounts:
    """Tracks of a run by outcome; the books close when planned = embedded + unchanged + failed."""

    planned: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: int = 0
    deleted: int = 0
    failures_by_reason: dict[str, int] = field(default_factory=dict)

    @property
    def closes(self) -> bool:
        """Whether every planned track has exactly one outcome."""
        return self.planned == self.embedded + self.unchanged + self.failed


@dataclass
class _Pending:
    """Accepted results that no commit has made visible yet."""

    parts: list[Part] = field(default_factory=list)
    tracks: list[pa.Table] = field(default_factory=list)
    failures: list[pa.Table] = field(default_factory=list)
    relabeled: list[pa.Table] = field(default_factory=list)


class RunCommitter:
    """The only writer of a run's commits; lives in the driver.

    Args:
        store: Where the tables are; they exist.
        run_id: Identifier of the run, part of its files' names and of its commits.
        recipes: Recipes of the run, by id.

    Raises:
        StorageError: The store cannot be read or written.
        RunError: Another run got in between.
    """

    def __init__(self, store: StoreLocation, run_id: str, recipes: Mapping[str, Recipe]) -> None:
        self.store = store
        self.run_id = run_id
        self.recipes = dict(recipes)
        self.counts = RunCounts()
        self.bytes_written = 0
        self._pending = _Pending()
        self._done: set[str] = set()
        self._tracks = open_table(store, "tracks")
        named_version = self._read_named_version()
        self._commit_ledger([], "open", named_version)
        # Opened only now: what an older run adds to them from here on can no longer get into the ledger.
        self._frames = open_table(store, "frames")
        self._claim_frames(named_version)
        self._failures = open_table(store, "failures")
        self._commit(self._failures, "failures", [], "open")
        self._held_ids = {recipe: _read_ids(self._tracks, recipe) for recipe in self.recipes}
        self._failed_ids = {recipe: _read_ids(self._failures, recipe) for recipe in self.recipes}

    @property
    def store_version(self) -> int:
        """Version of the ledger after the last commit."""
        return int(self._tracks.version())

    @property
    def done(self) -> set[str]:
        """Ids of the tracks that have an outcome in this run."""
        return self._done

    def accept(self, result: pa.Table) -> int:
        """Take one result of a write task.

        A worker that died and was started again may deliver a track twice. Such a result is left out whole,
        with its parts; those of its tracks that have no outcome yet are then processed again.

        Args:
            result: One row of ``schema.RESULTS``.

        Returns:
            How many tracks got their outcome.
        """
        row = result.to_pylist()[0]
        tracks, failures, unchanged = (from_ipc(row[name]) for name in ("tracks", "failures", "unchanged"))
        outcomes = {
            "embedded": set(tracks.column("track_id").to_pylist()),
            "failed": set(failures.column("track_id").to_pylist()),
            "unchanged": set(unchanged.column("track_id").to_pylist()),
        }
        ids = set().union(*outcomes.values())
        if ids & self._done:
            return 0
        self._done |= ids
        self.counts.embedded += len(outcomes["embedded"])
        self.counts.failed += len(outcomes["failed"])
        self.counts.unchanged += len(outcomes["unchanged"])
        pairs = zip(
            failures.column("track_id").to_pylist(), failures.column("error_type").to_pylist(), strict=True
        )
        self.counts.failures_by_reason = dict(
            Counter(self.counts.failures_by_reason) + Counter(dict(pairs).values())
        )
        self._pending.parts += [Part(**part) for part in row["parts"]]
        self._pending.tracks.append(tracks)
        self._pending.failures.append(failures)
        self._pending.relabeled.append(unchanged)
        return len(ids)

    def relabel(self, catalog: pa.Table) -> None:
        """Let the ledger follow the catalog's metadata for tracks whose content is as stored.

        Args:
            catalog: Rows of ``schema.CATALOG``.
        """
        nulls = pa.nulls(catalog.num_rows, pa.string())
        self._pending.relabeled.append(catalog.append_column("content_hash", nulls).select(UNCHANGED.names))

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
        self.counts.deleted += len(set().union(*departed.values()))
        if pending.parts:
            self._commit(self._frames, "frames", [part.as_add_action() for part in pending.parts], "append")
        failures = pa.concat_tables([FAILURES.empty_table(), *pending.failures])
        tracks = pa.concat_tables([TRACKS.empty_table(), *pending.tracks])
        # A track embedded for one recipe may be held whole by another, whose ledger row has old facts.
        present = pa.concat_tables([tracks.select(UNCHANGED.names), *pending.relabeled])
        self._commit_failures(failures, present.column("track_id").to_pylist(), departed)
        ledger_actions: Actions = []
        for recipe in self.recipes:
            rows = tracks.filter(pc.equal(tracks.column("recipe"), recipe))
            ledger_actions += self._build_ledger_actions(recipe, rows, present, departed.get(recipe, ()))
        if ledger_actions or event != "progress":
            self._commit_ledger(ledger_actions, event, self._frames.version())
        return self.store_version

    def close(self, departed: Mapping[str, Sequence[str]] | None = None) -> int:
        """Commit what is left and publish the run.

        Args:
            departed: For each recipe, ids whose rows leave the ledger.

        Returns:
            The ledger's version that readers see from now on.
        """
        return self.commit("close", departed)

    def record_recipes(self, checkpoint_name: str) -> None:
        """Write down what the run's recipe ids stand for, where the store does not know them yet."""
        table = open_table(self.store, "recipes")
        known = set(read_columns(table, ["recipe"]).column("recipe").to_pylist())
        rows = [
            {
                "recipe": recipe_id,
                "definition": recipe.definition,
                "checkpoint": checkpoint_name,
                "created_time": datetime.now(UTC),
            }
            for recipe_id, recipe in self.recipes.items()
            if recipe_id not in known
        ]
        if rows:
            write_deltalake(table, pa.Table.from_pylist(rows, schema=RECIPES), mode="append")

    def _build_ledger_actions(
        self, recipe: str, rows: pa.Table, present: pa.Table, departed: Sequence[str]
    ) -> Actions:
        """Build the actions that put one recipe's rows in, relabel others, and take departed ones out."""
        held = self._held_ids[recipe]
        new_ids = rows.column("track_id").to_pylist()
        relabeled = present.filter(pc.invert(pc.is_in(present.column("track_id"), rows.column("track_id"))))
        leaving = {*new_ids, *relabeled.column("track_id").to_pylist(), *departed} & held
        actions: Actions = []
        if leaving:
            taken = extract_rows(self._tracks, "tracks", self.store, recipe, list(leaving), self.run_id)
            actions += taken.actions
            rows = merge_track_rows(rows, taken.rows)
            kept = taken.rows.filter(pc.is_in(taken.rows.column("track_id"), relabeled.column("track_id")))
            rows = pa.concat_tables([rows, relabel_track_rows(kept, relabeled)])
        if rows.num_rows:
            url = self.store.table_url("tracks")
            part = write_part(
                rows.sort_by("track_id"), "tracks", url, {"recipe": recipe}, self.run_id, self.store.options
            )
            actions.append(part.as_add_action())
        held |= set(new_ids)
        held -= set(departed)
        return actions

    def _commit_failures(
        self, failures: pa.Table, present_ids: Sequence[str], departed: Mapping[str, Sequence[str]]
    ) -> None:
        """Replace the failures of the tracks in hand; those of present and departed tracks go."""
        for recipe in self.recipes:
            new = failures.filter(pc.equal(failures.column("recipe"), recipe)).column("track_id").to_pylist()
            known = self._failed_ids[recipe]
            leaving = {*new, *present_ids, *departed.get(recipe, ())} & known
            if leaving:
                taken = extract_rows(self._failures, "failures", self.store, recipe, list(leaving), self.run_id)
                # One recipe at a time: two of them may share a file, which only one rewrite may remove.
                self._commit(self._failures, "failures", taken.actions, "replace")
            known -= leaving
            known |= set(new)
        if failures.num_rows:
            url = self.store.table_url("failures")
            rows = failures.sort_by("track_id")
            part = write_part(rows, "failures", url, {}, self.run_id, self.store.options)
            self._commit(self._failures, "failures", [part.as_add_action()], "append")

    def _commit_ledger(self, actions: Actions, event: str, frames_version: int) -> None:
        metadata = {"frames_version": str(frames_version)}
        if event == "close":
            metadata["counts"] = json.dumps(vars(self.counts))
            metadata["recipes"] = json.dumps(list(self.recipes))
        self._commit(self._tracks, "tracks", actions, event, metadata)

    def _commit(
        self,
        table: DeltaTable,
        table_name: str,
        actions: Actions,
        event: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Commit to a table, unless another run has claimed it."""
        metadata = {"run_id": self.run_id, "event": event, **(metadata or {})}
        try:
            commit_actions(table, table_name, actions, metadata, _next_claim(table))
        except CommitFailedError as error:
            raise self._overtaken(error) from error
        self.bytes_written += sum(action.size for action in actions if isinstance(action, AddAction))

    def _claim_frames(self, named_version: int) -> None:
        """Claim ``frames``, and take back what a killed run added to it without getting to the ledger.

        Restored as a whole: no row that the ledger names is lost, even if another tool has compacted since.
        """
        num_later = self._frames.version() - named_version
        later = self._frames.history(num_later) if num_later else []
        newest_event = next((commit["event"] for commit in later if "event" in commit), "open")
        if newest_event == "open":
            self._commit(self._frames, "frames", [], "open")
            return
        metadata = {"run_id": self.run_id, "event": "open"}
        try:
            restore_table(self._frames, named_version, metadata, _next_claim(self._frames))
        except CommitFailedError as error:
            raise self._overtaken(error) from error

    def _overtaken(self, error: CommitFailedError) -> RunError:
        return RunError(
            f"another run has written to the store at {self.store.url} since this one (run {self.run_id}) "
            f"began; what this run had committed is kept: run the same command again ({error})"
        )

    def _read_named_version(self) -> int:
        """Return the version of ``frames`` that the ledger goes with."""
        # Nearly always the newest commit names one; those of other tools, such as a compaction, do not.
        for limit in (1, None):
            for commit in self._tracks.history(limit):
                if "frames_version" in commit:
                    return int(commit["frames_version"])
        return open_table(self.store, "frames").version()


def _read_ids(table: DeltaTable, recipe: str) -> set[str]:
    return set(read_columns(table, ["track_id"], recipe).column("track_id").to_pylist())


def _next_claim(table: DeltaTable) -> Transaction:
    return Transaction(WRITER_APP_ID, (table.transaction_version(WRITER_APP_ID) or 0) + 1)
