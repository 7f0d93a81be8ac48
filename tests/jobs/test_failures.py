import csv
import io
import json
from pathlib import Path

import pytest

from jobs import failures
from pipeline.location import StoreLocation
from pipeline.report.advice import ADVICE
from pipeline.report.failures import list_failures
from pipeline.store.tables import create_tables
from tests.runs import R4, R7, Track, run, sound


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    catalog = sound("a") | {
        "b.mp3": Track("/music/b.mp3", "b", 1, state="corrupt"),
        "c": Track(None, "c", 1, state="missing"),
    }
    run(location, catalog, [R4, R7], run_id="first")
    run(location, catalog | {"d.mp3": Track("/music/d, 1.mp3", "d", 1, state="denied")}, [R4, R7], run_id="second")
    return location


def call(capsys: pytest.CaptureFixture[str], store: str, *arguments: str) -> str:
    capsys.readouterr()
    assert failures.main(["--store", store, *arguments]) == 0
    return capsys.readouterr().out


def test_each_file_is_named_once_with_its_reason_and_what_to_do(
    store: StoreLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(call(capsys, store.url, "--format", "json"))
    assert found["num_failures"] == 3
    rows = [(row["track_id"], row["uri"], row["stage"], row["reason"]) for row in found["failures"]]
    assert rows == [
        ("b.mp3", "/music/b.mp3", "decode", "truncated"),
        ("c", None, "catalog", "object_missing"),
        ("d.mp3", "/music/d, 1.mp3", "fetch", "permission_denied"),
    ]
    assert all(
        row["advice"] == ADVICE[row["reason"]] and row["message"] and row["time"] for row in found["failures"]
    )
    assert list(csv.DictReader(io.StringIO(call(capsys, store.url, "--format", "csv")))) == [
        {name: value or "" for name, value in row.items()} for row in found["failures"]
    ]
    table = call(capsys, store.url)
    for row in found["failures"]:
        for told in (row["track_id"], row["uri"] or "no file", row["message"], row["advice"]):
            assert told in table
    assert json.loads(call(capsys, store.url, "--format", "json", "--recipe", "other"))["num_failures"] == 0


def test_a_runs_own_failures_come_first(store: StoreLocation) -> None:
    assert [row["track_id"] for row in list_failures(store, [R7], "second", limit=2)] == ["d.mp3", "b.mp3"]


def test_a_store_without_failures_and_no_store_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = StoreLocation(str(tmp_path / "sound"))
    create_tables(location)
    assert call(capsys, location.url) == "no failures on record\n"
    assert failures.main(["--store", str(tmp_path / "none")]) == 2
    assert "no feature store" in capsys.readouterr().err
