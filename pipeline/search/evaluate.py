"""Evaluate: how well rankings of a catalog agree with what is known to be similar: recall, MAP, nDCG.

The definitions are those of ``trec_eval``, with linear gains: a relevant track that the ranking does not reach
counts as never found, so that figures at different depths can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UsageError
from pipeline.search.ground_truth import GroundTruth

Ranking = Sequence[str]
RankTracks = Callable[[Sequence[str]], list[list[str]]]

QUERIES_PER_BATCH = 256


@dataclass(frozen=True)
class RetrievalReport:
    """What an evaluation found.

    Args:
        num_queries: Queries that were evaluated.
        num_absent: Queries of the ground truth that the catalog does not hold.
        num_without_relevant: Queries that it holds, of which it holds no relevant track.
        num_not_drawn: Queries left out by the limit on their number.
        num_relevant: Relevant tracks of an evaluated query, on average.
        depth: Ranks looked at.
        recall: Mean share of the relevant tracks within the first k, by k.
        ndcg: Mean normalised discounted cumulative gain of the first k, by k.
        mean_average_precision: Over ``depth`` ranks.
    """

    num_queries: int
    num_absent: int
    num_without_relevant: int
    num_not_drawn: int
    num_relevant: float
    depth: int
    recall: dict[int, float]
    ndcg: dict[int, float]
    mean_average_precision: float


def recall_at(ranking: Ranking, relevant: Collection[str], k: int) -> float:
    """Return the share of the relevant tracks that stand within the first k."""
    return sum(track_id in relevant for track_id in ranking[:k]) / len(relevant)


def average_precision(ranking: Ranking, relevant: Collection[str]) -> float:
    """Return the mean, over all relevant tracks, of the precision at their ranks; 0 for those not found."""
    total, num_found = 0.0, 0
    for rank, track_id in enumerate(ranking, start=1):
        if track_id in relevant:
            num_found += 1
            total += num_found / rank
    return total / len(relevant)


def ndcg_at(ranking: Ranking, grades: Mapping[str, float], k: int) -> float:
    """Return the discounted gain of the first k over that of the best order (Järvelin and Kekäläinen, 2002).

    Args:
        ranking: Track ids, best first.
        grades: Grade of each relevant track, over 0; the gain is the grade itself.
        k: Ranks looked at; the one at rank r counts by 1 / log2(r + 1).
    """
    gain = discount_gains([grades.get(track_id, 0.0) for track_id in ranking[:k]])
    return gain / discount_gains(sorted(grades.values(), reverse=True)[:k])


def discount_gains(gains: Sequence[float]) -> float:
    """Return the discounted cumulative gain of gains in the order of their ranks."""
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def evaluate_rankings(
    truth: GroundTruth,
    catalog_ids: Sequence[str],
    rank_tracks: RankTracks,
    k_values: Sequence[int] = (1, 10, 100),
    depth: int = 1000,
    max_queries: int | None = None,
) -> RetrievalReport:
    """Score the rankings that a search gives against a ground truth.

    Only tracks of the catalog can be found, so only they count as relevant; a query is no answer to itself.

    Args:
        truth: What is relevant to what.
        catalog_ids: All tracks that can be found.
        rank_tracks: Gives, for each of some queries, ``depth`` track ids, best first, the query left out.
        k_values: Ranks at which recall and nDCG are taken.
        depth: Ranks that ``rank_tracks`` gives.
        max_queries: Draw so many queries at random (always the same ones); all by default.

    Raises:
        UsageError: No query can be evaluated.
    """
    catalog = set(catalog_ids)
    present = [query_id for query_id in truth.query_ids if query_id in catalog]
    order = np.random.default_rng(0).permutation(len(present)) if max_queries else np.arange(len(present))
    kept: list[tuple[str, dict[str, float]]] = []
    num_looked_at = 0
    for index in order:
        if max_queries is not None and len(kept) == max_queries:
            break
        num_looked_at += 1
        query_id = present[index]
        relevant = truth.find_relevant(query_id).items()
        grades = {
            other: grade for other, grade in relevant if grade > 0 and other in catalog and other != query_id
        }
        if grades:
            kept.append((query_id, grades))
    if not kept:
        raise UsageError(
            f"expected queries with relevant tracks in the catalog, found none: of {len(truth.query_ids)} queries "
            f"{len(present)} are in it; check that ground truth and catalog have the same kind of track ids"
        )
    figures = _score_queries(kept, rank_tracks, k_values)
    means = figures.mean(axis=0)
    return RetrievalReport(
        num_queries=len(kept),
        num_absent=len(truth.query_ids) - len(present),
        num_without_relevant=num_looked_at - len(kept),
        num_not_drawn=len(present) - num_looked_at,
        num_relevant=float(np.mean([len(grades) for _, grades in kept])),
        depth=depth,
        recall={k: float(means[1 + 2 * i]) for i, k in enumerate(k_values)},
        ndcg={k: float(means[2 + 2 * i]) for i, k in enumerate(k_values)},
        mean_average_precision=float(means[0]),
    )


def _score_queries(
    queries: Sequence[tuple[str, dict[str, float]]], rank_tracks: RankTracks, k_values: Sequence[int]
) -> np.ndarray:
    """Return one row a query: average precision, then recall and nDCG at each k."""
    rows = []
    for start in range(0, len(queries), QUERIES_PER_BATCH):
        batch = queries[start : start + QUERIES_PER_BATCH]
        rankings = rank_tracks([query_id for query_id, _ in batch])
        for ranking, (_, grades) in zip(rankings, batch, strict=True):
            row = [average_precision(ranking, grades)]
            for k in k_values:
                row += [recall_at(ranking, grades, k), ndcg_at(ranking, grades, k)]
            rows.append(row)
    return np.array(rows)
