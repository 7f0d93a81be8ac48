import json
from pathlib import Path

import pytest

from jobs.build_index import main
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from tests.s3_server import STORE, STORE_BUCKET, S3Server
from tests.stores import KnownStore

CATALOG = {f"track{number:02d}": f"content {number}" for number in range(20)}


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run(CATALOG)
    return known


def read_last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_the_command_builds_follows_and_reports(known: KnownStore, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--store", known.location.url, "--resolution", "0.5hz", "--min-recall", "0.95"]
    assert main(call) == 0
    line = read_last_line(capsys)
    assert (line["kind"], line["version"], line["num_tracks"]) == ("exact", 1, 20)
    known.run({**CATALOG, "new": "new content"})
    assert main(call) == 0
    assert (line := read_last_line(capsys))["version"] == 2
    assert line["num_tracks"] == 21
    assert VectorIndex.open(known.location, "0.5hz").find_track("new") == 0


def test_a_poor_build_exits_with_one(
    known: KnownStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.build.measure_quality", lambda *_: {"recall_at_10": 0.9})
    assert main(["--store", known.location.url, "--min-recall", "0.95"]) == 1
    said = capsys.readouterr()
    assert "nothing was published: the index measures recall@10 0.900" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--store", "/nowhere/at/all"], "no feature store"),
        (["--store", "STORE", "--resolution", "8hz"], "expected vectors of resolution 8hz"),
        (["--store", "STORE", "--recipe", "other"], "found other"),
    ],
)
def test_a_mistake_exits_with_two_and_one_line(
    known: KnownStore, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main([flag.replace("STORE", known.location.url) for flag in flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize("flags", [["--min-recall", "1.5"], ["--target-recall", "zero"], ["--kind", "hnsw"], []])
def test_a_wrong_flag_exits_with_two(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--store", "x", *flags] if flags else [])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_works_on_an_object_store(
    s3_server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = s3_server.options(STORE)
    known = KnownStore(StoreLocation(f"s3://{STORE_BUCKET}/command-{tmp_path.name}", options))
    known.run(CATALOG)
    call = ["--store", known.location.url, "--cache", str(tmp_path / "cache")]
    call += [flag for key, value in options.items() for flag in ("--storage-option", f"{key}={value}")]
    assert main(call) == 0
    said = capsys.readouterr()
    assert options["secret"] not in said.out + said.err
    assert VectorIndex.open(known.location, cache=str(tmp_path / "cache")).tracks.num_rows == 20
