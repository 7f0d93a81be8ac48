import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.index import build as index_build
from pipeline.index import quality as index_quality
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.files import upload_file
from pipeline.index.manifest import list_indexes, list_versions, publish
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.store.source import open_source
from tests.s3_server import STORE, STORE_BUCKET, S3Server
from tests.stores import KnownStore, make_features, make_recipe

CATALOG = {f"track{number:02d}": f"content {number}" for number in range(20)}
RECIPE = make_recipe().recipe_id


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    return KnownStore(StoreLocation(str(tmp_path / "store")))


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def check_holds(index: VectorIndex, known: KnownStore) -> None:
    """The index holds exactly the vectors of the known store's tracks."""
    resolution = index.manifest.resolution
    expected = known.features[RECIPE, resolution]
    assert index.tracks.column("track_id").to_pylist() == sorted(expected)
    assert index.tracks.column("content_hash").to_pylist() == [
        known.contents[RECIPE][track_id] for track_id in sorted(expected)
    ]
    for position, track_id in enumerate(sorted(expected)):
        np.testing.assert_allclose(index.vectors_of(position), unit(expected[track_id]), atol=1e-3)
    assert index.manifest.num_vectors == sum(len(features) for features in expected.values())


@pytest.mark.parametrize("resolution", ["global", "0.5hz", "16hz"])
@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_index_holds_what_the_published_snapshot_holds(known: KnownStore, resolution: str, kind: str) -> None:
    known.run(CATALOG)
    manifest = build_index(known.location, IndexSettings(resolution, kind=kind))
    index = VectorIndex.open(known.location, resolution)
    assert index.manifest == manifest
    assert (manifest.kind, manifest.recipe, manifest.embed_dim) == (kind, RECIPE, 5)
    check_holds(index, known)
    title = index.tracks.column("title").to_pylist()[3]
    assert title == "TRACK03"


def test_what_is_committed_and_not_published_is_left_out(known: KnownStore) -> None:
    known.run(CATALOG)
    before = {name: dict(tracks) for name, tracks in known.features.items()}
    known.run({**CATALOG, "new": "of a run that did not close"}, close=False)
    build_index(known.location, IndexSettings())
    ids = VectorIndex.open(known.location).tracks.column("track_id").to_pylist()
    assert ids == sorted(before[RECIPE, "global"])


def test_the_same_call_on_the_same_snapshot_writes_nothing(known: KnownStore) -> None:
    known.run(CATALOG)
    first = build_index(known.location, IndexSettings())
    assert build_index(known.location, IndexSettings()) == first
    assert build_index(known.location, IndexSettings(rebuild=True)).version == 2


def test_another_kind_is_built_when_it_is_asked_for(known: KnownStore) -> None:
    known.run(CATALOG)
    build_index(known.location, IndexSettings())
    manifest = build_index(known.location, IndexSettings(kind="ivf"))
    assert (manifest.kind, manifest.version) == ("ivf", 2)
    assert manifest.sizes["memory_bytes"] > 0


def test_the_report_is_measured_against_exact_search(known: KnownStore) -> None:
    known.run(CATALOG)
    for kind in ("exact", "ivf"):
        quality = build_index(known.location, IndexSettings("16hz", kind=kind)).quality
        assert quality["recall_at_10"] >= 0.95
        assert 0 < quality["median_ms"] <= quality["p95_ms"]
        assert quality["num_queries"] >= 40


def test_a_poor_build_publishes_nothing_and_leaves_nothing(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.run(CATALOG)
    monkeypatch.setattr(index_build, "measure_quality", lambda *_: {"recall_at_10": 0.8})
    with pytest.raises(RunError, match=r"recall@10 0\.\d+, below the 0\.9"):
        build_index(known.location, IndexSettings("16hz", kind="ivf", min_recall=0.9))
    with pytest.raises(UsageError, match="no index"):
        VectorIndex.open(known.location, "16hz")
    folder = Path(known.location.url, "indexes", RECIPE, "16hz")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_poor_rebuild_leaves_the_old_index(known: KnownStore, monkeypatch: pytest.MonkeyPatch) -> None:
    known.run(CATALOG)
    first = build_index(known.location, IndexSettings("16hz", kind="ivf"))
    monkeypatch.setattr(index_build, "measure_quality", lambda *_: {"recall_at_10": 0.8})
    with pytest.raises(RunError, match="nothing was published"):
        build_index(known.location, IndexSettings("16hz", kind="ivf", min_recall=0.9, rebuild=True))
    index = VectorIndex.open(known.location, "16hz")
    assert index.manifest == first
    check_holds(index, known)


def test_a_store_without_tracks_is_refused(known: KnownStore) -> None:
    known.run({})
    with pytest.raises(UsageError, match=r"recipes of the store.*\(none\)"):
        build_index(known.location, IndexSettings())


@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_an_index_of_which_nothing_is_left_is_removed(known: KnownStore, recipe: str | None) -> None:
    known.run(CATALOG)
    for resolution in ("global", "16hz"):
        build_index(known.location, IndexSettings(resolution))
    known.run({}, prune=True)
    with pytest.raises(UsageError, match=f"The index of recipe {RECIPE} that was made before is removed"):
        build_index(known.location, IndexSettings(recipe=recipe))
    assert [location.resolution for location in list_indexes(known.location)] == ["16hz"]
    assert not list(Path(known.location.url).glob("indexes/*/global/*/*"))
    with pytest.raises(UsageError, match="no index for resolution global"):
        VectorIndex.open(known.location)
    known.run(CATALOG)
    assert build_index(known.location, IndexSettings()).num_tracks == len(CATALOG)


def test_a_mistaken_name_costs_no_index(known: KnownStore) -> None:
    known.run(CATALOG)
    build_index(known.location, IndexSettings())
    with pytest.raises(UsageError, match="found other"):
        build_index(known.location, IndexSettings(recipe="other"))
    assert VectorIndex.open(known.location).tracks.num_rows == len(CATALOG)


def test_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no feature store"):
        build_index(StoreLocation(str(tmp_path / "nothing")), IndexSettings())


def test_a_store_without_the_resolution_says_what_it_has(known: KnownStore) -> None:
    known.run(CATALOG, resolutions=("16hz", "0.5hz"))
    with pytest.raises(UsageError, match=r"resolution global.*found 0\.5hz, 16hz.*--resolutions"):
        build_index(known.location, IndexSettings())


def test_of_two_recipes_one_has_to_be_named(known: KnownStore) -> None:
    known.run(CATALOG, recipes=[make_recipe(4), make_recipe(7)])
    with pytest.raises(UsageError, match="no recipe named"):
        build_index(known.location, IndexSettings())
    assert build_index(known.location, IndexSettings(recipe=make_recipe(4).recipe_id)).num_tracks == 20
    assert build_index(known.location, IndexSettings(recipe=RECIPE)).num_tracks == 20
    with pytest.raises(UsageError, match="name one with --recipe"):
        VectorIndex.open(known.location)


class Killed(BaseException):
    """What a killed process looks like from within: nothing catches it."""


@pytest.mark.parametrize("call", range(4))
def test_a_build_killed_between_any_two_files_leaves_the_old_index(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    known.run(CATALOG)
    build_index(known.location, IndexSettings(kind="ivf"))
    known.run({**CATALOG, "new": "new content"})
    old = VectorIndex.open(known.location)
    calls = 0

    def count(function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > call:
                raise Killed
            return function(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        for name in ("pipeline.index.segments.upload_file", "pipeline.index.draft.upload_file"):
            patch.setattr(name, count(upload_file))
        patch.setattr("pipeline.index.build.publish", count(publish))
        with pytest.raises(Killed):
            build_index(known.location, IndexSettings(kind="ivf", rebuild=call % 2 == 0))
    opened = VectorIndex.open(known.location)
    assert opened.manifest == old.manifest
    assert opened.search(old.vectors_of(3), 1)[1].tolist() == [[old.rows_of(3)[0]]]
    assert build_index(known.location, IndexSettings(kind="ivf")).version == 2
    check_holds(VectorIndex.open(known.location), known)


def test_a_builder_that_was_overtaken_says_so_and_the_newer_index_stays(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.run(CATALOG)
    reached, overtaken = threading.Event(), threading.Event()
    measure = index_quality.measure_quality

    def wait_once(*args: Any) -> Any:
        if threading.current_thread().name == "slow":
            reached.set()
            assert overtaken.wait(30)
        return measure(*args)

    monkeypatch.setattr(index_build, "measure_quality", wait_once)
    errors: list[Exception] = []

    def build_slowly() -> None:
        try:
            build_index(known.location, IndexSettings())
        except RunError as error:
            errors.append(error)

    slow = threading.Thread(target=build_slowly, name="slow")
    slow.start()
    assert reached.wait(30)
    known.run({**CATALOG, "new": "new content"})
    newer = build_index(known.location, IndexSettings())
    overtaken.set()
    slow.join()
    assert "another build published" in str(errors[0])
    index = VectorIndex.open(known.location)
    assert index.manifest == newer
    check_holds(index, known)
    assert list_versions(index.location) == [1]


@pytest.mark.parametrize("rebuild", [False, True])
def test_an_index_never_goes_back_to_an_older_snapshot(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch, rebuild: bool
) -> None:
    known.run(CATALOG)
    old = open_source(known.location, "global")
    known.run({**CATALOG, "new": "new content"})
    newer = build_index(known.location, IndexSettings())
    monkeypatch.setattr(index_build, "open_source", lambda *_: old)
    with pytest.raises(RunError, match="another build was faster"):
        build_index(known.location, IndexSettings(rebuild=rebuild))
    assert VectorIndex.open(known.location).manifest == newer


@pytest.mark.parametrize("what", ["manifest", "segment"])
def test_a_damaged_index_is_mended_by_a_rebuild(known: KnownStore, what: str) -> None:
    known.run(CATALOG)
    first = build_index(known.location, IndexSettings())
    index = VectorIndex.open(known.location)
    damaged = {
        "manifest": index.location.version_url(1),
        "segment": index.location.file_url(first.segments[0].name),
    }[what]
    Path(damaged).write_bytes(b"damaged")
    known.run({**CATALOG, "new": "new content"})
    with pytest.raises(StorageError, match="rebuild"):
        build_index(known.location, IndexSettings())
    assert build_index(known.location, IndexSettings(rebuild=True)).version == 2
    check_holds(VectorIndex.open(known.location), known)


def test_the_index_needs_nothing_of_the_store(known: KnownStore) -> None:
    known.run(CATALOG)
    build_index(known.location, IndexSettings("0.5hz"))
    for table in ("tracks", "frames", "failures", "recipes"):
        for path in sorted(Path(known.location.table_url(table)).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    check_holds(VectorIndex.open(known.location, "0.5hz"), known)


def test_the_map_is_the_plane_of_most_variance(known: KnownStore) -> None:
    known.run(CATALOG)
    build_index(known.location, IndexSettings("16hz"))
    index = VectorIndex.open(known.location, "16hz")
    rows = index.vectors_at(np.arange(index.num_rows))
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred)
    means = np.array([centred[index.rows_of(position)].mean(axis=0) for position in range(20)])
    for name, axis in (("map_x", axes[0]), ("map_y", axes[1])):
        found = index.tracks.column(name).to_numpy()
        expected = means @ axis
        np.testing.assert_allclose(found, expected * np.sign(found @ expected), atol=1e-3)


def test_on_an_object_store_it_is_the_same(s3_server: S3Server, tmp_path: Path) -> None:
    store = StoreLocation(f"s3://{STORE_BUCKET}/index-{tmp_path.name}", s3_server.options(STORE))
    known = KnownStore(store)
    known.run(CATALOG)
    first = build_index(store, IndexSettings(kind="ivf", cache=str(tmp_path / "builder")))
    searcher = VectorIndex.open(store, cache=str(tmp_path / "searcher"))
    check_holds(searcher, known)
    known.run({**dict(list(CATALOG.items())[2:]), "new": "new content"}, prune=True)
    second = build_index(store, IndexSettings(kind="ivf", cache=str(tmp_path / "builder")))
    assert second.training["num_changed"] == 3
    assert len(second.segments) == len(first.segments) + 1
    newer = searcher.open_newer()
    assert newer is not None
    check_holds(newer, known)
    check_holds_no_more = set(newer.tracks.column("track_id").to_pylist()) & {"track00", "track01"}
    assert not check_holds_no_more
    np.testing.assert_allclose(
        searcher.vectors_of(0), unit(make_features("content 0", RECIPE, "global")), atol=1e-3
    )
    assert list((tmp_path / "builder").glob("building-*")) == []


def test_zero_vectors_and_copies_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tests.indexes import make_index

    caplog.set_level(logging.WARNING)
    same = np.ones((1, 8), np.float32)
    index = make_index(tmp_path, [same, np.zeros((1, 8), np.float32), same, same])
    scores, rows = index.search(same, 4)
    assert set(rows[0, :3].tolist()) == {0, 2, 3}
    np.testing.assert_allclose(scores, [[1, 1, 1, 0]], atol=1e-6)
    assert index_quality.measure_quality(index, 10)["recall_at_10"] == 1.0
    assert isinstance(index.tracks, pa.Table)


def test_another_target_of_recall_makes_another_index_of_the_same_snapshot(known: KnownStore) -> None:
    known.run(CATALOG)
    first = build_index(known.location, IndexSettings("16hz", kind="ivf"))
    assert build_index(known.location, IndexSettings("16hz", kind="ivf")) == first
    second = build_index(known.location, IndexSettings("16hz", kind="ivf", target_recall=0.8))
    assert (second.version, second.parameters["target_recall"]) == (first.version + 1, 0.8)


def test_an_index_that_is_not_good_enough_is_built_anew(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.run(CATALOG)
    measure = index_quality.measure_quality
    with monkeypatch.context() as patched:
        patched.setattr(index_build, "measure_quality", lambda *given: {**measure(*given), "recall_at_10": 0.5})
        poor = build_index(known.location, IndexSettings("16hz", kind="ivf"))
    assert poor.quality["recall_at_10"] == 0.5
    better = build_index(known.location, IndexSettings("16hz", kind="ivf", min_recall=0.9))
    assert better.version == poor.version + 1
    assert better.quality["recall_at_10"] >= 0.9
