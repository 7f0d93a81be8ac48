import json
from pathlib import Path

import pytest
from deltalake import DeltaTable

from jobs import neighbors
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.location import StoreLocation
from tests.stores import KnownStore


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({f"track {number}": f"content {number}" for number in range(6)}, resolutions=("global",))
    build_index(known.location, IndexSettings())
    return known.location


def test_the_table_is_written_and_reported(store: StoreLocation, capsys: pytest.CaptureFixture[str]) -> None:
    assert neighbors.main(["--store", store.url, "-k", "2"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["num_tracks"], line["num_rows"], line["k"]) == (6, 12, 2)
    assert DeltaTable(line["table"]).count() == 12


def test_mistakes_exit_with_two(store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert neighbors.main(["--store", str(tmp_path / "nowhere")]) == 2
    assert "musicfm index" in capsys.readouterr().err
    assert neighbors.main(["--store", store.url, "--recipe", "unknown"]) == 2
    with pytest.raises(SystemExit) as end:
        neighbors.main(["--store", store.url, "-k", "0"])
    assert end.value.code == 2
