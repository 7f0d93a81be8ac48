from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.errors import RunError, UsageError
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation, delta_storage_options
from pipeline.search.neighbors import find_neighbors, write_neighbors
from pipeline.store.takedown import take_down
from pipeline.store.writer import StoreWriter
from tests.indexes import draw_tracks, make_index
from tests.s3_server import STORE, STORE_BUCKET, S3Server
from tests.stores import KnownStore, make_recipe

NUM_TRACKS = 40


def naive_cosines(
    vectors: list[npt.NDArray[np.float32]], groups: npt.NDArray[np.int64] | None = None
) -> list[dict[int, float]]:
    """Return the cosine of each track with all others of other groups, one pair at a time, descending."""
    result = []
    for query, vector in enumerate(vectors):
        cosines = {}
        for other, candidate in enumerate(vectors):
            same = groups is not None and groups[query] >= 0 and groups[query] == groups[other]
            if other != query and not same:
                a, b = vector[0].astype(np.float64), candidate[0].astype(np.float64)
                cosines[other] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        result.append(dict(sorted(cosines.items(), key=lambda item: -item[1])))
    return result


@pytest.mark.parametrize("k", [1, 7, NUM_TRACKS + 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_are_those_of_a_naive_search(tmp_path: Path, k: int, grouped: bool) -> None:
    vectors = draw_tracks(NUM_TRACKS)
    # One large group, whose tracks fill each other's ranks, and tracks of none.
    groups = np.array([0] * 25 + [1] * 10 + [-1] * 5) if grouped else None
    index = make_index(tmp_path, vectors)
    scores, found = find_neighbors(index, np.arange(NUM_TRACKS), k, groups)
    assert scores.shape == found.shape == (NUM_TRACKS, k)
    for query, cosines in enumerate(naive_cosines(vectors, groups)):
        num_found = min(k, len(cosines))
        own = found[query, :num_found].tolist()
        assert len(set(own)) == num_found
        # Half precision may swap two that are as near to each other; their cosines are still the largest.
        assert [cosines[other] for other in own] == pytest.approx(list(cosines.values())[:num_found], abs=2e-3)
        assert scores[query, :num_found] == pytest.approx([cosines[other] for other in own], abs=2e-3)
        assert (found[query, num_found:] == -1).all()
        assert np.isneginf(scores[query, num_found:]).all()
        assert (np.diff(scores[query, :num_found]) <= 0).all()


def test_equal_tracks_are_each_others_neighbours_and_never_their_own(tmp_path: Path) -> None:
    vectors = draw_tracks(6)
    vectors[3] = vectors[4] = vectors[1]
    _, found = find_neighbors(make_index(tmp_path, vectors), np.array([1, 3, 4]), 2)
    assert [set(row) for row in found.tolist()] == [{3, 4}, {1, 4}, {1, 3}]


def make_store(folder: Path, num_tracks: int = 20, recipes: tuple[int, ...] = (7,)) -> KnownStore:
    return fill_store(StoreLocation(str(folder / "store")), num_tracks, recipes)


def fill_store(location: StoreLocation, num_tracks: int = 20, recipes: tuple[int, ...] = (7,)) -> KnownStore:
    store = KnownStore(location)
    contents = {f"track {number:02d}": f"content {number}" for number in range(num_tracks)}
    store.run(contents, [make_recipe(layer) for layer in recipes], ("global",))
    for layer in recipes:
        build_index(store.location, IndexSettings(recipe=make_recipe(layer).recipe_id))
    return store


def read(store: KnownStore) -> list[dict[str, Any]]:
    options = delta_storage_options(store.location.options)
    table = DeltaTable(store.location.table_url("neighbors"), storage_options=options)
    rows = pa.table(
        table.scan(["recipe", "track_id", "rank", "neighbor_id", "score", "store_version"])
    ).to_pylist()
    return sorted(rows, key=lambda row: (row["recipe"], row["track_id"], row["rank"]))


def test_the_table_holds_every_tracks_nearest(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    report = write_neighbors(store.location, k=4, tracks_per_task=6)
    rows = read(store)
    assert (report.num_tracks, report.num_rows) == (20, len(rows)) == (20, 80)
    recipe = make_recipe().recipe_id
    features = store.features[recipe, "global"]
    names = sorted(features)
    expected = naive_cosines([features[name] for name in names])
    for number, name in enumerate(names):
        own = [row for row in rows if row["track_id"] == name]
        assert [row["rank"] for row in own] == [1, 2, 3, 4]
        assert [row["neighbor_id"] for row in own] == [names[other] for other in list(expected[number])[:4]]
        assert {(row["recipe"], row["store_version"]) for row in own} == {(recipe, report.store_version)}


def test_a_run_replaces_its_own_recipe_in_one_commit(tmp_path: Path) -> None:
    store = make_store(tmp_path, recipes=(4, 7))
    four, seven = (make_recipe(layer).recipe_id for layer in (4, 7))
    write_neighbors(store.location, 2, four)
    first = write_neighbors(store.location, 3, seven)
    store.run({"track 00": "changed"}, [make_recipe(7)], ("global",), prune=False)
    build_index(store.location, IndexSettings(recipe=seven))
    before = [row for row in read(store) if row["recipe"] == four]
    second = write_neighbors(store.location, 1, seven)
    assert second.table_version == first.table_version + 1
    rows = read(store)
    assert [row for row in rows if row["recipe"] == four] == before
    changed = [row for row in rows if row["recipe"] == seven]
    assert len(changed) == 20
    assert {row["store_version"] for row in changed} == {second.store_version} != {first.store_version}


def test_what_was_taken_down_since_the_index_was_built_is_nobodys_neighbour(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    take_down(StoreWriter(store.location, "take-down"), ["track 03", "track 11"])
    report = write_neighbors(store.location, k=4, tracks_per_task=6)
    rows = read(store)
    assert (report.num_tracks, report.num_rows) == (18, len(rows)) == (18, 72)
    assert not {"track 03", "track 11"} & {row[name] for row in rows for name in ("track_id", "neighbor_id")}


def test_a_catalog_of_one_track_has_no_neighbours(tmp_path: Path) -> None:
    store = make_store(tmp_path, num_tracks=1)
    assert write_neighbors(store.location).num_rows == 0
    assert read(store) == []


def test_another_run_meanwhile_keeps_its_neighbours(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_neighbors(store.location, 1)

    def overtaken(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        yield from map(function, items)
        write_neighbors(store.location, 5)

    with pytest.raises(RunError, match="another run"):
        write_neighbors(store.location, 2, run_map=overtaken)
    assert len(read(store)) == 20 * 5


def test_a_new_index_meanwhile_does_not_mix_two_snapshots(tmp_path: Path) -> None:
    store = make_store(tmp_path)

    def refreshed(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        remaining = iter(items)
        yield function(next(remaining))
        store.run({f"later {number}": f"content {number}" for number in range(5)}, resolutions=("global",))
        build_index(store.location, IndexSettings())
        yield from map(function, remaining)

    report = write_neighbors(store.location, 3, run_map=refreshed, tracks_per_task=5)
    rows = read(store)
    assert len(rows) == 60
    assert {row["store_version"] for row in rows} == {report.store_version}
    assert not any(row["neighbor_id"].startswith("later") for row in rows)


def test_a_store_without_an_index_is_told_what_to_do(tmp_path: Path) -> None:
    store = KnownStore(StoreLocation(str(tmp_path / "store")))
    store.run({"a": "content"}, resolutions=("global",))
    with pytest.raises(UsageError, match=r"musicfm index"):
        write_neighbors(store.location)


@pytest.mark.ray
def test_the_same_rows_come_over_ray(tmp_path: Path, local_ray: None) -> None:
    from pipeline.index.dataflow import map_over_ray

    store = make_store(tmp_path)
    write_neighbors(store.location, 3)
    expected = read(store)
    write_neighbors(store.location, 3, run_map=map_over_ray, tracks_per_task=8)
    assert read(store) == expected
    assert len(DeltaTable(store.location.table_url("neighbors")).file_uris()) == 3
    assert VectorIndex.open(store.location).tracks.num_rows == 20


def test_on_an_object_store_it_is_the_same(s3_server: S3Server, tmp_path: Path) -> None:
    here = make_store(tmp_path, 12)
    location = StoreLocation(f"s3://{STORE_BUCKET}/neighbors-{tmp_path.name}", s3_server.options(STORE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))  # the index is copied to a cache under it
        there = fill_store(location, 12)
        write_neighbors(here.location, 3, tracks_per_task=5)
        for _ in range(2):
            write_neighbors(location, 3, cache=str(tmp_path / "cache"), tracks_per_task=5)
    names = ("track_id", "rank", "neighbor_id", "score")
    assert [[row[name] for name in names] for row in read(there)] == [
        [row[name] for name in names] for row in read(here)
    ]
