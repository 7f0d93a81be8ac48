import numpy as np
import pytest

from pipeline.location import StoreLocation
from pipeline.report.sample import sample_tracks, summarise_failures
from pipeline.store.tables import open_table
from tests.stores import BAD, KnownStore, make_features, make_recipe

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
    found = dict(zip(sample.rows["track_id"].to_pylist(), sample.rows["embedding"].to_pylist(), strict=True))
    assert set(found) == set(store.contents[R7.recipe_id])
    expected = make_features(store.contents[R7.recipe_id]["t007"], R7.recipe_id, "global")
    assert np.allclose(found["t007"], expected[0])


def test_a_sample_is_bounded_and_spread(store: KnownStore) -> None:
    version = open_table(store.location, "tracks").version()
    sample = sample_tracks(store.location, version, R7.recipe_id, max_rows=30)
    ids = sorted(sample.rows["track_id"].to_pylist())
    assert sample.num_total == 127
    assert 20 <= len(ids) <= 36
    assert len(set(ids)) == len(ids)
    places = [int(name[1:]) for name in ids if name.startswith("t")]
    assert max(np.diff([0, *places, 119])) <= 15


def test_a_run_can_be_read_alone(store: KnownStore) -> None:
    version = open_table(store.location, "tracks").version()
    sample = sample_tracks(store.location, version, R7.recipe_id, run_id="run2")
    assert sorted(sample.rows["track_id"].to_pylist()) == [f"u{i}" for i in range(7)]


def test_failures_are_counted_once_and_the_new_come_first(store: KnownStore) -> None:
    (found,) = summarise_failures(store.location, [R7.recipe_id, R4.recipe_id], "run2")
    assert (found["stage"], found["reason"]) == ("decode", "unreadable")
    assert (found["number"], found["num_new"]) == (3, 1)
    assert [example["track_id"] for example in found["examples"]] == ["bad3", "bad1", "bad2"]
    assert found["examples"][0] == {"track_id": "bad3", "uri": "/bad3.mp3", "message": "expected music"}
    assert summarise_failures(store.location, ["another"], "run2") == []
