"""What the checks say, and that none is passed by what could not be tested."""

from typing import Any

import numpy as np
import pytest

from pipeline.report.health import find_clusters, measure_drift, measure_health
from pipeline.report.health_page import draw_health, judge


def describe(vectors: Any, drift: Any = None) -> dict[str, Any]:
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    facts = {"near_duplicates": find_clusters(finite), "drift": drift, "recipe": "r", "layer": 7}
    return {**measure_health(vectors), **facts}


def make_vectors(num_vectors: int) -> Any:
    return np.random.default_rng(3).normal(size=(num_vectors, 16)).astype(np.float32)


@pytest.mark.parametrize(("num_vectors", "num_tested"), [(0, 0), (1, 1), (2, 3), (3, 4), (40, 4)])
def test_only_what_was_tested_gets_its_tick(num_vectors: int, num_tested: int) -> None:
    verdicts = [is_good for is_good, _ in judge(describe(make_vectors(num_vectors)))]
    assert verdicts.count(True) == num_tested
    assert verdicts.count(False) == 0
    assert draw_health(describe(make_vectors(num_vectors))).count("✓") == num_tested


def test_drift_that_was_measured_gets_its_tick() -> None:
    vectors = make_vectors(60)
    measured = judge(describe(vectors, measure_drift(vectors[:30], vectors[30:])))[-1]
    assert measured[0] is True
    assert measured[1].startswith("Drift of 30 new vectors against 30 stored before")
    assert judge(describe(vectors, measure_drift(vectors[:30] + 9, vectors[30:])))[-1][0] is False


def test_one_is_told_in_the_singular() -> None:
    vectors = make_vectors(40)
    vectors[:, 3] = 0.5
    vectors[7, 1] = np.nan
    vectors[20] = vectors[21]
    said = [text for _, text in judge(describe(vectors))]
    assert "1 vector holds NaN or infinity" in said
    assert "1 dimension does not move: 3" in said
    assert any("2 of 39 tracks lie in 1 group of near-duplicates" in text for text in said)
