from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import UsageError
from pipeline.index import statistics
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.space import Distance
from pipeline.index.statistics import MIN_TRACKS, choose_distance, fit_space, sample_tracks
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.store.snapshot import NoVectorsError
from pipeline.store.source import open_source
from tests.stores import KnownStore, make_recipe

RECIPE = make_recipe().recipe_id


def name_tracks(number: int) -> dict[str, str]:
    return {f"track{position:03d}": f"content {position}" for position in range(number)}


def make_store(folder: Path, num_tracks: int, resolutions: tuple[str, ...] = ("0.5hz", "global")) -> KnownStore:
    known = KnownStore(StoreLocation(str(folder / "store")))
    known.run(name_tracks(num_tracks), resolutions=resolutions, tracks_per_part=10)
    return known


def unit(vectors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(vectors, np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownStore:
    return make_store(tmp_path_factory.mktemp("statistics"), 60)


@pytest.mark.parametrize(
    ("num_tracks", "resolutions", "expected"),
    [
        (MIN_TRACKS, ("0.5hz", "global"), "within-track"),
        (MIN_TRACKS - 1, ("0.5hz", "global"), "plain"),
        (MIN_TRACKS, ("global",), "plain"),
    ],
)
def test_the_default_asks_for_enough_tracks_with_moments(
    tmp_path: Path, num_tracks: int, resolutions: tuple[str, ...], expected: str
) -> None:
    store = make_store(tmp_path, num_tracks, resolutions).location
    assert choose_distance(open_source(store, "global")) == expected
    assert build_index(store, IndexSettings()).distance == expected


def test_an_index_of_moments_compares_them_as_they_are(known: KnownStore) -> None:
    source = open_source(known.location, "0.5hz")
    assert choose_distance(source) == "plain"
    with pytest.raises(UsageError, match="expected distance plain"):
        fit_space("centred", source)


def test_a_statistic_that_stands_is_not_looked_up_again(
    known: KnownStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(known.location, "global")
    monkeypatch.setattr(statistics, "open_source", None)
    assert choose_distance(source, "within-track") == "within-track"


def test_without_moments_their_covariance_cannot_be_had(tmp_path: Path) -> None:
    source = open_source(make_store(tmp_path, 5, ("global",)).location, "global")
    with pytest.raises(NoVectorsError, match=r"--resolutions 0\.5hz"):
        fit_space("within-track", source)


def test_within_track_directions_are_those_of_the_moments(known: KnownStore) -> None:
    space = fit_space("within-track", open_source(known.location, "global"))
    assert space is not None
    vectors = unit(np.concatenate(list(known.features[RECIPE, "global"].values())))
    np.testing.assert_allclose(space.mean, vectors.mean(axis=0), atol=1e-5)
    moments = [unit(frames) for frames in known.features[RECIPE, "0.5hz"].values()]
    deviations = np.concatenate([frames - frames.mean(axis=0) for frames in moments])
    covariance = deviations.T @ deviations / len(deviations)
    # Shrinking turns no direction: the space's own covariance has the sample's axes.
    own = np.linalg.inv(space.projection.astype(np.float64) @ space.projection.T)
    share = 1 - (own - np.diag(np.diag(own)))[0, 1] / covariance[0, 1]
    expected = (1 - share) * covariance + share * np.trace(covariance) / 5 * np.eye(5)
    assert 0 < share < 1
    np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("distance", ["centred", "whitened", "within-track"])
@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_scores_are_cosines_in_the_space(known: KnownStore, distance: Distance, kind: str) -> None:
    build_index(known.location, IndexSettings(kind=kind, distance=distance))
    index = VectorIndex.open(known.location)
    assert index.manifest.distance == distance
    assert index.space is not None
    ids = index.tracks.column("track_id").to_pylist()
    raw = unit(np.concatenate([known.features[RECIPE, "global"][name] for name in ids]))
    placed = unit((raw - index.space.mean) @ index.space.projection)
    for position in (0, 31, 59):
        np.testing.assert_allclose(index.vectors_of(position)[0], placed[position], atol=1e-3)
        scores, rows = index.search(index.place(9 * raw[position : position + 1].astype(np.float32)), 60)
        cosines = placed @ placed[position]
        np.testing.assert_allclose(scores[0], np.sort(cosines)[::-1], atol=2e-3)
        np.testing.assert_allclose(cosines[index.track_of(rows[0])], scores[0], atol=2e-3)


def test_the_space_is_kept_while_the_index_follows(tmp_path: Path) -> None:
    known = make_store(tmp_path, 80)
    first = build_index(known.location, IndexSettings())
    known.run(name_tracks(80) | {"new": "new content"}, resolutions=("0.5hz", "global"))
    second = build_index(known.location, IndexSettings())
    assert second.segments[:-1] == first.segments
    assert (second.distance, second.files["space"]) == ("within-track", first.files["space"])
    index = VectorIndex.open(known.location)
    new = index.place(known.features[RECIPE, "global"]["new"])
    np.testing.assert_allclose(index.vectors_of(index.find_track("new")), new, atol=1e-3)
    third = build_index(known.location, IndexSettings(distance="plain"))
    assert (third.distance, "space" in third.files, third.num_tracks) == ("plain", False, 81)


def test_fewer_vectors_than_dimensions_make_an_index(tmp_path: Path) -> None:
    known = make_store(tmp_path, 3)
    for distance in ("centred", "whitened", "within-track"):
        build_index(known.location, IndexSettings(distance=distance))
        index = VectorIndex.open(known.location)
        scores, rows = index.search(index.vectors_of(1), 3)
        assert index.track_of(rows[0])[0] == 1
        assert np.isfinite(scores).all()


def test_a_sample_takes_all_of_few_and_some_of_many(known: KnownStore) -> None:
    source = open_source(known.location, "0.5hz")
    frames = known.features[RECIPE, "0.5hz"]
    everything = dict(sample_tracks(source, 1000, 1000))
    assert everything.keys() == frames.keys()
    for name, vectors in everything.items():
        np.testing.assert_allclose(vectors, unit(frames[name]), atol=1e-6)
    some = dict(sample_tracks(source, 20, 2))
    assert 5 < len(some) < 40
    assert max(len(vectors) for vectors in some.values()) <= 2
