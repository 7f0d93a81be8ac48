from pathlib import Path

import pytest

from pipeline.errors import StoreFormatError
from pipeline.search import sections
from pipeline.search.searcher import Searcher
from tests.indexes import draw_tracks, make_index


def test_an_index_of_a_snapshot_in_an_older_format_asks_to_be_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path, draw_tracks(5))

    def refuse(*_: object) -> None:
        raise StoreFormatError("the store has format 3; bring it up to date with musicfm maintain")

    monkeypatch.setattr(sections, "FeatureStore", refuse)
    searcher = Searcher(index)
    assert searcher.search_track("t0001", 2)
    with pytest.raises(StoreFormatError, match=r"older format.*bring it up to date with musicfm index"):
        searcher.search_track("t0001", 2, start_s=1.0)
