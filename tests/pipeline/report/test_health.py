import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from pipeline.report.health import draw_map, find_clusters, measure_drift, measure_health, summarise

RNG = np.random.default_rng(0)


@given(hnp.arrays(np.float64, st.integers(1, 80), elements=st.floats(-1e6, 1e6) | st.just(np.nan)))
def test_a_summary_counts_every_finite_value(values: np.ndarray) -> None:
    found, finite = summarise(values), values[np.isfinite(values)]
    if not len(finite):
        assert found is None
        return
    assert found is not None
    assert sum(found["counts"]) == found["number"] == len(finite)
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"][0] <= finite.min() <= finite.max() <= found["edges"][-1]
    assert found["median"] == pytest.approx(np.median(finite))


def test_dead_loud_and_broken_are_found() -> None:
    vectors = RNG.normal(size=(400, 24)).astype(np.float32)
    vectors[:, 3] = 0.5
    vectors[:, 7] *= 200
    vectors[5, 1] = np.nan
    found = measure_health(vectors)
    assert (found["num_vectors"], found["embed_dim"], found["num_non_finite"]) == (400, 24, 1)
    assert found["dead"] == [3]
    assert found["exploding"] == [7]
    sound = np.delete(vectors, 5, axis=0)
    assert found["norms"]["median"] == pytest.approx(np.median(np.sqrt((sound.astype(float) ** 2).sum(axis=1))))


def test_effective_dimensions_are_those_that_vary() -> None:
    basis = np.linalg.qr(RNG.normal(size=(32, 32)))[0][:4]
    vectors = (RNG.normal(size=(5000, 4)) @ basis + 3.0).astype(np.float32)
    assert measure_health(vectors)["effective_dimensions"] == pytest.approx(4, rel=0.02)


def test_copies_are_grouped_and_strangers_are_not() -> None:
    vectors = RNG.normal(size=(1200, 16)).astype(np.float32)  # over one block
    vectors[700] = 2 * vectors[10]  # a cosine knows no length
    vectors[900] = vectors[10]
    vectors[1100] = vectors[20] + 1e-4
    found = find_clusters(vectors)
    assert found["clusters"][0] == [10, 700, 900]
    assert [20, 1100] in found["clusters"]
    distances = cdist(vectors, vectors, "cosine")
    np.fill_diagonal(distances, 2.0)
    assert found["score"] == pytest.approx(1 - 0.25 * np.median(distances.min(axis=1)), abs=1e-5)
    near = distances <= 1 - found["score"]
    assert found["num_members"] == int(near.any(axis=1).sum())


def test_too_few_to_compare_are_no_clusters() -> None:
    assert find_clusters(np.ones((2, 4), np.float32))["num_clusters"] == 0


def test_of_a_large_catalog_the_last_tracks_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.health.MAX_COMPARED", 50)
    vectors = np.random.default_rng(0).standard_normal((99, 32)).astype(np.float32)
    vectors[98] = vectors[4] = vectors[0]
    found = find_clusters(vectors)
    assert (found["num_compared"], found["clusters"]) == (50, [[0, 4, 98]])


def test_drift_is_measured_in_standard_deviations() -> None:
    before = (RNG.normal(size=(3000, 8)) * 2.0 + 1.0).astype(np.float32)
    same = measure_drift((RNG.normal(size=(3000, 8)) * 2.0 + 1.0).astype(np.float32), before)
    assert same["num_moved"] == 0
    assert same["mean_shift"] == pytest.approx(same["expected_shift"], abs=0.02)
    now = before + np.array([0, 0, 0, 1.0, 0, 0, 0, -3.0], np.float32)
    moved = measure_drift(now, before)
    assert moved["num_moved"] == 2
    assert moved["max_shift"] == pytest.approx(1.5, rel=0.05)


def test_the_map_keeps_what_differs_most() -> None:
    groups = np.repeat([0, 1, 2], 50)
    centres = RNG.normal(size=(3, 40))
    vectors = (centres[groups] + 0.01 * RNG.normal(size=(150, 40))).astype(np.float32)
    points, share = draw_map(vectors)
    assert points.shape == (150, 2)
    assert share > 0.95
    apart = cdist(points, points)
    same = groups[:, None] == groups
    assert apart[same].max() < 0.2 * apart[~same].min()
