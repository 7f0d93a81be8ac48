from pathlib import Path

import pytest

pytest.importorskip("mir_eval", reason="mir_eval is not installed: pip install '.[probe]'")

from pipeline.probing.decoding import Prediction
from pipeline.probing.predict import build_rows, predict
from pipeline.report.predictions import MAX_LABELS, describe_predictions, draw_predictions
from pipeline.store.prediction_writer import PredictionWriter
from tests.pipeline.probing.cases import expect_scores, make_head, make_store


def test_amounts_are_sums_of_what_the_heads_say(tmp_path: Path) -> None:
    known, head = make_store(tmp_path, 12), make_head()
    assert describe_predictions(known.location) == []
    predict(known.location, head, tracks_per_commit=5)
    (described,) = describe_predictions(known.location)
    scores = [expect_scores(head, known, f"track {number:03}") for number in range(12)]
    expected = dict(zip(head.spec.labels, map(sum, zip(*scores, strict=True)), strict=True))
    assert dict(described["labels"]) == pytest.approx(expected, rel=1e-5)
    assert (described["head"], described["task"], described["num_tracks"]) == (head.head_id, "tagging", 12)


def test_what_has_a_time_is_told_by_its_length_beats_by_their_number_and_numbers_by_their_mean(
    tmp_path: Path,
) -> None:
    known = make_store(tmp_path, 2)
    predictions = {
        "chord": Prediction(
            spans=((0.0, 2.0, "C:maj"), (2.0, 7.0, "N"), (7.0, 8.0, "C:maj")), span_scores=(1.0,) * 3
        ),
        "beat": Prediction(beats=((0.5, 1), (1.0, 0), (1.5, 0)), beat_scores=(1.0,) * 3),
        "regression": Prediction((120.0,)),
    }
    for task, prediction in predictions.items():
        head = make_head(task, ("value",) if task == "regression" else ("a", "b"))
        told = [(f"track {number:03}", prediction) for number in range(2)]
        contents = {track_id: "content" for track_id, _ in told}
        PredictionWriter(known.location, head.head_id).add(build_rows(head, told, contents))
    described = {head["task"]: head for head in describe_predictions(known.location)}
    assert described["chord"]["labels"] == [["N", 10.0], ["C:maj", 6.0]]
    assert described["beat"]["labels"] == [["beat", 4.0], ["downbeat", 2.0]]
    assert described["regression"]["labels"] == [["value", 120.0]]
    assert described["regression"]["num_tracks"] == 2


def test_the_page_escapes_labels_and_names_the_most_frequent(tmp_path: Path) -> None:
    known = make_store(tmp_path, 3)
    head = make_head(labels=("<script>", *(f"tag {number}" for number in range(20))), bias=5.0)
    predict(known.location, head)
    described = describe_predictions(known.location)
    assert (len(described[0]["labels"]), described[0]["num_labels"]) == (MAX_LABELS, 21)
    page = draw_predictions([{**described[0], "labels": [["<script>", 3.0]]}])
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "20 labels more" in page
    assert draw_predictions([]) == ""
