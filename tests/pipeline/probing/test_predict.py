from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipeline.errors import HeadError, RunError, UsageError
from pipeline.probing import predict as module
from pipeline.probing.heads import Head
from pipeline.probing.predict import predict
from pipeline.store import prediction_writer
from pipeline.store.prediction_writer import PredictionWriter, merge_predictions, remove_predictions
from pipeline.store.predictions import PREDICTIONS, read_predictions, read_scores
from pipeline.store.takedown import take_down
from pipeline.store.writer import StoreWriter
from tests.pipeline.probing.cases import RECIPE, expect_scores, make_head, make_store
from tests.stores import BAD, KnownStore


def read_rows(known: KnownStore) -> list[dict[str, Any]]:
    table = DeltaTable(known.location.table_url("predictions"))
    rows: list[dict[str, Any]] = pa.table(table.scan(PREDICTIONS.names)).to_pylist()
    return rows


def check_rows(known: KnownStore, head: Head, missing: tuple[str, ...] = ()) -> None:
    """Hold the table against scores computed by NumPy: each track and label once, of its present content."""
    wanted: dict[tuple[str, str], tuple[str, Any]] = {}
    for track_id, content in known.contents[RECIPE].items():
        if track_id not in missing:
            scores = expect_scores(head, known, track_id)
            wanted |= {
                (track_id, label): (content, pytest.approx(score, abs=1e-5))
                for label, score in zip(head.spec.labels, scores, strict=True)
            }
    rows = [row for row in read_rows(known) if row["head"] == head.head_id]
    assert len(rows) == len(wanted)
    assert {(row["track_id"], row["label"]): (row["content_hash"], row["score"]) for row in rows} == wanted
    assert {(row["task"], row["recipe"]) for row in rows} == {(head.spec.task, RECIPE)}


def test_new_changed_and_departed_tracks_alone_are_touched(tmp_path: Path) -> None:
    known, head = make_store(tmp_path, 12), make_head()
    first = predict(known.location, head)
    assert (first.predicted, first.unchanged, first.deleted, first.num_rows) == (12, 0, 0, 24)
    check_rows(known, head)
    contents = dict(known.contents[RECIPE])
    contents |= {"track 003": "other content", "new": "new content"}
    del contents["track 005"]
    known.run(contents, resolutions=("global",), prune=True)
    second = predict(known.location, head)
    assert (second.predicted, second.unchanged, second.deleted) == (2, 10, 1)
    check_rows(known, head)
    third = predict(known.location, head)
    assert (third.predicted, third.unchanged, third.deleted, third.num_rows) == (0, 12, 0, 0)
    assert third.table_version == second.table_version


def test_another_head_is_another_partition(tmp_path: Path) -> None:
    known, head, other = make_store(tmp_path, 5), make_head(), make_head(bias=1.0)
    predict(known.location, head)
    assert predict(known.location, other).predicted == 5
    check_rows(known, head)
    check_rows(known, other)
    table = DeltaTable(known.location.table_url("predictions"))
    assert {partition["head"] for partition in table.partitions()} == {head.head_id, other.head_id}


@pytest.mark.parametrize("num_commits", [0, 1, 2])
def test_a_killed_run_goes_on_where_it_was(
    num_commits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, head = make_store(tmp_path, 10), make_head()
    add = PredictionWriter.add
    seen: list[pa.Table] = []

    def add_and_die(self: PredictionWriter, rows: pa.Table) -> None:
        if len(seen) == num_commits:
            self._write(rows, head.head_id)  # a file that no commit names
            raise KeyboardInterrupt
        seen.append(rows)
        add(self, rows)

    monkeypatch.setattr(PredictionWriter, "add", add_and_die)
    with pytest.raises(KeyboardInterrupt):
        predict(known.location, head, tracks_per_commit=3)
    monkeypatch.undo()
    report = predict(known.location, head, tracks_per_commit=3)
    assert (report.predicted, report.unchanged) == (10 - 3 * num_commits, 3 * num_commits)
    check_rows(known, head)


def test_of_two_runs_of_a_head_the_slower_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, head = make_store(tmp_path, 4), make_head()
    held = PredictionWriter.read_held
    nested: list[bool] = []

    def read_and_be_overtaken(self: PredictionWriter) -> dict[str, str]:
        found = held(self)
        if not nested:
            nested.append(True)
            predict(known.location, head)
        return found

    monkeypatch.setattr(PredictionWriter, "read_held", read_and_be_overtaken)
    with pytest.raises(RunError, match="run the same command again"):
        predict(known.location, head)
    check_rows(known, head)


def test_what_is_taken_down_is_gone_at_once(tmp_path: Path) -> None:
    known, head = make_store(tmp_path, 6), make_head()
    predict(known.location, head)
    take_down(StoreWriter(known.location, "delete"), ["track 001"])
    report = predict(known.location, head)
    assert (report.predicted, report.unchanged, report.deleted) == (0, 5, 1)
    check_rows(known, head, missing=("track 001",))


def test_small_files_of_each_head_become_one_and_no_row_changes(tmp_path: Path) -> None:
    known, heads = make_store(tmp_path, 12), (make_head(), make_head(bias=1.0))
    for head in heads:
        predict(known.location, head, tracks_per_commit=3)
    before = sorted(map(repr, read_rows(known)))
    assert merge_predictions(known.location) == 8
    assert sorted(map(repr, read_rows(known))) == before
    paths = DeltaTable(known.location.table_url("predictions")).file_uris()
    assert sorted(path.split("/")[-2] for path in paths) == sorted(f"head={head.head_id}" for head in heads)
    assert merge_predictions(known.location) == 0  # nothing is left to merge, and nothing is written
    assert [predict(known.location, head).predicted for head in heads] == [0, 0]
    assert take_out(known, heads[0]) == 2
    check_rows(known, heads[1], missing=("track 004",))


def take_out(known: KnownStore, head: Head) -> int:
    """Take a track out of all heads' predictions; return how many rows of one head were its."""
    num_rows: int = sum(row["head"] == head.head_id and row["track_id"] == "track 004" for row in read_rows(known))
    assert remove_predictions(known.location, ["track 004"]) == 2 * num_rows
    return num_rows


def test_files_are_merged_up_to_a_size_and_a_store_without_predictions_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, head = make_store(tmp_path, 12), make_head()
    assert merge_predictions(known.location) == 0
    assert not (tmp_path / "predictions").exists()
    predict(known.location, head, tracks_per_commit=2)
    size_bytes = max(path.stat().st_size for path in tmp_path.rglob("predictions/head=*/*.parquet"))
    monkeypatch.setattr(prediction_writer, "TARGET_FILE_BYTES", 2 * size_bytes + 2)
    assert merge_predictions(known.location) == 6
    assert len(DeltaTable(known.location.table_url("predictions")).file_uris()) in (2, 3)
    check_rows(known, head)


def test_spans_beats_and_silence_have_rows(tmp_path: Path) -> None:
    known = make_store(tmp_path, 8, ("16hz", "8hz"))
    chords = make_head("chord", [f"label {number}" for number in range(4)], "16hz")
    predict(known.location, chords)
    spans = Counter(row["track_id"] for row in read_rows(known))
    assert set(spans) == set(known.contents[RECIPE])
    for track_id in spans:
        rows = sorted(read_predictions(known.location, track_id).to_pylist(), key=lambda row: row["start_s"])
        num_frames = len(known.features[RECIPE, "16hz"][track_id])
        assert rows[0]["start_s"] == 0.0
        assert rows[-1]["end_s"] == pytest.approx(num_frames / 16, abs=1e-3)
        assert all(row["end_s"] == after["start_s"] for row, after in pairwise(rows))
    # A head that hears no beat at all has looked at every track, and is not asked again.
    deaf = make_head("beat", ["beat", "downbeat"], "8hz", bias=-1e4)
    assert predict(known.location, deaf).predicted == 8
    assert predict(known.location, deaf).predicted == 0
    rows = [row for row in read_rows(known) if row["head"] == deaf.head_id]
    assert [row["label"] for row in rows] == [None] * 8
    assert all(row["task"] == "chord" for row in read_predictions(known.location, "track 001").to_pylist())


def test_scores_are_those_of_the_last_head_that_knows_the_label(tmp_path: Path) -> None:
    known, head = make_store(tmp_path, 4), make_head()
    with pytest.raises(UsageError, match="musicfm predict"):
        read_scores(known.location, "it's rock")
    predict(known.location, head)
    other = make_head(labels=("it's rock", "x"), bias=2.0)
    predict(known.location, other)
    rows = read_scores(known.location, "it's rock").to_pylist()
    wanted = {name: expect_scores(other, known, name)[0] for name in known.contents[RECIPE]}
    assert {row["track_id"]: row["score"] for row in rows} == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(UsageError, match="found 'jazz'"):
        read_scores(known.location, "jazz")


def test_features_of_another_kind_are_refused(tmp_path: Path) -> None:
    known = make_store(tmp_path, 4)
    with pytest.raises(UsageError, match="resolution 8hz"):
        predict(known.location, make_head(resolution="8hz"))
    head = make_head()
    strange = Head(type(head.spec)(**{**vars(head.spec), "recipes": ("elsewhere",)}))
    with pytest.raises(UsageError, match="found elsewhere"):
        predict(known.location, strange)
    assert issubclass(HeadError, UsageError)


def test_tracks_that_could_not_be_embedded_are_none(tmp_path: Path) -> None:
    known, head = make_store(tmp_path, 4), make_head()
    known.run({**known.contents[RECIPE], "broken": BAD}, resolutions=("global",))
    assert predict(known.location, head).predicted == 4


def test_batches_are_cut_by_rows_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "ROWS_PER_COMMIT", 4)
    known, head = make_store(tmp_path, 5), make_head()
    predict(known.location, head)
    commits = DeltaTable(known.location.table_url("predictions")).history()
    assert [commit.get("event") for commit in commits].count("predict") == 3
    check_rows(known, head)
    assert np.isfinite([row["score"] for row in read_rows(known)]).all()
