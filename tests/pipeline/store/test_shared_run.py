"""Drivers that share a run, in one process and in several, some of them killed: they leave what one would."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import Shard
from pipeline.errors import RunError, UsageError
from pipeline.location import StoreLocation
from pipeline.run.prepare import list_first_ids, plan_against_store
from pipeline.store import lease
from pipeline.store.check import check_store
from pipeline.store.commit import RunCommitter
from pipeline.store.maintain import delete_tracks
from pipeline.store.read import FeatureStore
from pipeline.store.shared_run import cut_range
from pipeline.store.snapshot import find_versions
from pipeline.store.tables import create_tables, open_table
from pipeline.store.writer import StoreWriter
from tests.rows import build_catalog, read_store
from tests.runs import (
    R7,
    RECIPES,
    Catalog,
    KilledError,
    Track,
    assert_every_ledger_version_has_its_frames,
    embed,
    kill,
    list_frames,
    run,
    sound,
    start_books,
)

RESOLUTIONS = ("8hz", "global")
OF_RUNS = {"event_time", "run_id"}  # columns that tell of the run, and differ between any two


class Driver:
    """One driver of a shared run, a few tracks at a time."""

    def __init__(
        self, store: StoreLocation, catalog: Catalog, shard: Shard, run_id: str, prune: bool = False
    ) -> None:
        self.store, self.catalog, self.run_id, self.prune = store, catalog, run_id, prune
        rows = list_rows(catalog)
        recipes = {R7: RECIPES[R7]}
        self.committer = RunCommitter(store, run_id, recipes, shard, list_first_ids(rows, shard.of))
        version = self.committer.store_version
        self.plan = plan_against_store(rows, store, [R7], RESOLUTIONS, ids=self.committer.ids, version=version)
        start_books(self.committer, self.plan)
        self.num_done = 0

    def step(self, num_tracks: int = 2) -> bool:
        """Embed and commit some tracks, or close where none are left; say whether that was all."""
        planned = self.plan.to_process.slice(self.num_done, num_tracks)
        self.num_done += planned.num_rows
        if planned.num_rows:
            self.committer.accept(embed(self.store, planned, self.catalog, self.run_id))
            self.committer.commit()
            return False
        self.committer.close(self.plan.departed if self.prune else None)
        return True


def list_rows(catalog: Catalog) -> pa.Table:
    return build_catalog(track.as_catalog_row(track_id) for track_id, track in sorted(catalog.items()))


def list_tracks(store: StoreLocation) -> list[dict[str, Any]]:
    rows = FeatureStore(store.url).to_arrow("global")
    del rows
    tracks = read_store(store, "tracks", find_versions(store, "published")[0])
    return sorted(
        ({name: value for name, value in row.items() if name not in OF_RUNS} for row in tracks),
        key=lambda row: str(row["track_id"]),
    )


def list_features(store: StoreLocation) -> list[tuple[Any, ...]]:
    rows = read_store(store, "frames", find_versions(store, "published")[1])
    keys = ("track_id", "resolution", "content_hash", "embeddings")
    return sorted(tuple(str(row[key]) for key in keys) for row in rows)


def assert_stores_are_equal(one: StoreLocation, other: StoreLocation) -> None:
    assert list_tracks(one) == list_tracks(other)
    assert list_features(one) == list_features(other)
    failures = [
        sorted((row["track_id"], row["error_type"]) for row in read_store(store, "failures"))
        for store in (one, other)
    ]
    assert failures[0] == failures[1]


def make_store(folder: str) -> StoreLocation:
    store = StoreLocation(folder)
    create_tables(store)
    return store


def make_catalogs(num_tracks: int) -> tuple[dict[str, Track], dict[str, Track]]:
    """Return a catalog, and what it becomes: some tracks new, changed, gone, retitled, and some that fail."""
    before = sound(*(f"t{number:02d}" for number in range(num_tracks)))
    after = dict(before)
    for number, track_id in enumerate(before):
        if number % 5 == 0:
            after[track_id] = Track(f"/{track_id}", f"new content of {track_id}", 2)
        elif number % 5 == 1:
            del after[track_id]
        elif number % 5 == 2:
            after[track_id] = Track(f"/{track_id}", f"content of {track_id}", 1, title="another")
    after |= sound(*(f"u{number:02d}" for number in range(num_tracks // 2)))
    after |= {f"v{number}": Track(f"/v{number}", "", 1, state="corrupt") for number in range(3)}
    return before, after


def test_a_deletion_that_was_killed_before_the_ledger_is_taken_back_by_shards_too(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "store"))
    catalog = sound(*(f"t{number}" for number in range(6)))
    run(store, catalog)
    before = list_features(store)
    writer = StoreWriter(store, "delete")

    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    writer.commit_ledger = die  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        delete_tracks(writer, ["t1", "t4"])
    drivers = [Driver(store, catalog, Shard(number, 2), f"run {number}") for number in (1, 2)]
    for driver in drivers:
        while not driver.step():
            pass
    assert list_features(store) == before
    assert not check_store(store, deep=True).problems


@settings(deadline=None, max_examples=3, phases=[Phase.reuse, Phase.generate])
@given(
    st.randoms(use_true_random=False),
    st.integers(2, 4),
    st.dictionaries(
        st.integers(1, 4), st.sampled_from(["accept", "_commit_failures", "commit_ledger"]), max_size=2
    ),
    st.booleans(),
)
def test_drivers_leave_what_one_would(
    random: Random, num_shards: int, killed: Mapping[int, str], prune: bool
) -> None:
    before, after = make_catalogs(20)
    with tempfile.TemporaryDirectory() as folder:
        alone, shared = make_store(f"{folder}/alone"), make_store(f"{folder}/shared")
        for store in (alone, shared):
            run(store, before, run_id="before")
        run(alone, after, run_id="alone", prune=prune)
        waiting = dict.fromkeys(range(1, num_shards + 1), 0)  # how often each was begun before
        drivers: dict[int, Driver] = {}
        while waiting or drivers:
            number = random.choice([*waiting, *drivers])
            if number in waiting:
                num_tries = waiting.pop(number)
                shard = Shard(number, num_shards)
                drivers[number] = Driver(shared, after, shard, f"shard{number}-{num_tries}", prune)
                if num_tries == 0 and number in killed:
                    kill(drivers[number].committer, killed[number])
                continue
            try:
                if drivers[number].step():
                    counts = drivers.pop(number).committer.counts
                    assert counts.closes
            except KilledError:
                del drivers[number]
                waiting[number] = 1
        assert_stores_are_equal(alone, shared)
        assert_every_ledger_version_has_its_frames(shared)
        assert not check_store(shared).problems
        counts = json.loads(open_table(shared, "tracks").history(1)[0]["counts"])
        assert counts["planned"] == len(after)
        assert (
            counts["planned"] == counts["embedded"] + counts["unchanged"] + counts["failed"] + counts["withheld"]
        )
        assert len(set(list_frames(shared))) == len(list_frames(shared))


def test_readers_see_nothing_until_the_last_shard_has_closed(tmp_path: Path) -> None:
    store, catalog = make_store(str(tmp_path)), sound(*"abcdef")
    run(store, sound("a"), run_id="before")
    drivers = [Driver(store, catalog, Shard(number, 2), f"run{number}") for number in (1, 2)]
    for driver in drivers:
        assert [row["track_id"] for row in list_tracks(store)] == ["a"]
        while not driver.step():
            pass
    assert [row["track_id"] for row in list_tracks(store)] == list("abcdef")
    assert [driver.committer.num_open_shards for driver in drivers] == [1, 0]


def test_a_shard_that_has_closed_is_not_published_by_maintenance(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    driver = Driver(store, {}, Shard(1, 2), "run1")
    assert StoreWriter(store, "maintenance").unclosed_run is None
    driver = Driver(store, sound(*"abcd"), Shard(1, 2), "run2")
    driver.committer.accept(embed(store, driver.plan.to_process, driver.catalog, "run2"))
    assert driver.committer.close()
    assert StoreWriter(store, "maintenance").unclosed_run == "run2"


def test_a_shard_prunes_its_own_tracks_alone(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    run(store, sound(*"abcdefgh"), run_id="before")
    first = Driver(store, sound(*"abgh"), Shard(1, 2), "run1", prune=True)
    while not first.step():
        pass
    assert first.committer.counts.deleted == 4  # c to f stand before g, which is the second shard's first track
    assert first.plan.num_held == 6
    second = Driver(store, sound(*"abgh"), Shard(2, 2), "run2", prune=True)
    assert second.plan.num_departed == 0
    while not second.step():
        pass
    assert [row["track_id"] for row in list_tracks(store)] == list("abgh")


def test_an_id_is_one_drivers_whatever_their_catalogs_have(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    first = Driver(store, sound(*"abcd"), Shard(1, 2), "run1")
    second = Driver(store, sound(*"bcdefghij"), Shard(2, 2), "run2")
    assert first.plan.to_process["track_id"].to_pylist() == ["a", "b"]
    assert second.plan.to_process["track_id"].to_pylist() == list("cdefghij")


def test_others_are_kept_out_while_a_driver_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, catalog = make_store(str(tmp_path)), sound(*"abcd")
    monkeypatch.setattr(lease, "_identify_machine", lambda: "elsewhere/1")
    Driver(store, catalog, Shard(1, 2), "run1")
    monkeypatch.setattr(lease, "_identify_machine", lambda: "here/1")
    with pytest.raises(UsageError, match=r"run run1 is writing .* as shard 1/2 .*15 minutes"):
        Driver(store, catalog, Shard(1, 2), "run2")
    with pytest.raises(UsageError, match=r"run run1 is writing .* as shard 1/2"):
        Driver(store, catalog, Shard(1, 3), "run2")
    with pytest.raises(UsageError, match="wait until all shards have ended"):
        StoreWriter(store, "maintenance")
    Driver(store, catalog, Shard(2, 2), "run2")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + lease.LEASE_S + 60)
    StoreWriter(store, "maintenance")


def test_an_overtaken_driver_fails_at_its_next_commit(tmp_path: Path) -> None:
    store, catalog = make_store(str(tmp_path)), sound(*"abcdefgh")
    first, other = (Driver(store, catalog, Shard(number, 2), f"run{number}") for number in (1, 2))
    again = Driver(store, catalog, Shard(1, 2), "run3")
    with pytest.raises(RunError, match="run1"):
        first.step()
    for driver in (again, other):
        while not driver.step():
            pass
    assert_every_ledger_version_has_its_frames(store)
    late = Driver(store, catalog, Shard(1, 2), "run4")
    StoreWriter(store, "maintenance")
    with pytest.raises(RunError, match="run4"):
        late.step()


@given(st.lists(st.text("abc", max_size=3), unique=True), st.integers(1, 6))
def test_shards_share_out_all_ids(ids: Sequence[str], num_shards: int) -> None:
    catalog = pa.table({"track_id": pa.array(sorted(ids), pa.string())})
    first_ids = list_first_ids(catalog, num_shards)
    others = pa.table({"track_id": pa.array(["", "a", "abb", "b", "ccc", "d"], pa.string())})
    for table in (catalog, others):
        shares = [
            cut_range(first_ids, number).select(table)["track_id"].to_pylist()
            for number in range(1, num_shards + 1)
        ]
        assert [track_id for share in shares for track_id in share] == table["track_id"].to_pylist()
        if table is catalog:
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


DRIVER = """
import sys, time
from pipeline.config import Shard
from pipeline.location import StoreLocation
from tests.pipeline.store.test_shared_run import Driver, make_catalogs
folder, number, of, run_id, num_commits, last = sys.argv[1:]
driver = Driver(StoreLocation(folder), make_catalogs(200)[1], Shard(int(number), int(of)), run_id, prune=True)
def wait_for_the_end(*arguments, **named):
    print("waits", flush=True)
    time.sleep(600)
for _ in range(int(num_commits)):
    driver.step(5)
if last == "commit_ledger":
    driver.committer.writer.commit_ledger = wait_for_the_end
elif last == "step":
    driver.step = wait_for_the_end
while not driver.step(5):
    pass
"""


def start_driver(
    store: StoreLocation, number: int, of: int, run_id: str, num_commits: int = 0, last: str = ""
) -> subprocess.Popen[str]:
    """Start a driver that after some commits does not come past a step or a commit, or goes on to its end."""
    command = [sys.executable, "-c", DRIVER, store.url, str(number), str(of), run_id, str(num_commits), last]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_four_processes_at_once_of_which_two_are_killed_leave_what_one_would(tmp_path: Path) -> None:
    before, after = make_catalogs(200)
    alone, shared = make_store(f"{tmp_path}/alone"), make_store(f"{tmp_path}/shared")
    for store in (alone, shared):
        run(store, before, run_id="before")
    run(alone, after, run_id="alone", prune=True)
    killed = {2: (3, "commit_ledger"), 3: (2, "step")}
    drivers = {
        number: start_driver(shared, number, 4, f"shard{number}", *killed.get(number, ()))
        for number in range(1, 5)
    }
    for number in killed:
        output = drivers[number].stdout
        assert output is not None
        assert output.readline() == "waits\n"
        drivers[number].kill()
        drivers[number].communicate()
        drivers[number] = start_driver(shared, number, 4, f"shard{number}-again")
    for number, driver in drivers.items():
        _, errors = driver.communicate(timeout=200)
        assert driver.returncode == 0, (number, errors)
    assert_stores_are_equal(alone, shared)
    assert_every_ledger_version_has_its_frames(shared)
    assert not check_store(shared).problems
    history = open_table(shared, "tracks").history()
    events = [commit["event"] for commit in history if str(commit.get("run_id", "")).startswith("shard")]
    assert (events[0], events.count("close"), events.count("shard")) == ("close", 1, 3)
    assert json.loads(history[0]["counts"])["planned"] == len(after)
