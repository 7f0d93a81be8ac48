import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import RunError, UsageError
from pipeline.location import StoreLocation
from pipeline.store import maintain
from pipeline.store.check import check_store
from pipeline.store.lease import LEASE_S
from pipeline.store.maintain import (
    compact_store,
    delete_tracks,
    drop_recipe,
    find_stored_ids,
    vacuum_store,
)
from pipeline.store.parts import Part
from pipeline.store.read import FeatureStore
from pipeline.store.rewrite import Rewrite
from pipeline.store.tables import create_tables, open_table
from pipeline.store.usage import report_store
from pipeline.store.writer import StoreWriter
from tests.rows import fake_features, read_store
from tests.runs import R4, R7, Track, list_frames, open_run, run, sound, write_result


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def changed(track_id: str, second: int) -> dict[str, Track]:
    """A track whose file was replaced at a later second."""
    return {track_id: replace(sound(track_id, content="other")[track_id], second=second)}


def touched(track_id: str, second: int) -> dict[str, Track]:
    """A track whose file has its first content, written at a later second."""
    return {track_id: replace(sound(track_id)[track_id], second=second)}


def read_vectors(store: StoreLocation, version: int | str = "published") -> dict[str, object]:
    """All live 8 Hz features by track, of one recipe."""
    table = FeatureStore(store.url, version).to_arrow("8hz", R7)
    return dict(zip(table.column("track_id").to_pylist(), table.column("embeddings").to_pylist(), strict=True))


def test_a_compaction_that_takes_long_keeps_the_store(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id, ids in (("one", "ab"), ("two", "abcd")):
        run(store, sound(*ids), run_id=run_id)
    writer = StoreWriter(store, "maintain")
    before, now_s = writer.store_version, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + LEASE_S / 3)
    compact_store(writer)
    events = [commit.get("event") for commit in open_table(store, "tracks").history()]
    assert events[: writer.store_version - before] == ["maintain", "open"]


def test_a_compaction_that_is_broken_off_has_done_what_it_published(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three recipes and resolutions are rewritten, a stage each; the process ends amid the third."""
    for run_id, ids in (("one", "ab"), ("two", "abcd")):
        run(store, sound(*ids), recipes=(R4, R7), resolutions=("8hz", "16hz"), run_id=run_id)
    before = read_vectors(store)
    monkeypatch.setattr(maintain, "STAGE_S", 0.0)
    num_rewritten = 0

    def rewrite_two(
        rewrite: Callable[[Rewrite], Part | None], rewrites: Sequence[Rewrite]
    ) -> Iterator[Part | None]:
        nonlocal num_rewritten
        for each in rewrites:
            if num_rewritten == 2:
                raise KeyboardInterrupt
            num_rewritten += 1
            yield rewrite(each)

    with pytest.raises(KeyboardInterrupt):
        compact_store(StoreWriter(store, "broken"), run_all=rewrite_two)
    assert sorted(report.num_parts for report in report_store(store)) == [1, 1, 2, 2]
    assert read_vectors(store) == before
    assert not check_store(store, deep=True).problems
    assert compact_store(StoreWriter(store, "again")) == 4, "what was done is not done again"
    assert [report.num_parts for report in report_store(store)] == [1, 1, 1, 1]
    assert read_vectors(store) == before


def test_a_run_need_not_wait_for_a_compaction(store: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for run_id, ids in (("one", "ab"), ("two", "abcd")):
        run(store, sound(*ids), recipes=(R4, R7), run_id=run_id)
    monkeypatch.setattr(maintain, "STAGE_S", 0.0)

    def begin_a_run(
        rewrite: Callable[[Rewrite], Part | None], rewrites: Sequence[Rewrite]
    ) -> Iterator[Part | None]:
        for number, each in enumerate(rewrites):
            yield rewrite(each)
            if number == 0:
                run(store, sound(*"abcdef"), recipes=(R4, R7), run_id="refresh")

    with pytest.raises(RunError, match="another run has written"):
        compact_store(StoreWriter(store, "maintain"), run_all=begin_a_run)
    assert len(read_vectors(store)) == 6
    assert not check_store(store, deep=True).problems


def test_compaction_leaves_one_part_and_every_live_vector(store: StoreLocation) -> None:
    for run_id, ids in (("one", "ab"), ("two", "abcd"), ("three", "abcdef")):
        run(store, sound(*ids), run_id=run_id)
    run(store, changed("a", 2) | sound(*"bcdef"), run_id="four")
    before = read_vectors(store)
    pinned = FeatureStore(store.url)
    for report in report_store(store):
        assert (report.num_parts, report.num_rows, report.num_dead_rows) == (4, 7, 1)
    writer = StoreWriter(store, "maintain")
    assert compact_store(writer) == 2 * 4  # of 8 Hz and of the global vectors
    assert read_vectors(store) == before
    assert [report.resolution for report in report_store(store)] == ["8hz", "global"]
    for report in report_store(store):
        assert (report.num_parts, report.num_rows, report.num_dead_rows) == (1, 6, 0)
    assert len(open_table(store, "tracks").file_uris()) == 1
    assert pinned.to_arrow("8hz", R7).num_rows == 6, "a reader that came before reads on"
    assert not check_store(store).problems
    assert compact_store(StoreWriter(store, "again")) == 0


def test_a_vacuum_removes_what_left_and_what_was_never_committed(store: StoreLocation) -> None:
    run(store, sound("a"), run_id="one")
    run(store, changed("a", 2), run_id="two")
    write_result(store, sound("orphan"), "killed", "orphan")
    writer = StoreWriter(store, "maintain")
    compact_store(writer)
    before = read_vectors(store)
    assert find_stored_ids(store, ["orphan"])
    assert vacuum_store(writer, 0) > 0
    assert not find_stored_ids(store, ["orphan"])
    assert read_vectors(store) == before
    frames = [
        path for path in Path(store.url).joinpath("frames").rglob("*.parquet") if "_delta_log" not in str(path)
    ]
    assert len(frames) == 2  # 8 Hz, and the global vectors
    assert not check_store(store, deep=True).problems


def test_a_fresh_file_survives_a_vacuum_with_retention(store: StoreLocation) -> None:
    run(store, sound("a"), run_id="one")
    run(store, changed("a", 2), run_id="two")
    writer = StoreWriter(store, "maintain")
    compact_store(writer)
    assert vacuum_store(writer, 24) == 0


def test_deleted_tracks_are_gone_from_every_recipe_and_after_a_vacuum_from_every_file(
    store: StoreLocation,
) -> None:
    run(store, sound(*"abcd"), recipes=(R7, R4))
    before = read_vectors(store)
    writer = StoreWriter(store, "delete")
    assert delete_tracks(writer, ["b", "d", "unknown"]) == 2
    assert {row["track_id"] for row in read_store(store, "tracks")} == {"a", "c"}
    assert {track_id for _, _, track_id, _ in list_frames(store)} == {"a", "c"}
    assert read_vectors(store) == {track_id: before[track_id] for track_id in ("a", "c")}
    assert find_stored_ids(store, ["b", "d"]), "older versions still have them"
    vacuum_store(writer, 0)
    assert not find_stored_ids(store, ["b", "d"])
    assert read_vectors(store) == {track_id: before[track_id] for track_id in ("a", "c")}


def test_a_dropped_recipe_leaves_the_other_as_it_was(store: StoreLocation) -> None:
    run(store, sound(*"ab"), recipes=(R7, R4))
    before = read_vectors(store)
    drop_recipe(StoreWriter(store, "drop"), R4)
    assert {row["recipe"] for row in read_store(store, "tracks")} == {R7}
    assert {recipe for recipe, *_ in list_frames(store)} == {R7}
    assert read_vectors(store) == before
    with pytest.raises(UsageError, match=R7):
        drop_recipe(StoreWriter(store, "drop"), R4)


def test_an_unclosed_run_is_not_published_by_maintenance(store: StoreLocation) -> None:
    run(store, sound("a"), run_id="one")
    committer = open_run(store, "killed")
    committer.accept(write_result(store, sound("b"), "killed", "b"))
    committer.commit()
    for operation in (compact_store, lambda writer: delete_tracks(writer, ["a"])):
        with pytest.raises(UsageError, match="killed"):
            operation(StoreWriter(store, "maintain"))
    assert list(read_vectors(store)) == ["a"]


def test_maintenance_killed_before_the_ledger_loses_nothing(store: StoreLocation) -> None:
    run(store, sound("a"), run_id="one")
    run(store, sound(*"ab"), run_id="two")
    before = read_vectors(store)

    class KilledError(Exception):
        pass

    class KilledWriter(StoreWriter):
        def commit_ledger(self, *_: object, **__: object) -> None:
            raise KilledError

    with pytest.raises(KilledError):
        compact_store(KilledWriter(store, "killed"))
    run(store, sound(*"abc"), run_id="three")
    assert {track_id: vectors for track_id, vectors in read_vectors(store).items() if track_id in before} == before
    assert not check_store(store, deep=True).problems


def test_content_that_comes_back_is_not_stored_twice(store: StoreLocation) -> None:
    for run_id, catalog in (("one", sound("a")), ("two", changed("a", 2)), ("three", touched("a", 3))):
        run(store, catalog, run_id=run_id)
    run(store, {}, run_id="four", prune=True)
    run(store, sound("a"), run_id="five")
    keys = list_frames(store)
    assert len(keys) == len(set(keys)) == 2 * 2  # contents and resolutions
    (row,) = read_store(store, "tracks")
    assert sorted(row["resolutions"]) == ["8hz", "global"]
    expected = fake_features(row["content_hash"], f"{R7}/8hz")
    assert read_vectors(store) == {"a": expected.tolist()}
    assert not check_store(store).problems
