import json
from pathlib import Path

import pytest

from jobs import export
from pipeline.location import StoreLocation
from tests.stores import KnownStore


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({f"track {number}": f"content {number}" for number in range(4)})
    return known.location


@pytest.mark.parametrize(("name", "num_files"), [("webdataset", 1), ("huggingface", 2)])
def test_the_copy_is_written_and_reported(
    store: StoreLocation, tmp_path: Path, name: str, num_files: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--store", store.url, "--format", name, "--out", str(tmp_path / "out")]
    assert export.main([*arguments, "--resolution", "0.5hz"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["num_tracks"], line["format"], line["resolution"], len(line["shards"])) == (4, name, "0.5hz", 1)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == num_files
    assert export.main(arguments) == 2  # there is something now
    assert "new or empty folder" in capsys.readouterr().err


def test_mistakes_exit_with_two(store: StoreLocation, tmp_path: Path) -> None:
    nowhere = ["--store", str(tmp_path / "nowhere"), "--format", "webdataset", "--out", str(tmp_path / "out")]
    assert export.main(nowhere) == 2
    with pytest.raises(SystemExit) as end:
        export.main(["--store", store.url, "--out", "x", "--format", "csv"])
    assert end.value.code == 2
