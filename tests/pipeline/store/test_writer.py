import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.location import StoreLocation
from pipeline.store import lease
from pipeline.store.tables import create_tables, open_table
from pipeline.store.writer import StoreWriter

CLAIM = """
import sys
from pipeline.location import StoreLocation
from pipeline.store.writer import StoreWriter
StoreWriter(StoreLocation(sys.argv[1]), "other")
print("claimed", flush=True)
if sys.argv[2] == "stay":
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def claim_from_another_process(store: StoreLocation, *, stay: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLAIM, store.url, "stay" if stay else "leave"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_second_writer_stops_while_the_first_is_alive(store: StoreLocation) -> None:
    with claim_from_another_process(store, stay=True) as first:
        version = open_table(store, "tracks").version()
        with pytest.raises(UsageError, match=rf"run other is writing .*process {first.pid}"):
            StoreWriter(store, "second")
        assert open_table(store, "tracks").version() == version
        first.kill()
    assert StoreWriter(store, "second").store_version > version, "a killed writer is no obstacle"


def test_a_writer_that_ended_without_closing_is_no_obstacle(store: StoreLocation) -> None:
    with claim_from_another_process(store, stay=False):
        pass
    StoreWriter(store, "second").commit_ledger([], "close")


def test_another_process_with_the_dead_ones_number_is_not_taken_for_it(store: StoreLocation) -> None:
    first = StoreWriter(store, "first")
    metadata = json.loads(open_table(store, "tracks").history(1)[0]["writer"])
    assert metadata["pid"] == os.getpid()
    parent = {**metadata, "pid": os.getppid(), "started": "1"}
    first.commit_ledger([], "progress", {})
    assert not lease._is_alive(parent["pid"], parent["started"])
    assert lease._is_alive(metadata["pid"], metadata["started"])


@pytest.mark.parametrize(("silence_s", "may_start"), [(lease.LEASE_S - 60, False), (lease.LEASE_S + 60, True)])
def test_a_writer_on_another_machine_counts_as_dead_after_its_lease(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch, silence_s: float, may_start: bool
) -> None:
    monkeypatch.setattr(lease, "_identify_machine", lambda: "elsewhere/1")
    StoreWriter(store, "first")
    monkeypatch.undo()
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + silence_s)
    if may_start:
        StoreWriter(store, "second")
    else:
        with pytest.raises(UsageError, match="on elsewhere"):
            StoreWriter(store, "second")


def test_a_writer_with_nothing_to_commit_keeps_its_store(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_identify_machine", lambda: "elsewhere/1")
    first = StoreWriter(store, "run1")
    first.commit_ledger([], "close")
    first = StoreWriter(store, "run2")
    before, now_s = first.store_version, time.monotonic()
    first.renew_lease()
    assert first.store_version == before
    monkeypatch.setattr(time, "monotonic", lambda: now_s + lease.LEASE_S / 3)
    first.renew_lease()
    first.renew_lease()
    assert first.store_version == before + 1
    monkeypatch.undo()
    with pytest.raises(UsageError, match="run run2 is writing to the store"):
        StoreWriter(store, "run3")
    newest_s = time.time()
    monkeypatch.setattr(time, "time", lambda: newest_s + lease.LEASE_S + 60)
    assert StoreWriter(store, "run3").unclosed_run is None  # a sign of life is nothing that waits to be published


@pytest.mark.parametrize("is_closed", [False, True])
def test_an_overtaken_writer_never_commits_again(store: StoreLocation, is_closed: bool) -> None:
    first = StoreWriter(store, "first")
    second = StoreWriter(store, "second")
    second.commit("frames", [], "append")
    second.commit_ledger([], "progress")
    if is_closed:
        second.commit_ledger([], "close")
    version = second.store_version
    for _ in range(3):  # the first attempt brings its table up to date
        with pytest.raises(RunError, match="another run"):
            first.commit_ledger([], "progress")
        with pytest.raises(RunError, match="another run"):
            first.commit("failures", [], "append")
    assert open_table(store, "tracks").version() == version
    if not is_closed:
        second.commit_ledger([], "close")
    frames_version = second.frames.version()
    assert StoreWriter(store, "third").frames.version() == frames_version + 1, "claimed, not taken back"


def test_the_overtaken_writer_stops_at_its_next_commit(store: StoreLocation) -> None:
    first = StoreWriter(store, "first")
    second = StoreWriter(store, "second")
    with pytest.raises(RunError, match="another run"):
        first.commit("frames", [], "append")
    with pytest.raises(RunError, match="another run"):
        first.commit_ledger([], "close")
    second.commit_ledger([], "close")


def test_frames_that_were_taken_back_are_told_apart_from_a_killed_run(store: StoreLocation) -> None:
    StoreWriter(store, "one").commit_ledger([], "close")
    newest = max((Path(store.table_url("frames")) / "_delta_log").glob("*.json"))
    newest.unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="comes from another backup"):
            StoreWriter(store, "two")


def test_a_closed_run_leaves_no_claim(store: StoreLocation) -> None:
    StoreWriter(store, "first").commit_ledger([], "close")
    assert "writer" not in open_table(store, "tracks").history(1)[0]
    assert StoreWriter(store, "second").unclosed_run is None


def test_an_unclosed_run_is_named(store: StoreLocation) -> None:
    StoreWriter(store, "first").commit_ledger([], "progress")
    assert StoreWriter(store, "second").unclosed_run == "first"
    assert StoreWriter(store, "third").unclosed_run == "first"
