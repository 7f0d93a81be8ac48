from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from pipeline.location import StoreLocation
from pipeline.search.recognise import read_moments, recognise
from pipeline.store.read import FeatureStore
from tests.served import TRACKS, embed_here, make_catalog

EMBED_DIM = 32


def make_tracks(seed: int, num_tracks: int = 8, num_frames: int = 40) -> list[np.ndarray]:
    """Frames that share a direction, as a model's do, and wander about it."""
    random = np.random.default_rng(seed)
    shared = 10 * random.standard_normal(EMBED_DIM)
    steps = random.standard_normal((num_tracks, num_frames, EMBED_DIM))
    return [(shared + lfilter([1], [1, -0.8], own, axis=0)).astype(np.float32) for own in steps]


@given(seed=st.integers(0, 10_000), track=st.integers(0, 7), first=st.integers(0, 28))
@settings(max_examples=30, deadline=None)
def test_a_cut_is_recognised_where_it_was_cut_though_all_is_shifted(seed: int, track: int, first: int) -> None:
    tracks = make_tracks(seed)
    random = np.random.default_rng(seed + 1)
    shift = 2 * random.standard_normal(EMBED_DIM)
    heard = tracks[track][first : first + 12] + shift + 0.2 * random.standard_normal((12, EMBED_DIM))
    found = recognise(heard.astype(np.float32), tracks)[0]
    assert (found.track, found.first_frame, found.num_frames) == (track, first, 12)


def test_a_stranger_is_not_recognised() -> None:
    num_found = sum(bool(recognise(make_tracks(1000 + seed, 1, 12)[0], make_tracks(seed))) for seed in range(50))
    assert num_found <= 1


def test_copies_are_all_recognised() -> None:
    tracks = make_tracks(3)
    found = recognise(tracks[2][5:15], [*tracks, tracks[2] + np.float32(0.01)])
    assert {fit.track for fit in found} == {2, 8}


def test_moments_that_fit_by_chance_are_not_enough() -> None:
    random = np.random.default_rng(5)
    tracks = make_tracks(4)
    noisy = tracks[1][10:22] + 2.2 * random.standard_normal((12, EMBED_DIM)).astype(np.float32)
    found = recognise(noisy, tracks)
    assert found
    assert 0.3 <= found[0].score < 0.5
    assert found[0].track == 1
    assert not [fit for fit in recognise(noisy[:4], tracks) if fit.score < 0.5]


def test_nothing_to_compare_with_is_no_mistake() -> None:
    assert recognise(make_tracks(0)[0], []) == []
    assert recognise(make_tracks(0)[0], [np.empty((0, 0), np.float32)]) == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> FeatureStore:
    location = StoreLocation(str(tmp_path_factory.mktemp("recognise") / "store"))
    chosen = [track for track in TRACKS if track["track_id"] in ("crossroads", "mountain")]
    embed_here(location, make_catalog(chosen), tiny_checkpoint)
    return FeatureStore(location.url)


def test_moments_come_in_the_order_asked_for(store: FeatureStore) -> None:
    recipe = store.recipes().column("recipe")[0].as_py()
    ids, vectors = store.vectors("0.5hz")
    found = read_moments(store, ["mountain", "no-such-track", "crossroads"], recipe)
    for track_id, moments in zip(("mountain", "crossroads"), (found[0], found[2]), strict=True):
        assert np.array_equal(moments, vectors[np.array(ids.to_pylist()) == track_id])
    assert not len(found[1])
