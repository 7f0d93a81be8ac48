"""Files that were moved, renamed or copied keep their features; what was taken down stays away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import delete_tracks
from pipeline.config import PruneLimit
from pipeline.location import StoreLocation
from pipeline.run.plan import Plan
from pipeline.run.prune import check_fence
from pipeline.run.recognise import settle_recognised
from pipeline.store.check import check_store
from pipeline.store.commit import RunCommitter
from pipeline.store.read import FeatureStore
from pipeline.store.tables import create_tables, open_table
from pipeline.store.write import WriteSettings, write_parts
from tests.rows import fake_embedding, read_store
from tests.runs import R4, R7, RECIPES, Track, open_run, plan_run, start_books

RESOLUTIONS = ("8hz", "global")
ANYTHING = PruneLimit(share=1.0)


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    return location


def run(
    store: StoreLocation,
    catalog: Mapping[str, Track],
    prune: bool = False,
    recipes: Sequence[str] = (R7,),
    limit: PruneLimit = ANYTHING,
) -> tuple[RunCommitter, int]:
    """Run as the driver does, known content left undecoded; also return how many tracks the model was given."""
    committer = open_run(store, f"run{open_table(store, 'tracks').version()}", recipes)
    plan = plan_run(store, catalog, recipes, RESOLUTIONS)
    start_books(committer, plan)
    committer.counts.withheld = plan.num_withheld
    ledger = open_table(store, "tracks", committer.store_version)
    rows, known = plan.to_process, set(plan.known_hashes.to_pylist())
    num_embedded = 0
    while rows.num_rows:
        embedded = fake_embedding(rows, {track_id: track.audio for track_id, track in catalog.items()})
        embedded = leave_known(embedded, known)
        num_embedded += sum(bool(wanted) for wanted in embedded.column("wanted").to_pylist())
        write = WriteSettings(store.table_url("frames"), dict.fromkeys(RECIPES, 23), committer.run_id)
        committer.accept(write_parts(embedded, write))
        rows, known = settle_recognised(committer, plan, ledger), set()
    assert committer.counts.closes
    committer.close(plan.departed if prune and check_fence(committer, plan, limit) else None)
    assert check_store(store, deep=True).problems == []
    return committer, num_embedded


def leave_known(embedded: pa.Table, known: set[str]) -> pa.Table:
    rows = [
        {**row, "wanted": [], "features": []} if row["content_hash"] in known and row["stage"] is None else row
        for row in embedded.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=embedded.schema)


def read_all(store: StoreLocation, recipe: str = R7) -> dict[str, tuple[list[list[float]], list[float]]]:
    """Return frames and global vector of each track of the ledger."""
    reader = FeatureStore(store.url)
    found = {}
    for row in reader.to_arrow("global", recipe).to_pylist():
        frames = reader.frames([row["track_id"]], "8hz", recipe=recipe).column("embeddings")[0].as_py()
        found[row["track_id"]] = (frames, row["embedding"])
    return found


def music(**contents: str) -> dict[str, Track]:
    """Return tracks by id and content; each file lies where its id says."""
    return {track_id: Track(f"/{track_id}", content, 1) for track_id, content in contents.items()}


def test_renamed_files_keep_their_features_and_no_model_sees_them(store: StoreLocation) -> None:
    names = {f"t{number}": f"content {number % 37} {number}" for number in range(40)}
    run(store, music(**names))
    before = read_all(store)
    renamed = {f"new {name}": Track(f"/other/{name}", content, 2, title=name) for name, content in names.items()}
    committer, num_embedded = run(store, renamed, prune=True)
    counts = committer.counts
    assert num_embedded == 0
    assert (counts.embedded, counts.unchanged, counts.moved, counts.copied, counts.deleted) == (0, 40, 40, 0, 0)
    assert read_all(store) == {f"new {name}": found for name, found in before.items()}
    rows = read_store(store, "tracks")
    assert {row["uri"] for row in rows} == {track.uri for track in renamed.values()}
    assert {row["title"] for row in rows} == set(names)


def test_a_copy_is_copied_and_both_stay(store: StoreLocation) -> None:
    run(store, music(a="x", b="y"))
    committer, num_embedded = run(store, music(a="x", b="y", c="x", d="x"))
    counts = committer.counts
    assert (num_embedded, counts.unchanged, counts.moved, counts.copied) == (0, 4, 0, 2)
    found = read_all(store)
    assert found["a"] == found["c"] == found["d"]
    assert found["a"] != found["b"]


def test_names_that_change_places_take_their_features_along(store: StoreLocation) -> None:
    run(store, music(a="x", b="y"))
    before = read_all(store)
    swapped = {"a": Track("/a", "y", 2), "b": Track("/b", "x", 2)}
    _, num_embedded = run(store, swapped)
    assert num_embedded == 0
    assert read_all(store) == {"a": before["b"], "b": before["a"]}


def test_a_name_given_to_new_music_in_the_same_run(store: StoreLocation) -> None:
    run(store, music(a="x"))
    before = read_all(store)
    committer, num_embedded = run(store, {"a": Track("/a", "new", 2), "b": Track("/b", "x", 2)})
    assert (num_embedded, committer.counts.embedded, committer.counts.copied) == (1, 1, 1)
    found = read_all(store)
    assert found["b"] == before["a"]
    assert found["a"] != before["a"]


def test_what_is_stored_for_one_recipe_alone_goes_through_the_model(store: StoreLocation) -> None:
    run(store, music(a="x"))
    committer, num_embedded = run(store, music(b="x"), recipes=(R4, R7))
    assert (num_embedded, committer.counts.embedded) == (1, 1)
    committer, num_embedded = run(store, music(c="x"), recipes=(R4, R7))
    assert (num_embedded, committer.counts.copied + committer.counts.moved) == (0, 1)
    assert read_all(store, R4)["c"] == read_all(store, R4)["b"]


def test_moved_tracks_do_not_count_against_the_fence(store: StoreLocation) -> None:
    names = {f"t{number}": f"c{number}" for number in range(30)}
    run(store, music(**names))
    moved = {f"m{name}": Track(f"/m/{name}", content, 1) for name, content in list(names.items())[:28]}
    committer, _ = run(store, moved, prune=True, limit=PruneLimit())
    assert (committer.counts.moved, committer.counts.deleted, committer.counts.not_pruned) == (28, 2, 0)
    assert set(read_all(store)) == set(moved)


def test_a_wrong_folder_prunes_nothing_and_is_told_how_to_insist(store: StoreLocation) -> None:
    run(store, {f"t{number}": Track(f"/music/a/t{number}", f"c{number}", 1) for number in range(7)})
    committer, _ = run(store, music(other="z"), prune=True, limit=PruneLimit())
    assert (committer.counts.deleted, committer.counts.not_pruned) == (0, 7)
    refusal = committer.counts.prune_refusal
    assert refusal is not None
    assert "none of the 7" in refusal
    assert "/music/a (7)" in refusal
    assert "--prune-limit 7" in refusal
    assert len(read_all(store)) == 8
    committer, _ = run(store, music(other="z"), prune=True, limit=PruneLimit.parse("7"))
    assert (committer.counts.deleted, committer.counts.not_pruned) == (7, 0)
    assert set(read_all(store)) == {"other"}


def test_a_prefix_that_only_looks_known_is_embedded_after_all(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, music(a="x"))
    find_known = vars(Plan)["known_hashes"].fget

    def find_more(plan: Plan) -> pa.ChunkedArray:
        return pa.chunked_array([*find_known(plan).chunks, pa.array(["y"])], pa.string())

    monkeypatch.setattr(Plan, "known_hashes", property(find_more))
    committer, num_embedded = run(store, music(a="x", b="y", c="x"))
    assert (num_embedded, committer.counts.embedded, committer.counts.unchanged) == (1, 1, 2)


def take_down(store: StoreLocation, tmp_path: Path, *arguments: str, ids: Sequence[str]) -> int:
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    return delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt"), *arguments])


def test_what_was_taken_down_comes_back_under_no_name_until_it_is_restored(
    store: StoreLocation, tmp_path: Path
) -> None:
    catalog = music(a="x", b="y")
    run(store, catalog)
    before = read_all(store)
    assert take_down(store, tmp_path, "--reason", "asked to", "--vacuum", ids=["a"]) == 0
    for again in (catalog, music(renamed="x", b="y"), music(a="remastered", b="y", copy="x")):
        committer, num_embedded = run(store, again)
        assert num_embedded == 0
        assert committer.counts.withheld == len(again) - 1
        assert set(read_all(store)) == {"b"}
    (entry,) = read_store(store, "withheld")
    assert (entry["track_id"], entry["content_hash"], entry["reason"]) == ("a", "x", "asked to")
    assert take_down(store, tmp_path, "--restore", ids=["a"]) == 0
    committer, num_embedded = run(store, catalog)
    assert (num_embedded, committer.counts.withheld) == (1, 0)
    assert read_all(store) == before


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz"), min_size=1), max_size=5))
@settings(max_examples=15, deadline=None)
def test_whatever_happens_to_names_the_store_holds_what_the_catalog_says(
    tmp_path_factory: pytest.TempPathFactory, catalogs: list[dict[str, str]]
) -> None:
    store = StoreLocation(str(tmp_path_factory.mktemp("s") / "store"))
    create_tables(store)
    for number, contents in enumerate(catalogs):
        catalog = {name: Track(f"/{name}", content, number) for name, content in contents.items()}
        committer, _ = run(store, catalog, prune=True)
        assert committer.counts.planned == len(catalog)
        assert {row["track_id"]: row["content_hash"] for row in read_store(store, "tracks")} == contents
        frames = read_all(store)
        for name, content in contents.items():
            twin = min(other for other in contents if contents[other] == content)
            assert frames[name] == frames[twin]
