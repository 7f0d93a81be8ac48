"""One writer at a time: claiming a store, committing to its tables, and taking back what a killed writer left.

A writer claims the ledger first and then the other tables, by a commit with the next number of one application
transaction; an older writer that is still at work fails at its next commit. Before it claims, it looks whether
the last one may still be alive: two nightly runs by mistake should not stop each other.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from deltalake import DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.location import StoreLocation
from pipeline.store.ledger import Actions
from pipeline.store.table_commits import commit_actions, restore_table
from pipeline.store.tables import OLDER_FORMATS, PUBLISHING_EVENTS, STORE_FORMAT, open_table, read_history

WRITER_APP_ID = "music-feature-store.writer"
LEASE_S = 900.0  # a writer on another machine counts as dead after so long a silence


class StoreWriter:
    """A store claimed for writing.

    Args:
        store: Where the tables are; they exist.
        run_id: Identifier of the run, part of its files' names and of its commits.
        formats: Formats that the tables may have.

    Raises:
        StorageError: The store cannot be read or written.
        StoreFormatError: It has another format.
        UsageError: Another run is at work.
        RunError: Another run claimed the store at the same moment.
    """

    def __init__(self, store: StoreLocation, run_id: str, formats: Collection[int] = (STORE_FORMAT,)) -> None:
        self.store = store
        self.run_id = run_id
        self.bytes_written = 0
        self._claims: dict[str, int] = {}
        self._last_sign_s = time.monotonic()
        self.tracks = open_table(store, "tracks", formats=formats)
        newest = next((commit for commit in read_history(self.tracks, 1)), {})
        _check_nobody_writes(store, newest)
        named_version = self._read_named_version()
        self.unclosed_run = self._find_unclosed_run()
        self._commit_to(self.tracks, "tracks", [], "open", {**_describe_self(), **_name_frames(named_version)})
        # Opened only now: what an older run adds to them from here on can no longer get into the ledger.
        self.frames = open_table(store, "frames", formats=formats)
        self._claim_frames(named_version)
        self.failures = open_table(store, "failures", formats=formats)
        self.commit("failures", [], "open")

    @property
    def store_version(self) -> int:
        """Version of the ledger after the last commit."""
        return int(self.tracks.version())

    def table(self, table_name: str) -> DeltaTable:
        """Return one of the claimed tables: ``tracks``, ``frames`` or ``failures``."""
        table: DeltaTable = getattr(self, table_name)
        return table

    def commit(self, table_name: str, actions: Actions, event: str) -> None:
        """Commit to ``frames`` or ``failures``.

        Args:
            table_name: Key of ``schema.TABLES``.
            actions: Files to add and to remove.
            event: What the commit does, for its metadata.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        self._commit_to(self.table(table_name), table_name, actions, event, {})

    def commit_ledger(self, actions: Actions, event: str, metadata: Mapping[str, str] | None = None) -> None:
        """Commit to ``tracks``, naming the version of ``frames`` that goes with it.

        Args:
            actions: Files to add and to remove; may be empty.
            event: What the commit does; one of ``tables.PUBLISHING_EVENTS`` publishes.
            metadata: Further keys and values that the commit carries.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        writer = {} if event in PUBLISHING_EVENTS else _describe_self()
        named = _name_frames(self.frames.version())
        self._commit_to(self.tracks, "tracks", actions, event, {**(metadata or {}), **writer, **named})

    def renew_lease(self) -> None:
        """Say that this writer is alive, where it has committed nothing to the ledger for a third of its lease.

        To be called now and then while nothing is to be committed.

        Raises:
            StorageError: The store cannot be written.
            RunError: Another run has claimed it.
        """
        if time.monotonic() - self._last_sign_s >= LEASE_S / 3:
            self.commit_ledger([], "open")

    def _commit_to(
        self, table: DeltaTable, table_name: str, actions: Actions, event: str, metadata: Mapping[str, str]
    ) -> None:
        metadata = {"run_id": self.run_id, "event": event, **metadata}
        try:
            commit_actions(table, table_name, actions, metadata, self._next_claim(table, table_name))
        except CommitFailedError as error:
            raise self._overtaken(error) from error
        if table_name == "tracks":
            self._last_sign_s = time.monotonic()
        self.bytes_written += sum(action.size for action in actions if isinstance(action, AddAction))

    def _claim_frames(self, named_version: int) -> None:
        """Claim ``frames``, and take back what a killed run added to it without getting to the ledger.

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
        if newest_event == "open":
            self.commit("frames", [], "open")
            return
        metadata = {"run_id": self.run_id, "event": "open"}
        try:
            restore_table(self.frames, named_version, metadata, self._next_claim(self.frames, "frames"))
        except CommitFailedError as error:
            raise self._overtaken(error) from error

    def _next_claim(self, table: DeltaTable, table_name: str) -> Transaction:
        """Return the table's next claim; read off its log once, for that means all of it since its checkpoint."""
        if table_name not in self._claims:
            self._claims[table_name] = table.transaction_version(WRITER_APP_ID) or 0
        self._claims[table_name] += 1
        return Transaction(WRITER_APP_ID, self._claims[table_name])

    def _overtaken(self, error: CommitFailedError) -> RunError:
        return RunError(
            f"another run has written to the store at {self.store.url} since this one (run {self.run_id}) "
            f"began; what this run had committed is kept: run the same command again ({error})"
        )

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
                if commit.get("event") == "progress":
                    return str(commit["run_id"])
        return None


def _check_nobody_writes(store: StoreLocation, newest: Mapping[str, str]) -> None:
    """Refuse where the newest commit is of a run that has not ended and may be alive."""
    if newest.get("event") not in ("open", "progress") or "writer" not in newest:
        return
    writer = json.loads(newest["writer"])
    silence_s = time.time() - int(newest["timestamp"]) / 1000
    on_this_machine = writer["machine"] == _identify_machine()
    alive = _is_alive(writer["pid"], writer["started"]) if on_this_machine else silence_s < LEASE_S
    if alive and not (on_this_machine and writer["pid"] == os.getpid()):
        raise UsageError(
            f"run {newest['run_id']} is writing to the store at {store.url} (process {writer['pid']} on "
            f"{writer['machine'].split('/')[0]}, last commit {silence_s:.0f} s ago); wait until it ends"
            + (
                ""
                if on_this_machine
                else f", or {LEASE_S / 60:.0f} minutes after its last commit if it was killed"
            )
        )


def _describe_self() -> dict[str, str]:
    writer = {"machine": _identify_machine(), "pid": os.getpid(), "started": _read_start(os.getpid())}
    return {"writer": json.dumps(writer)}


def _identify_machine() -> str:
    """Name this machine since its last start: process numbers mean nothing beyond it."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot_id.read_text().strip() if boot_id.exists() else ''}"


def _read_start(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; "" where nobody tells, or it is gone."""
    try:
        # proc(5): field 22, counted after the command's name, which may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_alive(pid: int, started: str) -> bool:
    """Say whether a process still runs, and is not another one with its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _read_start(pid) == started


def _name_frames(version: int) -> dict[str, str]:
    return {"frames_version": str(version)}
