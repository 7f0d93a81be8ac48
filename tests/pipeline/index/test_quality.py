from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.index.quality import K, choose_queries, leave_out, measure_quality, one_thread, tune
from tests.indexes import draw_tracks, make_index


def test_a_thorough_search_measures_one(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(300, 16))
    quality = measure_quality(index, 40)
    assert quality["recall_at_10"] == 1.0
    assert quality["num_queries"] == 40
    assert 0 < quality["median_ms"] <= quality["p95_ms"]


def test_recall_is_the_share_of_exact_neighbours_found(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(2000, 16), "ivf")
    index.manifest.parameters.update(nprobe=4, depth=30)
    queries = choose_queries(index, 60, 1)
    vectors = index.vectors_at(queries)
    everything = index.vectors_at(np.arange(2000))
    shares = []
    for own, vector in zip(queries, vectors, strict=True):
        scores = everything @ vector
        scores[own] = -2
        true = set(np.argsort(-scores)[:K].tolist())
        found = [row for row in index.search(vector[None], K + 1)[1][0].tolist() if row != own][:K]
        shares.append(len(true & set(found)) / K)
    assert 0.1 < np.mean(shares) < 0.95
    assert measure_quality(index, 60)["recall_at_10"] == pytest.approx(np.mean(shares), abs=0.01)


def test_tuning_reaches_the_target_on_other_queries_and_asks_no_more_than_it_must(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(4000, 24), "ivf")
    costs = []
    for target in (0.7, 0.95):
        index.manifest.parameters.update(tune(index, target, 200))
        assert measure_quality(index, 200, seed=5)["recall_at_10"] >= target - 0.02
        costs.append(index.manifest.parameters["nprobe"])
    assert costs[0] < costs[1]


def test_an_unreachable_target_gets_the_most_thorough_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.quality.DEPTHS", (1, 2))
    index = make_index(tmp_path, draw_tracks(500, 16), "ivf")
    assert tune(index, 0.95, 20) == {"nprobe": index.manifest.parameters["num_lists"], "depth": 2}


@pytest.mark.parametrize("num_tracks", [1, 2, 5])
def test_indexes_smaller_than_ten_are_measured_too(tmp_path: Path, num_tracks: int) -> None:
    assert measure_quality(make_index(tmp_path, draw_tracks(num_tracks)), 10)["recall_at_10"] == 1.0


def test_queries_are_living_rows(tmp_path: Path) -> None:
    index = make_index(tmp_path, draw_tracks(50), dead=range(10, 50))
    assert choose_queries(index, 100, 0).tolist() == list(range(10))
    assert len(choose_queries(index, 4, 0)) == 4


def test_a_query_is_left_out_of_its_results_wherever_it_stands() -> None:
    rows = np.array([[5, 1, 2], [1, 6, 2], [1, 2, 3]])
    scores = np.array([[3, 2, 1]] * 3, np.float32)
    left_scores, left_rows = leave_out(scores, rows, np.array([5, 6, 7]))
    assert left_rows.tolist() == [[1, 2], [1, 2], [1, 2]]
    assert left_scores.tolist() == [[2, 1], [3, 1], [3, 2]]


def test_threads_are_given_back() -> None:
    before = faiss.omp_get_max_threads()
    with one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before
