from pathlib import Path

import numpy as np
import pytest

from pipeline.location import StoreLocation
from pipeline.report.sample import sample_tracks, sample_vectors, summarise_failures
from pipeline.store.tables import open_table
from tests.stores import BAD, KnownStore, make_recipe

R7, R4 = make_recipe(7), make_recipe(4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    store = KnownStore(StoreLocation(str(tmp_path_factory.mktemp("sample") / "store")))
    contents = {f"t{i:03d}": f"content {i}" for i in range(120)} | {"bad1": BAD, "bad2": BAD}
    store.run(contents, [R7, R4], tracks_per_part=10)
    store.run(contents | {f"u{i}": f"more {i}" for i in range(7)} | {"bad3": BAD}, [R7, R4], tracks_per_part=10)
    return store


def test_few_tracks_are_read_whole(store: KnownStore) -> None:
    version = open_table(store.location, "tracks").version()
    sample = sample_tracks(store.location, version, R7.recipe_id)
    assert sample.num_total == 127
    assert sorted(sample.rows["track_id"].to_pylist()) == sorted(store.contents[R7.recipe_id])
    vectors, rows = sample_vectors(store.location, version, R7.recipe_id)
    found = dict(zip(rows["track_id"].to_pylist(), vectors, strict=True))
    expected = store.features[R7.recipe_id, "global"]
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[track_id], expected[track_id][0]) for track_id in expected)
    titles = dict(zip(rows["track_id"].to_pylist(), rows["title"].to_pylist(), strict=True))
    assert titles["t007"] == "T007"


def test_a_sample_is_bounded_and_spread(store: KnownStore) -> None:
    version = open_table(store.location, "tracks").version()
    sample = sample_tracks(store.location, version, R7.recipe_id, max_rows=30)
    assert sample.num_total == 127
    vectors, rows = sample_vectors(store.location, version, R7.recipe_id, max_rows=30)
    assert len(vectors) == rows.num_rows
    for ids in (sorted(table.column("track_id").to_pylist()) for table in (sample.rows, rows)):
        assert 20 <= len(ids) <= 36
        assert len(set(ids)) == len(ids)
        places = [int(name[1:]) for name in ids if name.startswith("t")]
        assert max(np.diff([0, *places, 119])) <= 15


def test_a_run_can_be_read_alone(store: KnownStore) -> None:
    version = open_table(store.location, "tracks").version()
    vectors, rows = sample_vectors(store.location, version, R7.recipe_id, run_id="run2")
    assert sorted(rows["track_id"].to_pylist()) == [f"u{i}" for i in range(7)]
    assert len(vectors) == 7


def test_vectors_of_a_content_that_changed_are_left_out(tmp_path: Path) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "one", "b": "two"}, tracks_per_part=2)
    first = open_table(known.location, "tracks").version()
    before = dict(known.features[R7.recipe_id, "global"])
    known.run({"a": "one", "b": "anew"}, tracks_per_part=2)
    known.run({"c": "three"}, resolutions=["8hz"])
    for version, expected in (
        (first, before),
        (open_table(known.location, "tracks").version(), known.features[R7.recipe_id, "global"]),
    ):
        vectors, rows = sample_vectors(known.location, version, R7.recipe_id)
        found = dict(zip(rows["track_id"].to_pylist(), vectors, strict=True))
        assert found.keys() == {"a", "b"}
        assert all(np.array_equal(found[track_id], expected[track_id][0]) for track_id in found)
    nothing, _ = sample_vectors(known.location, first, R7.recipe_id, run_id="run3")
    assert nothing.shape == (0, 0)
    known.run({}, prune=True)
    nothing, rows = sample_vectors(known.location, open_table(known.location, "tracks").version(), R7.recipe_id)
    assert (nothing.shape, rows.num_rows) == ((0, 0), 0)


def test_failures_are_counted_once_and_the_new_come_first(store: KnownStore) -> None:
    (found,) = summarise_failures(store.location, [R7.recipe_id, R4.recipe_id], "run2")
    assert (found["stage"], found["reason"]) == ("decode", "unreadable")
    assert (found["number"], found["num_new"]) == (3, 1)
    assert [example["track_id"] for example in found["examples"]] == ["bad3", "bad1", "bad2"]
    assert found["examples"][0] == {"track_id": "bad3", "uri": "/bad3.mp3", "message": "expected music"}
    assert summarise_failures(store.location, ["another"], "run2") == []
