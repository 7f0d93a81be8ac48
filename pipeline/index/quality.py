"""Know an index's quality: recall and latency against exact search, on rows of the store as held-out queries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np

from pipeline.index.codes import Matrix, Rows
from pipeline.index.vector_index import VectorIndex

K = 10
DEPTHS = (20, 30, 50, 75, 100, 150, 200, 300, 400)
PROBE_STEPS = 33  # from all lists down to a 256th of them
CODE_COST = 0.01  # of looking at a code, where fetching and scoring a row is 1: about 20 ns and 2 us
TUNING_MARGIN = 0.25  # of what the target leaves to 1: other queries differ
NUM_TIED = 20  # neighbours past the tenth that may be as near as it
TIE = 1e-5  # scores so near each other are equal: half precision tells them apart no further


def choose_queries(index: VectorIndex, number: int, seed: int) -> Rows:
    """Choose vector rows at random that tracks own."""
    rows = np.flatnonzero(index.live)
    return np.sort(np.random.default_rng(seed).choice(rows, min(number, len(rows)), replace=False))


def measure_quality(index: VectorIndex, num_queries: int, seed: int = 1) -> dict[str, Any]:
    """Measure recall@10 and latency of searches for rows of the index, each left out of its own results.

    A neighbour that is as near as the tenth exact one counts as found: copies of a recording tie.

    Args:
        index: The index.
        num_queries: How many rows to search for.
        seed: Which rows.

    Returns:
        recall_at_10 (1.0 where there is nothing to find), median_ms, p95_ms of one query on one thread,
        exact_median_ms, num_queries, k.
    """
    queries = choose_queries(index, num_queries, seed)
    vectors = index.vectors_at(queries)
    num_others = min(K, index.manifest.num_vectors - 1)
    if num_others <= 0:
        return {"recall_at_10": 1.0, "num_queries": 0, "k": K}
    truth, _ = leave_out(*index.search_exactly(vectors, K + 1), queries)
    with one_thread():
        index.search(vectors[:1], K + 1)  # pages the first query's lists in
        results, latency_ms = _search_one_by_one(index.search, vectors)
        _, exact_ms = _search_one_by_one(index.search_exactly, vectors[: max(1, num_queries // 8)])
    scores, _ = leave_out(*results, queries)
    hits = scores[:, :num_others] >= truth[:, num_others - 1 : num_others] - TIE
    return {
        "recall_at_10": round(float(hits.mean()), 4),
        "median_ms": round(float(np.median(latency_ms)), 3),
        "p95_ms": round(float(np.percentile(latency_ms, 95)), 3),
        "exact_median_ms": round(float(np.median(exact_ms)), 3),
        "num_queries": len(queries),
        "k": K,
    }


def tune(index: VectorIndex, target_recall: float, num_queries: int, seed: int = 0) -> dict[str, int]:
    """Choose how many lists a search looks through and how many candidates it scores.

    Of the pairs that reach a little more than the target on held-out queries, the one that costs least by
    counting: codes looked at and rows fetched. The measured report uses other queries.

    Args:
        index: An ``ivf`` index; its parameters name num_lists.
        target_recall: Wanted recall@10.
        num_queries: How many rows to search for.
        seed: Which rows.

    Returns:
        nprobe and depth; the most thorough pair where none reaches the target.
    """
    queries = choose_queries(index, num_queries, seed)
    vectors = index.vectors_at(queries)
    num_others = min(K, index.manifest.num_vectors - 1)
    num_lists = index.manifest.parameters["num_lists"]
    scores, rows = leave_out(*index.search_exactly(vectors, K + NUM_TIED + 1), queries)
    near = np.where(scores >= scores[:, num_others - 1 : num_others] - TIE, rows, -1)
    goal = target_recall + (1 - target_recall) * TUNING_MARGIN
    best_cost, best = np.inf, {"nprobe": num_lists, "depth": DEPTHS[-1]}
    for nprobe in sorted({max(1, round(num_lists * 2 ** (-step / 4))) for step in range(PROBE_STEPS)}):
        candidates = index.find_candidates(vectors, nprobe, DEPTHS[-1])
        is_hit = np.array(
            [
                np.isin(candidates_of_query, true[true >= 0])
                for candidates_of_query, true in zip(candidates, near, strict=True)
            ]
        )
        recalls = np.minimum(np.cumsum(is_hit, axis=1), num_others).mean(axis=0) / num_others
        enough = [depth for depth in DEPTHS if recalls[depth - 1] >= goal]
        scanned = index.manifest.num_vectors * nprobe / num_lists
        if scanned * CODE_COST >= best_cost:
            break
        if enough and scanned * CODE_COST + enough[0] < best_cost:
            best_cost, best = scanned * CODE_COST + enough[0], {"nprobe": nprobe, "depth": enough[0]}
    return best


def leave_out(scores: Matrix, rows: Rows, query_rows: Rows) -> tuple[Matrix, Rows]:
    """Take each query's own row out of its k + 1 results, or the last where it is not among them."""
    is_own = rows == query_rows[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    shape = (len(rows), rows.shape[1] - 1)
    return scores[~is_own].reshape(shape), rows[~is_own].reshape(shape)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let faiss use one thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _search_one_by_one(search: Any, vectors: Matrix) -> tuple[tuple[Matrix, Rows], list[float]]:
    results, latency_ms = [], []
    for vector in vectors:
        start_s = time.perf_counter()
        results.append(search(vector[None], K + 1))
        latency_ms.append((time.perf_counter() - start_s) * 1000)
    scores, rows = zip(*results, strict=True)
    return (np.concatenate(scores), np.concatenate(rows)), latency_ms
