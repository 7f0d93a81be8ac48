"""One writer at a time: claiming a store, committing to its tables, and taking back what a killed writer left.

A writer claims the ledger first and then the other tables, by a commit with the next number of one application
transaction; an older writer that is still at work fails at its next commit. Before it claims, it looks whether
the last one may still be alive: two nightly runs by mistake should not stop each other.

Drivers of one shared run (``shared_run``) claim it side by side. A commit that another of them came before fails
as that of an overtaken run does, and is made anew from what stands there then.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from deltalake import DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipeline.config import Shard
from pipeline.errors import RunError, StorageError
from pipeline.location import StoreLocation
from pipeline.store.lease import LEASE_S, describe_process
from pipeline.store.ledger import Actions
from pipeline.store.shared_run import IdRange, SharedRun, check_nobody_writes, join_run
from pipeline.store.table_commits import commit_actions, restore_table
from pipeline.store.tables import OLDER_FORMATS, PUBLISHING_EVENTS, STORE_FORMAT, open_table, read_history, refresh

WRITER_APP_ID = "music-feature-store.writer"
MAX_PAUSE_S = 0.5  # before a commit is made anew that another driver came before
SHARD_CLOSED = "shard"  # the event of a commit that closes a shard, where others are open

Build = Callable[[], Actions]


class StoreWriter:
    """A store claimed for writing.

    Args:
        store: Where the tables are; they exist.
        run_id: Identifier of the run, part of its files' names and of its commits.
        formats: Formats that the tables may have.
        shard: Which of several drivers of one run this is.
        first_ids: The first track of each shard but the first, by this driver's catalog.
        recipes: What the drivers compute.

    Raises:
        StorageError: The store cannot be read or written.
        StoreFormatError: It has another format.
        UsageError: Another run is at work.
        RunError: Another run claimed the store at the same moment.
    """

    def __init__(
        self,
        store: StoreLocation,
        run_id: str,
        formats: Collection[int] = (STORE_FORMAT,),
        shard: Shard | None = None,
        first_ids: Sequence[str] = (),
        recipes: Collection[str] = (),
    ) -> None:
        self.store = store
        self.run_id = run_id
        self.shard = shard
        self.shared: SharedRun | None = None  # as this driver's last commit tells it
        self.bytes_written = 0
        self._claims: dict[str, int] = {}
        self._overtaken_by: RunError | None = None
        self._last_sign_s = time.monotonic()
        self.tracks = open_table(store, "tracks", formats=formats)
        named_version = self._claim_ledger(first_ids, recipes)
        # Opened only now: what an older run adds to them can no longer get into the ledger.
        self.frames = open_table(store, "frames", formats=formats)
        self._claim_frames(named_version)
        self.failures = open_table(store, "failures", formats=formats)
        self.commit("failures", [], "open")

    @property
    def store_version(self) -> int:
        """Version of the ledger after the last commit."""
        return int(self.tracks.version())

    @property
    def ids(self) -> IdRange:
        """The tracks that this writer may write of: all, or those of its shard."""
        return self.shared.take_range(self.shard.number) if self.shared and self.shard else IdRange()

    def table(self, table_name: str) -> DeltaTable:
        """Return one of the claimed tables: ``tracks``, ``frames`` or ``failures``."""
        table: DeltaTable = getattr(self, table_name)
        return table

    def commit(self, table_name: str, actions: Actions, event: str, rebuild: Build | None = None) -> None:
        """Commit to ``frames`` or ``failures``.

        Args:
            table_name: Key of ``schema.TABLES``.
            actions: Files to add and to remove.
            event: What the commit does, for its metadata.
            rebuild: Makes the actions anew where another driver of a shared run came before.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        self._commit_to(table_name, actions, lambda: {"event": event}, rebuild)

    def commit_ledger(
        self,
        actions: Actions,
        event: str,
        metadata: Mapping[str, str] | None = None,
        rebuild: Build | None = None,
    ) -> None:
        """Commit to ``tracks``, naming the version of ``frames`` that goes with it.

        Args:
            actions: Files to add and to remove; may be empty.
            event: What the commit does; one of ``tables.PUBLISHING_EVENTS`` publishes, of a shared run the last
                "close" alone.
            metadata: Further keys and values that the commit carries.
            rebuild: As ``commit`` takes it.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        self._commit_to("tracks", actions, partial(self._describe_commit, event, metadata or {}), rebuild)
        self._last_sign_s = time.monotonic()

    def claim_next(self, table_name: str) -> Transaction:
        """Return the claim that a commit to a table carries: of two writers with the same, one fails."""
        if self._overtaken_by is not None:  # tables have been brought up to date since: a commit would go through
            raise self._overtaken_by
        if table_name not in self._claims:  # read off its log once: that means all of it since its checkpoint
            self._claims[table_name] = self.table(table_name).transaction_version(WRITER_APP_ID) or 0
        self._claims[table_name] += 1
        return Transaction(WRITER_APP_ID, self._claims[table_name])

    def renew_lease(self) -> None:
        """Say now and then that this writer is alive, where it has long (a third of its lease) committed nothing.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        if time.monotonic() - self._last_sign_s >= LEASE_S / 3:
            self.commit_ledger([], "open")

    def _commit_to(
        self, table_name: str, actions: Actions, describe: Callable[[], Mapping[str, str]], rebuild: Build | None
    ) -> None:
        table = self.table(table_name)
        while True:
            metadata, version = {"run_id": self.run_id, **describe()}, table.version()
            try:
                commit_actions(table, table_name, actions, metadata, self.claim_next(table_name))
                break
            except CommitFailedError as error:
                if self.shared is None:
                    raise self._overtaken(error) from error
                self._let_pass(table, version, error)
                self._read_shared()
                actions = actions if rebuild is None else rebuild()
        self.bytes_written += sum(action.size for action in actions if isinstance(action, AddAction))

    def _describe_commit(self, event: str, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return what a commit of the ledger says."""
        if self.shared is None or self.shard is None:
            writer = {} if event in PUBLISHING_EVENTS else {"writer": json.dumps(describe_process())}
            return {"event": event, **metadata, **writer, **_name_frames(self.frames.version())}
        counts = json.loads(metadata["counts"]) if event == "close" else None
        self.shared = self._read_shared().enter(self.shard.number, self.run_id, counts)
        if counts is not None:
            event = SHARD_CLOSED if self.shared.num_open else "close"
            metadata = {**metadata, "counts": json.dumps(self.shared.add_counts())}
        # What others named, and have in the ledger, is there as well.
        refresh(self.frames)
        self._claims.pop("frames", None)
        return {"event": event, **metadata, **self.shared.describe(), **_name_frames(self.frames.version())}

    def _let_pass(self, table: DeltaTable, version: int, error: CommitFailedError) -> None:
        """Bring tables up to date after a commit that another driver of the run came before, if one did."""
        time.sleep(random.uniform(0, MAX_PAUSE_S))
        for each in (table, self.tracks):
            refresh(each)
        if table.version() == version:
            raise self._overtaken(error) from error
        self._claims.clear()

    def _read_shared(self) -> SharedRun:
        """Return the shared run as the ledger tells it.

        Raises:
            RunError: Another run has claimed the store, or another driver this one's shard.
        """
        found = SharedRun.read(self._read_newest())
        mine = None if found is None or self.shard is None else found.shards.get(self.shard.number)
        if found is None or self.shared is None or mine is None or mine.run_id != self.run_id:
            raise self._overtaken("it is not this one's any more")
        return found

    def _read_newest(self) -> Mapping[str, Any]:
        """Return the newest commit of ours to the ledger; those of other tools say nothing."""
        for limit in (1, 20):
            for commit in read_history(self.tracks, limit):
                if "event" in commit:
                    return commit
        return {}

    def _claim_ledger(self, first_ids: Sequence[str], recipes: Collection[str]) -> int:
        """Claim the ledger, if nobody is at work; return the version of ``frames`` that goes with it."""
        while True:
            newest = self._read_newest()
            if self.shard is None:
                check_nobody_writes(self.store.url, newest)
                claim: Mapping[str, str] = {"writer": json.dumps(describe_process())}
            else:
                shared = join_run(self.store.url, newest, self.shard, first_ids, recipes)
                self.shared = shared.enter(self.shard.number, self.run_id)
                claim = self.shared.describe()
            named_version = self._read_named_version()
            self.unclosed_run = self._find_unclosed_run()
            metadata = {"run_id": self.run_id, "event": "open", **claim, **_name_frames(named_version)}
            version = self.tracks.version()
            try:
                commit_actions(self.tracks, "tracks", [], metadata, self.claim_next("tracks"))
            except CommitFailedError as error:
                if self.shard is None:
                    raise self._overtaken(error) from error
                self._let_pass(self.tracks, version, error)
            else:
                self._last_sign_s = time.monotonic()
                return named_version

    def _claim_frames(self, named_version: int) -> None:
        """Claim ``frames``, and take back what a killed run did to it without getting to the ledger.

        Restored as a whole: no row that the ledger names is lost, even if another tool has compacted since.
        """
        num_later = self.frames.version() - named_version
        if num_later < 0:
            raise StorageError(
                f"expected version {named_version} or later of {self.frames.table_uri}, as the ledger names it, "
                f"found {self.frames.version()}: the table was taken back or comes from another backup; bring "
                "the whole store back from one"
            )
        later = read_history(self.frames, num_later) if num_later else []
        newest_event = next((commit["event"] for commit in later if "event" in commit), "open")
        # Beside other drivers nothing is taken back that was added, for it may be theirs: what a killed one left
        # counts as stored for the next plan, and is not written twice. Nothing else is theirs.
        if newest_event == "open" or (self.shared is not None and newest_event == "append"):
            self.commit("frames", [], "open")
            return
        metadata, version = {"run_id": self.run_id, "event": "open"}, self.frames.version()
        try:
            restore_table(self.frames, named_version, metadata, self.claim_next("frames"))
        except CommitFailedError as error:
            if self.shared is None:
                raise self._overtaken(error) from error
            self._let_pass(self.frames, version, error)
            self._claim_frames(named_version)

    def _overtaken(self, error: CommitFailedError | str) -> RunError:
        """Return what says that another run has the store; from now on this writer commits nothing."""
        self._overtaken_by = RunError(
            f"another run has written to the store at {self.store.url} since this one (run {self.run_id}) "
            f"began; what this run had committed is kept: run the same command again ({error})"
        )
        return self._overtaken_by

    def _read_named_version(self) -> int:
        """Return the version of ``frames`` that the ledger goes with."""
        # Nearly always the newest commit names one; those of other tools, such as a compaction, do not.
        for limit in (1, None):
            for commit in read_history(self.tracks, limit):
                if "frames_version" in commit:
                    return int(commit["frames_version"])
        return open_table(self.store, "frames", formats=(STORE_FORMAT, *OLDER_FORMATS)).version()

    def _find_unclosed_run(self) -> str | None:
        """Return the run whose commits came after the last one that published; None if there is none."""
        for limit in (20, None):
            for commit in read_history(self.tracks, limit):
                if commit.get("event") in PUBLISHING_EVENTS:
                    return None
                if commit.get("event") in ("progress", SHARD_CLOSED):
                    return str(commit["run_id"])
        return None


def _name_frames(version: int) -> dict[str, str]:
    return {"frames_version": str(version)}
