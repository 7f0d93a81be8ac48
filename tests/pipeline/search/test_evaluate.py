import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.search.evaluate import average_precision, evaluate_rankings, ndcg_at, recall_at
from pipeline.search.ground_truth import GroundTruth

IDS = [f"t{number}" for number in range(12)]
RANKINGS = st.permutations(IDS)
GRADES = st.dictionaries(st.sampled_from(IDS), st.floats(0.1, 5.0), min_size=1)


def make_truth(pairs: dict[str, dict[str, float]]) -> GroundTruth:
    return GroundTruth(list(pairs), lambda query_id: pairs[query_id])


def test_hand_computed_figures() -> None:
    # Found at ranks 1 and 4, a third one not at all.
    ranking, relevant = ["a", "x", "y", "b", "z"], {"a": 2.0, "b": 1.0, "c": 1.0}
    assert recall_at(ranking, relevant, 1) == pytest.approx(1 / 3)
    assert recall_at(ranking, relevant, 5) == pytest.approx(2 / 3)
    assert average_precision(ranking, relevant) == pytest.approx((1 / 1 + 2 / 4) / 3)
    gained = 2 / math.log2(2) + 1 / math.log2(5)
    best = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at(ranking, relevant, 5) == pytest.approx(gained / best)
    assert ndcg_at(ranking, relevant, 1) == 1.0


@given(RANKINGS, GRADES, st.integers(1, 15))
def test_figures_equal_those_of_naive_loops(ranking: list[str], grades: dict[str, float], k: int) -> None:
    found = 0
    for position in range(min(k, len(ranking))):
        if ranking[position] in grades:
            found += 1
    assert recall_at(ranking, grades, k) == pytest.approx(found / len(grades))

    precisions = []
    for track_id in grades:
        rank = ranking.index(track_id) + 1
        precisions.append(len([other for other in ranking[:rank] if other in grades]) / rank)
    assert average_precision(ranking, grades) == pytest.approx(sum(precisions) / len(grades))

    gain = best = 0.0
    order = sorted(grades, key=lambda track_id: -grades[track_id])
    for position in range(k):
        discount = math.log(2) / math.log(position + 2)
        gain += grades.get(ranking[position], 0) * discount if position < len(ranking) else 0
        best += grades[order[position]] * discount if position < len(order) else 0
    assert ndcg_at(ranking, grades, k) == pytest.approx(gain / best)


@given(GRADES)
def test_the_best_order_scores_one(grades: dict[str, float]) -> None:
    rest = [track_id for track_id in IDS if track_id not in grades]
    ranking = sorted(grades, key=lambda track_id: -grades[track_id]) + rest
    assert average_precision(ranking, grades) == pytest.approx(1)
    assert ndcg_at(ranking, grades, 5) == pytest.approx(1)
    assert recall_at(ranking, grades, len(grades)) == 1


def test_every_query_is_evaluated_or_counted_as_left_out() -> None:
    truth = make_truth(
        {
            "a": {"b": 1.0, "gone": 1.0},  # one of the two can be found
            "b": {"gone": 1.0},
            "c": {"c": 1.0},  # a query is no answer to itself
            "away": {"a": 1.0},
            "d": {"a": 1.0, "b": 0.0},  # a grade of 0 is not relevant
        }
    )
    asked: list[str] = []

    def rank(query_ids: Sequence[str]) -> list[list[str]]:
        asked.extend(query_ids)
        return [[other for other in ("a", "b", "c", "d") if other != query_id] for query_id in query_ids]

    report = evaluate_rankings(truth, ["a", "b", "c", "d"], rank, k_values=(1, 2), depth=3)
    assert asked == ["a", "d"]
    assert (report.num_queries, report.num_absent, report.num_without_relevant) == (2, 1, 2)
    assert report.num_relevant == 1.0
    assert report.recall == {1: 1.0, 2: 1.0}  # a finds b first, d finds a first
    assert report.mean_average_precision == 1.0


def test_a_limit_draws_the_same_queries_each_time() -> None:
    truth = make_truth({track_id: {IDS[0]: 1.0, IDS[1]: 1.0} for track_id in IDS})
    drawn: list[list[str]] = []
    for _ in range(2):
        asked: list[str] = []

        def rank(query_ids: Sequence[str], asked: list[str] = asked) -> list[list[str]]:
            asked.extend(query_ids)
            return [IDS for _ in query_ids]

        report = evaluate_rankings(truth, IDS, rank, max_queries=5)
        assert (report.num_queries, report.num_not_drawn) == (5, len(IDS) - 5)
        drawn.append(asked)
    assert drawn[0] == drawn[1]


def test_a_ground_truth_of_other_ids_is_a_mistake() -> None:
    truth = make_truth({"X1": {"X2": 1.0}})
    with pytest.raises(UsageError, match=r"of 1 queries 0 are in it"):
        evaluate_rankings(truth, IDS, lambda query_ids: [IDS for _ in query_ids])
