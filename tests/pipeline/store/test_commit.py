import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError, StorageError
from pipeline.location import StoreLocation
from pipeline.store.check import check_store
from pipeline.store.commit import RunCommitter
from pipeline.store.maintain import compact_store
from pipeline.store.read import FeatureStore
from pipeline.store.recipes import record_recipes
from pipeline.store.tables import create_tables, open_table
from pipeline.store.writer import StoreWriter
from tests.rows import read_store
from tests.runs import (
    R4,
    R7,
    RECIPES,
    Catalog,
    KilledError,
    Track,
    assert_every_ledger_version_has_its_frames,
    embed,
    kill,
    list_frames,
    open_run,
    plan_run,
    run,
    sound,
    start_books,
    write_result,
)
from tests.store_model import EDITS, Model, edit_catalog
from tests.stores import KnownStore


@dataclass(frozen=True)
class Run:
    """What is done to the catalog before a run, and how the run goes."""

    edits: list[tuple[str, str]]
    recipes: list[str]
    resolutions: frozenset[str]
    batch_size: int
    prune: bool
    retry: bool
    killed_at: str | None  # the method whose call the process does not survive
    survived_commits: int
    random: Random  # draws the order in which blocks are done


runs = st.builds(
    Run,
    edits=st.lists(st.tuples(st.sampled_from(EDITS), st.sampled_from("abcdefg")), max_size=6),
    recipes=st.lists(st.sampled_from([R4, R7]), min_size=1, max_size=2, unique=True),
    resolutions=st.frozensets(st.sampled_from(["16hz", "8hz", "global"]), min_size=1),
    batch_size=st.integers(1, 4),
    prune=st.booleans(),
    retry=st.booleans(),
    killed_at=st.sampled_from([None, None, "accept", "_commit_failures", "commit_ledger"]),
    survived_commits=st.integers(0, 1),
    random=st.randoms(use_true_random=False),
)


@settings(deadline=None, max_examples=10, phases=[Phase.reuse, Phase.generate])  # to shrink takes minutes
@given(st.lists(runs, min_size=2, max_size=4))
def test_the_tables_are_what_a_dict_of_tracks_would_be_after_any_runs(history: list[Run]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = StoreLocation(folder)
        create_tables(store)
        model = Model()
        catalog: dict[str, Track] = {}
        last_good: dict[str, Track] = {}
        for number, step in enumerate(history):
            for position, (edit, track_id) in enumerate(step.edits):
                edit_catalog(catalog, last_good, edit, track_id, 100 * number + position)
            check_one_run(store, model, catalog, step, f"run{number}")
        run(store, {}, [R4])
        assert sorted(list_frames(store)) == sorted(model.frames)
        assert_every_ledger_version_has_its_frames(store)


def check_one_run(store: StoreLocation, model: Model, catalog: Catalog, step: Run, run_id: str) -> None:
    committer = RunCommitter(store, run_id, {recipe: RECIPES[recipe] for recipe in step.recipes})
    assert list_frames(store) == sorted(model.frames), "what a killed run left is taken back"
    plan = plan_run(store, catalog, step.recipes, sorted(step.resolutions), step.retry)
    start_books(committer, plan)
    relabeled = set(plan.relabeled.column("track_id").to_pylist())
    starts = list(range(0, plan.to_process.num_rows, step.batch_size))
    step.random.shuffle(starts)
    for number, start in enumerate(starts):
        planned = plan.to_process.slice(start, step.batch_size)
        ids = set(planned.column("track_id").to_pylist()) | (relabeled if number == 0 else set())
        result = embed(store, planned, catalog, run_id)
        is_killed = step.killed_at is not None and number == step.survived_commits
        try:
            if is_killed:
                kill(committer, step.killed_at)
            committer.accept(result)
            committer.commit()
        except KilledError:
            if step.killed_at == "commit_ledger":
                model.process(catalog, ids, step.recipes, step.resolutions, ledger=False)
        else:
            model.process(catalog, ids, step.recipes, step.resolutions)
            assert list_frames(store) == sorted(model.frames)
        if is_killed:
            model.check(store)
            return
    num_failed = sum(
        model.fails(track_id, track, step.recipes, step.resolutions) for track_id, track in catalog.items()
    )
    committer.close(plan.departed if step.prune else None)
    model.process(catalog, set(catalog), step.recipes, step.resolutions)
    num_deleted = model.prune(catalog, step.recipes) if step.prune else 0
    model.check(store)
    assert list_frames(store) == sorted(model.frames)
    assert committer.counts.closes
    counts = json.loads(open_table(store, "tracks").history(1)[0]["counts"])
    assert (counts["planned"], counts["failed"], counts["deleted"]) == (len(catalog), num_failed, num_deleted)
    assert sum(counts["failures_by_reason"].values()) == num_failed


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def list_ledger(store: StoreLocation) -> dict[tuple[str, str], str]:
    rows = read_store(store, "tracks")
    contents = {(row["recipe"], row["track_id"]): row["content_hash"] for row in rows}
    assert len(contents) == len(rows)
    return contents


def leave_unnamed_frames(store: StoreLocation, catalog: Catalog) -> None:
    """Let a run die between its commit to ``frames`` and the one to the ledger."""
    committer = open_run(store, "killed")
    committer.accept(write_result(store, catalog, "killed", *catalog))
    kill(committer, "commit_ledger")
    with pytest.raises(KilledError):
        committer.commit()


def list_ids_of_both(store: StoreLocation) -> list[str]:
    """List the tracks of ``frames`` at 8 Hz, which must be those of the global vectors."""
    ids = {name: [row[2] for row in list_frames(store) if row[1] == name] for name in ("8hz", "global")}
    assert ids["8hz"] == ids["global"]
    return ids["8hz"]


def test_frames_that_no_ledger_names_are_taken_back_by_the_next_run(store: StoreLocation) -> None:
    run(store, sound("a"))
    leave_unnamed_frames(store, sound("b", "c"))
    assert list_ids_of_both(store) == ["a", "b", "c"]
    committer = open_run(store, "run2")
    assert list_ids_of_both(store) == ["a"]
    committer.close()
    run(store, sound("a", "b", "c"), run_id="run3")
    assert list_ids_of_both(store) == ["a", "b", "c"]
    assert_every_ledger_version_has_its_frames(store)


def test_a_run_that_dies_at_once_takes_nothing_back_that_is_named(store: StoreLocation) -> None:
    run(store, sound("a"))
    for number in range(3):
        open_run(store, f"dead{number}")
    assert list_ids_of_both(store) == ["a"]


@pytest.mark.parametrize("killed_before", [False, True])
def test_a_compaction_by_another_tool_loses_nothing(store: StoreLocation, killed_before: bool) -> None:
    catalog = sound("a", "b", "c", "d")
    for number, track_id in enumerate(catalog):
        run(store, {track_id: catalog[track_id]}, run_id=f"run{number}")
    if killed_before:
        leave_unnamed_frames(store, sound("e", "f"))
    for name in ("frames", "tracks", "failures"):
        open_table(store, name).optimize.compact()
    num_files = len(open_table(store, "frames").file_uris())
    committer = run(store, catalog | sound("g"), run_id="last")
    assert (committer.counts.embedded, committer.counts.unchanged) == (1, 4)
    assert list_ids_of_both(store) == ["a", "b", "c", "d", "g"]
    assert set(list_ledger(store)) == {(R7, track_id) for track_id in "abcdg"}
    if not killed_before:
        assert len(open_table(store, "frames").file_uris()) == num_files + 2, "the compaction itself stays"


def test_a_result_that_arrives_twice_counts_once(store: StoreLocation) -> None:
    catalog = sound("a", "b") | {"c": Track("/c", "c", 1, state="corrupt")}
    committer = open_run(store, "run1")
    result = write_result(store, catalog, "run1", "a", "b", "c")
    again = write_result(store, catalog, "run1", "a", "b", "c")
    assert committer.accept(result).num_tracks == 3
    assert committer.accept(result).num_tracks == committer.accept(again).num_tracks == 0
    committer.commit()
    assert committer.accept(again).num_tracks == 0
    assert (committer.counts.embedded, committer.counts.failed) == (2, 1)
    assert committer.counts.failures_by_reason == {"truncated": 1}
    committer.close()
    assert list_ids_of_both(store) == ["a", "b"]
    assert len(read_store(store, "failures")) == 1


def test_a_result_that_overlaps_is_left_out_whole_and_its_new_tracks_stay_open(store: StoreLocation) -> None:
    catalog = sound("a", "b", "c")
    committer = open_run(store, "run1")
    assert committer.accept(write_result(store, catalog, "run1", "a", "b")).num_tracks == 2
    assert committer.accept(write_result(store, catalog, "run1", "b", "c")).num_tracks == 0
    assert committer.done == {"a", "b"}
    assert committer.accept(write_result(store, catalog, "run1", "c")).num_tracks == 1
    committer.close()
    assert list_ids_of_both(store) == ["a", "b", "c"]


PENDING = {
    "features": sound("b", "c"),
    "a failure": {"b": Track("/b", "b", 1, state="corrupt")},
    "a relabelling": sound("a", title="new"),
    "nothing": {},
}


@pytest.mark.parametrize("pending", PENDING)
@pytest.mark.parametrize("newer_commits_first", [False, True])
def test_an_older_run_ends_when_a_newer_one_begins(
    store: StoreLocation, pending: str, newer_commits_first: bool
) -> None:
    run(store, sound("a"))
    catalog = PENDING[pending]
    older = open_run(store, "older")
    plan = plan_run(store, catalog, [R7], ["8hz", "global"])
    older.relabel(plan.relabeled)
    older.accept(embed(store, plan.to_process, catalog, "older"))
    newer = open_run(store, "newer")
    newer.accept(write_result(store, sound("b", "d"), "newer", "b", "d"))
    if newer_commits_first:
        newer.commit()
    with pytest.raises(RunError, match="another run has written to the store"):
        older.close()
    newer.close()
    assert list_ids_of_both(store) == ["a", "b", "d"]
    assert set(list_ledger(store)) == {(R7, "a"), (R7, "b"), (R7, "d")}
    assert read_store(store, "failures") == []
    assert_every_ledger_version_has_its_frames(store)


def test_a_run_overtaken_between_its_two_commits_leaves_no_frames(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = open_run(store, "older")
    older.accept(write_result(store, sound("a", "b"), "older", "a", "b"))
    commit_failures = older._commit_failures
    newer: list[RunCommitter] = []

    def begin_newer(*arguments: Any) -> None:
        newer.append(open_run(store, "newer"))
        commit_failures(*arguments)

    monkeypatch.setattr(older, "_commit_failures", begin_newer)
    with pytest.raises(RunError):
        older.commit()
    newer[0].accept(write_result(store, sound("b", "c"), "newer", "b", "c"))
    newer[0].close()
    assert list_ids_of_both(store) == ["b", "c"]
    assert_every_ledger_version_has_its_frames(store)


def test_what_an_older_run_had_committed_is_kept(store: StoreLocation) -> None:
    catalog = sound("a", "b")
    older = open_run(store, "older")
    older.accept(write_result(store, catalog, "older", "a"))
    older.commit()
    committer = run(store, catalog, run_id="newer")
    assert (committer.counts.embedded, committer.counts.unchanged) == (1, 1)
    assert list_ids_of_both(store) == ["a", "b"]


def test_closing_publishes_the_counts_and_the_recipes(store: StoreLocation) -> None:
    catalog = sound("a", "b") | {
        "c": Track("/c", "c", 1, state="denied"),
        "d": Track(None, "d", 1, state="missing"),
    }
    committer = run(store, catalog, run_id="night")
    assert committer.counts.closes
    (commit,) = open_table(store, "tracks").history(1)
    assert (commit["event"], commit["run_id"], commit["version"]) == ("close", "night", committer.store_version)
    assert json.loads(commit["recipes"]) == [R7]
    assert json.loads(commit["counts"]) == {
        "planned": 4,
        "embedded": 2,
        "unchanged": 0,
        "failed": 2,
        "deleted": 0,
        "failures_by_reason": {"permission_denied": 1, "object_missing": 1},
        "withheld": 0,
        "moved": 0,
        "copied": 0,
        "not_pruned": 0,
        "prune_refusal": None,
    }


def test_a_commit_without_results_makes_no_version(store: StoreLocation) -> None:
    committer = open_run(store, "run1")
    version = committer.store_version
    assert committer.accept(write_result(store, {}, "run1")).num_tracks == 0
    assert committer.commit() == version
    assert committer.close() == version + 1


def test_a_row_held_by_one_recipe_takes_the_facts_that_the_other_was_embedded_with(store: StoreLocation) -> None:
    catalog = sound("a")
    run(store, catalog, [R7])
    touched = {"a": replace(catalog["a"], second=9, title="new")}
    committer = run(store, touched, [R4, R7], run_id="run2")
    assert committer.counts.embedded == 1
    assert {row["title"] for row in read_store(store, "tracks")} == {"new"}
    assert plan_run(store, touched, [R4, R7], ["8hz", "global"]).num_unchanged == 1


def test_every_file_of_the_ledger_is_sorted_by_track(store: StoreLocation) -> None:
    run(store, sound("a", "c", "e"))
    catalog = sound("b", "d") | sound("c", title="new")
    run(store, catalog | {"a": Track("/a", "new", 9), "e": Track("/e", "new", 9)}, run_id="run2")
    for uri in open_table(store, "tracks").file_uris():
        ids = pq.ParquetFile(uri.removeprefix("file://")).read(["track_id"]).column("track_id").to_pylist()
        assert ids == sorted(ids)
    assert len(open_table(store, "tracks").file_uris()) == 1


def count_parts_over(store: StoreLocation, table_name: str, track_id: str) -> int:
    """Count the parts of one recipe and resolution whose span holds an id: what a point read opens."""
    files = pa.table(open_table(store, table_name).get_add_actions(flatten=True)).to_pylist()
    own = [file for file in files if file.get("partition.resolution", "16hz") == "16hz"]
    return sum(file["min.track_id"] <= track_id <= file["max.track_id"] for file in own)


@settings(deadline=None, max_examples=4)
@given(st.permutations(range(5)), st.booleans())
def test_blocks_may_be_done_in_any_order(order: list[int], stops_midway: bool) -> None:
    contents = {f"{number:02d}": f"content {number}" for number in range(15)}
    with tempfile.TemporaryDirectory() as folder:
        known = KnownStore(StoreLocation(folder))
        if stops_midway:  # the next run goes on with what is left, in an order of its own
            known.run(contents, order=lambda _: order[:3], close=False)
        known.run(contents, order=lambda number: [block for block in order if block < number])
        ids, store = list(contents), FeatureStore(folder)
        assert all(count_parts_over(known.location, "frames", track_id) == 1 for track_id in ids)
        assert all(count_parts_over(known.location, "tracks", track_id) == 1 for track_id in ids)
        check_features(store, known)
        compact_store(StoreWriter(known.location, "maintain"))
        assert [count_parts_over(known.location, name, "07") for name in ("tracks", "frames")] == [1, 1]
        check_features(FeatureStore(folder), known)
        assert not check_store(known.location).problems


@settings(deadline=None, max_examples=4)
@given(st.permutations(range(6)), st.integers(2, 7))
def test_results_that_are_joined_are_stored_as_if_they_were_not(order: list[int], results_per_commit: int) -> None:
    contents = {f"{number:02d}": f"content {number}" for number in range(12)} | {"03": "long 3"}
    with tempfile.TemporaryDirectory() as folder:
        known = KnownStore(StoreLocation(folder))
        known.run(contents, tracks_per_part=2, order=lambda _: order, results_per_commit=results_per_commit)
        check_features(FeatureStore(folder), known)
        assert not check_store(known.location, deep=True).problems
        files = pa.table(open_table(known.location, "frames").get_add_actions(flatten=True))
        assert files.num_rows < 3 * len(order)  # resolutions and blocks
        on_disk = {str(path.relative_to(f"{folder}/frames")) for path in Path(folder, "frames").rglob("part-*")}
        assert on_disk == set(files.column("path").to_pylist()), "what was joined is gone"


def test_a_run_killed_between_joining_and_committing_loses_and_doubles_nothing(store: StoreLocation) -> None:
    catalog = sound(*"abcd")
    committer = open_run(store, "killed")
    for ids in ("ab", "cd"):
        committer.accept(write_result(store, catalog, "killed", *ids))
    committer.join_pending()
    kill(committer, "commit_ledger")
    with pytest.raises(KilledError):
        committer.commit()
    assert run(store, catalog, run_id="next").counts.embedded == 4
    assert list_ids_of_both(store) == [*"abcd"]
    assert not check_store(store, deep=True).problems


def test_parts_that_cannot_be_joined_are_committed_as_they_are(store: StoreLocation) -> None:
    catalog = sound(*"abcd")
    committer = open_run(store, "run1")
    for ids in ("ab", "cd"):
        committer.accept(write_result(store, catalog, "run1", *ids))

    def fail(*_: Any) -> Any:
        raise StorageError("no room")

    with pytest.raises(StorageError):
        committer.join_pending(fail)
    committer.close()
    assert len(open_table(store, "frames").file_uris()) == 2 * 2  # blocks and resolutions
    assert list_ids_of_both(store) == [*"abcd"]


def check_features(store: FeatureStore, known: KnownStore) -> None:
    """Read every track by its id, and find what was stored."""
    ((recipe, _), *_) = known.features
    for track_id, expected in known.features[recipe, "16hz"].items():
        (found,) = store.frames([track_id], "16hz").column("embeddings").to_pylist()
        np.testing.assert_array_equal(np.array(found, np.float32), expected)
    rows = store.to_arrow("global").to_pylist()
    assert {row["track_id"]: row["embedding"] for row in rows} == {
        track_id: vector[0].tolist() for track_id, vector in known.features[recipe, "global"].items()
    }


def test_a_late_block_lies_apart_from_what_was_written_meanwhile(store: StoreLocation) -> None:
    catalog = sound(*"abcdefgh")
    committer = open_run(store, "run1")
    for ids in ("bc", "de", "af", "gh"):  # a and f are done in one commit; between them lie two parts
        committer.accept(write_result(store, catalog, "run1", *ids))
        committer.commit()
    spans = pa.table(open_table(store, "tracks").get_add_actions(flatten=True)).select(
        ["min.track_id", "max.track_id"]
    )
    assert sorted("".join(row.values()) for row in spans.to_pylist()) == ["aa", "bc", "de", "ff", "gh"]


@pytest.mark.parametrize("second", [1, 9])
def test_a_file_that_is_sound_again_sheds_its_failure(store: StoreLocation, second: int) -> None:
    catalog = sound("a", "b")
    run(store, catalog)
    run(store, catalog | {"a": replace(catalog["a"], state="corrupt", second=5)}, run_id="run2")
    assert [row["track_id"] for row in read_store(store, "failures")] == ["a"]
    committer = run(store, catalog | {"a": replace(catalog["a"], second=second)}, run_id="run3")
    assert (committer.counts.embedded, committer.counts.unchanged) == (0, 2)
    assert read_store(store, "failures") == []


def test_a_run_of_one_recipe_leaves_the_failures_of_another(store: StoreLocation) -> None:
    broken = {"a": Track("/a", "a", 1, state="corrupt")}
    run(store, broken, [R4, R7])
    run(store, {"a": Track("/a", "a", 2)}, [R7], run_id="run2")
    assert [(row["recipe"], row["track_id"]) for row in read_store(store, "failures")] == [(R4, "a")]


def test_the_bytes_written_are_those_of_the_files_added(store: StoreLocation) -> None:
    def measure() -> int:
        return sum(path.stat().st_size for path in Path(store.url).rglob("*.parquet"))

    run(store, sound("a", "b"))
    before = measure()
    catalog = sound("a", content="new") | {"b": Track("/b", "b", 2, state="corrupt")}
    assert run(store, catalog, run_id="run2").bytes_written == measure() - before


def test_recipes_are_written_down_once(store: StoreLocation) -> None:
    for recipes in ([R7], [R4, R7], [R4, R7]):
        record_recipes(store, "run1", {name: RECIPES[name] for name in recipes}, "fma")
    rows = read_store(store, "recipes")
    assert sorted(row["recipe"] for row in rows) == sorted(RECIPES)
    assert {row["recipe"]: row["definition"] for row in rows} == {
        recipe_id: recipe.definition for recipe_id, recipe in RECIPES.items()
    }
    assert {row["checkpoint"] for row in rows} == {"fma"}
