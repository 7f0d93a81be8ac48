import numpy as np
import numpy.typing as npt
import pytest

from pipeline.index.space import Space, fit_centring, fit_whitening, fit_within_track, place_vectors

Matrix = npt.NDArray[np.float32]


def draw(num_vectors: int, num_dimensions: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((num_vectors, num_dimensions)).astype(np.float32)


def draw_stretched(num_vectors: int, seed: int = 0) -> Matrix:
    """Draw unit vectors of which three directions carry nearly all, around a common mean."""
    spread = np.geomspace(3, 0.1, 24).astype(np.float32)
    vectors = draw(num_vectors, 24, seed) * spread + 8
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_whitened_vectors_vary_equally_in_all_directions() -> None:
    vectors = draw_stretched(20_000)
    whitened = fit_whitening(vectors).apply(vectors)
    covariance = np.cov(whitened.T)
    assert np.abs(whitened.mean(axis=0)).max() < 0.02
    assert np.diag(covariance) == pytest.approx(np.ones(len(covariance)), rel=0.1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.02


def test_strangers_come_apart() -> None:
    vectors = draw_stretched(2000)
    cosines = vectors[:1000] @ vectors[1000:].T
    whitened = fit_whitening(vectors).apply(vectors)
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    assert np.median(cosines) > 0.9
    assert abs(np.median(whitened[:1000] @ whitened[1000:].T)) < 0.05


def test_few_vectors_are_hardly_trusted() -> None:
    few = draw_stretched(6)
    whitening = fit_whitening(few)
    lengths = np.linalg.norm(whitening.projection, axis=0)
    # A plain whitening of 6 vectors would blow up 19 directions without end.
    assert lengths.max() / lengths.min() < 10


def test_one_vector_alone_gives_a_space() -> None:
    one = draw_stretched(1)
    assert np.isfinite(fit_whitening(one).apply(one)).all()


def test_only_the_largest_directions_are_kept() -> None:
    vectors = draw_stretched(500)
    whitening = fit_whitening(vectors, max_dimensions=4)
    assert whitening.apply(vectors).shape == (500, 4)
    directions = whitening.projection / np.linalg.norm(whitening.projection, axis=0)
    kept = np.var((vectors - vectors.mean(0)) @ directions, axis=0).sum()
    assert kept > 0.7 * np.var(vectors, axis=0).sum()


@pytest.mark.parametrize("num_vectors", [3, 20, 400])
def test_a_covariance_is_shrunk_as_scikit_learn_does(num_vectors: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance", reason="scikit-learn is not installed")
    vectors = draw_stretched(num_vectors)
    projection = fit_whitening(vectors).projection.astype(np.float64)
    expected = covariance.LedoitWolf().fit(vectors.astype(np.float64)).covariance_
    np.testing.assert_allclose(np.linalg.inv(projection @ projection.T), expected, rtol=2e-3, atol=1e-6)


def test_a_centred_cosine_is_that_of_differences_from_the_mean() -> None:
    vectors = draw_stretched(50)
    changes = vectors.astype(np.float64) - vectors.mean(axis=0)
    changes /= np.linalg.norm(changes, axis=1, keepdims=True)
    np.testing.assert_allclose(fit_centring(vectors).place(7 * vectors), changes, atol=1e-4)


def test_what_moves_within_a_track_no_longer_tells_tracks_apart() -> None:
    # A track is a place in the first three directions, and its moments wander far in the other three.
    random = np.random.default_rng(0)
    tracks = np.concatenate([random.standard_normal((40, 3)), np.zeros((40, 3))], axis=1) + 30
    wander = np.array([0.01, 0.01, 0.01, 1, 1, 1])
    first, second = (tracks + random.standard_normal((40, 6)) * wander for _ in range(2))
    moments = tracks[:, None] + random.standard_normal((40, 300, 6)) * wander
    moments /= np.linalg.norm(moments, axis=2, keepdims=True)
    deviations = (moments - moments.mean(axis=1, keepdims=True)).reshape(-1, 6).astype(np.float32)
    space = fit_within_track(place_vectors(first.astype(np.float32), None).mean(axis=0), deviations)

    def recall(space: Space | None) -> float:
        queries, others = (place_vectors(part.astype(np.float32), space) for part in (first, second))
        return float((np.argmax(queries @ others.T, axis=1) == np.arange(40)).mean())

    assert recall(None) < 0.3
    assert recall(space) > 0.7


def test_a_space_is_written_and_read_as_it_is() -> None:
    space = fit_whitening(draw_stretched(100), max_dimensions=5)
    read = Space.from_array(space.to_array())
    vectors = draw_stretched(10, seed=1)
    assert read.projection.shape == (24, 5)
    np.testing.assert_array_equal(read.place(vectors), space.place(vectors))


@pytest.mark.parametrize("fit", [fit_centring, fit_whitening])
def test_tracks_that_are_all_alike_become_zero_and_not_nothing(fit: object) -> None:
    vectors = np.tile(draw_stretched(1), (60, 1))
    assert callable(fit)
    assert np.isfinite(fit(vectors).place(vectors)).all()
    still = fit_within_track(vectors[0], np.zeros((60, 24), np.float32))
    assert np.isfinite(still.place(draw_stretched(5))).all()
