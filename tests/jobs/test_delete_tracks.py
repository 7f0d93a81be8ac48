import json
from pathlib import Path

import pytest

from jobs import build_index, delete_tracks
from pipeline.location import StoreLocation
from pipeline.store.tables import create_tables
from tests.rows import read_store
from tests.runs import Track, list_frames, run, sound


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    run(location, sound("a", "b", "c"))
    return location


def test_tracks_are_gone_and_the_files_that_still_hold_them_are_named(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("a\n\nc\nunknown\n")
    assert delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt")]) == 0
    output = capsys.readouterr().out
    line = json.loads(output.splitlines()[-1])
    assert (line["ids"], line["deleted"]) == (3, 2)
    assert line["files_with_rows"] == 3  # of the ledger, of 8 Hz and of the global vectors
    assert "still in frames/" in output
    assert {row["track_id"] for row in read_store(store, "tracks")} == {"b"}
    assert {track_id for _, _, track_id, _ in list_frames(store)} == {"b"}


def test_a_vacuum_takes_them_out_of_every_file(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("a\nc\n")
    assert delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt"), "--vacuum"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["files_with_rows"] == 0
    assert line["derived"] == []
    assert line["files_removed"] >= 2


def test_an_empty_list_is_a_mistake(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("\n")
    assert delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt")]) == 2
    assert "found none" in capsys.readouterr().err


def test_a_list_that_is_no_text_is_a_mistake(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_bytes("é\n".encode("latin-1"))
    assert delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt")]) == 2
    assert "expected text in UTF-8" in capsys.readouterr().err


def test_what_was_made_from_the_store_is_named(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("a\n")
    run(store, sound("a", "b", "c", "d"), run_id="run2")
    assert build_index.main(["--store", store.url]) == 0
    assert delete_tracks.main(["--store", store.url, "--ids", str(tmp_path / "ids.txt")]) == 0
    output = capsys.readouterr().out
    assert json.loads(output.splitlines()[-1])["derived"] == ["indexes"]
    assert "musicfm index --rebuild" in output


def test_a_dry_run_says_what_would_go_and_what_is_not_there(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(store, sound("a", "b", "c") | {"copy": Track("/copy", "content of a", 1)}, run_id="run2")
    (tmp_path / "ids.txt").write_text("a\nunknown\n")
    arguments = ["--store", store.url, "--ids", str(tmp_path / "ids.txt")]
    before = {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*")}
    assert delete_tracks.main([*arguments, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*")} == before
    assert delete_tracks.main(arguments) == 0
    output = capsys.readouterr().out
    done = json.loads(output.splitlines()[-1])
    for name, value in {
        "deleted": 1,
        "withheld": 1,
        "not_found": ["unknown"],
        "same_content": ["copy"],
    }.items():
        assert planned[name] == done[name] == value
    assert "not found: unknown" in output
    assert "stays under other ids: copy" in output
    assert {row["track_id"] for row in read_store(store, "tracks")} == {"b", "c", "copy"}


def test_a_take_down_is_taken_back_by_id(
    store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("a\nc\n")
    arguments = ["--store", store.url, "--ids", str(tmp_path / "ids.txt")]
    assert delete_tracks.main([*arguments, "--reason", "a letter"]) == 0
    assert delete_tracks.main(arguments) == 0, "once more changes nothing"
    assert [(row["track_id"], row["reason"]) for row in read_store(store, "withheld")] == [
        ("a", "a letter"),
        ("c", "a letter"),
    ]
    (tmp_path / "ids.txt").write_text("c\nb\n")
    capsys.readouterr()
    for extra, left in ((["--dry-run"], {"a", "c"}), ([], {"a"})):
        assert delete_tracks.main([*arguments, "--restore", *extra]) == 0
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (line["restored"], line["not_found"]) == (1, ["b"])
        assert {row["track_id"] for row in read_store(store, "withheld")} == left
    with pytest.raises(SystemExit):
        delete_tracks.main([*arguments, "--restore", "--vacuum"])
