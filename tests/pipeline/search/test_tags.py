from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import search
from pipeline.errors import UsageError
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.vector_index import VectorIndex
from pipeline.probing.predict import predict
from pipeline.search.filters import filter_tracks
from pipeline.search.searcher import Searcher
from tests.pipeline.probing.cases import RECIPE, expect_scores, make_head, make_store

TRACKS = pa.table({"track_id": ["a", "b", "c"], "n": [1, 2, 3]})
SCORES = {"piano": [0.9, 0.2, None], 'it\'s "rock", é': [0.1, 0.6, 0.7]}


def read_tag(label: str) -> pa.Array:
    if label not in SCORES:
        raise UsageError(f"found {label!r}")
    return pa.array(SCORES[label], pa.float32())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("tag('piano') > 0.5", "a"),
        ("NOT tag('piano') > 0.5", "b"),  # what nobody has predicted is neither
        ("tag('piano') IS NULL AND n > 1", "c"),
        ("TAG('it''s \"rock\", é') > tag('piano') OR n = 3", "bc"),
        ("round(tag('piano') * 10) IN (2, 9) AND track_id LIKE '%a%'", "a"),
        ("tag('piano') BETWEEN 0 AND 1 AND tag('piano') < 0.5 -- a remark", "b"),
        ("track_id || 'tag(''x'')' = 'ctag(''x'')' /* tag('x') */ AND tag('piano') IS NULL", "c"),
        ("CASE WHEN tag('piano') > 0.5 THEN 'much' ELSE 'little' END = 'little'", "bc"),
    ],
)
def test_a_condition_may_ask_for_tags(where: str, expected: str) -> None:
    mask = filter_tracks(TRACKS, where, ("track_id", "n"), read_tag)
    assert "".join(np.array(["a", "b", "c"])[mask]) == expected


@pytest.mark.parametrize(
    "where",
    [
        "tag(n) > 1",
        "tag('piano', 'x') > 0.5",
        "tag() > 0",
        "tag(lower('PIANO')) > 0",
        "tag('jazz') > 0",
        "tag(1) > 0",
    ],
)
def test_other_calls_are_refused(where: str) -> None:
    with pytest.raises(UsageError):
        filter_tracks(TRACKS, where, ("track_id", "n"), read_tag)


def test_without_predictions_there_is_no_such_function() -> None:
    with pytest.raises(UsageError, match="tag may not be used"):
        filter_tracks(TRACKS, "tag('piano') > 0.5", ("track_id", "n"))


def test_a_search_keeps_what_a_head_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, head = make_store(tmp_path, 12), make_head()
    build_index(known.location, IndexSettings())
    searcher = Searcher(VectorIndex.open(known.location))
    with pytest.raises(UsageError, match="musicfm predict"):
        searcher.search_track("track 000", where="tag('piano') > 0.5")
    predict(known.location, head)
    scores = {name: expect_scores(head, known, name)[0] for name in known.contents[RECIPE]}
    wanted = {name for name, score in scores.items() if score > 0.5} - {"track 000"}
    assert 0 < len(wanted) < 11
    hits = searcher.search_track("track 000", k=12, where="tag('piano') > 0.5")
    assert {hit.track_id for hit in hits} == wanted
    flags = ["--store", known.location.url, "--track", "track 000", "--filter", "tag('it''s rock') > 2"]
    assert search.main(flags) == 0
    assert "no hits" in capsys.readouterr().out
    # What is said of other content says nothing of this.
    known.run({**known.contents[RECIPE], **dict.fromkeys(wanted, "changed")}, resolutions=("global",))
    build_index(known.location, IndexSettings())
    searcher = Searcher(VectorIndex.open(known.location))
    assert searcher.search_track("track 000", k=12, where="tag('piano') > 0.5") == []
