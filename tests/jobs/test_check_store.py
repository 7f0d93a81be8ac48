from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.check_store import main
from pipeline.location import StoreLocation
from pipeline.schema import TRACKS
from pipeline.store.parts import write_part
from pipeline.store.table_commits import commit_actions
from pipeline.store.tables import FORMAT_PROPERTY, open_table
from tests.stores import BAD, KnownStore, make_recipe

SECRET = "hunter2-and-more"


@pytest.fixture
def known(tmp_path: Path) -> KnownStore:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({"a": "a 1", "b": "b 1", "bad": BAD}, resolutions=("8hz", "global"))
    return known


def test_a_sound_store_gives_its_figures(known: KnownStore, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--storage-option", f"secret={SECRET}"]
    assert main(["--store", known.location.url, "--deep", *options]) == 0
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    report = json.loads(line)
    recipe = make_recipe().recipe_id
    assert (report["ok"], report["problems"]) == (True, [])
    assert report["num_tracks"] == {recipe: 2}
    assert report["num_frame_rows"] == {f"{recipe}/8hz": 2}
    assert (report["num_dead_rows"], report["num_failures"]) == (0, 1)
    assert report["last_run"]["planned"] == 3
    assert set(report["size_bytes"]) == {"tracks", "frames", "failures", "recipes", "withheld"}
    assert err == ""
    assert SECRET not in out


def test_problems_are_listed_and_the_exit_code_says_so(
    known: KnownStore, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [Path(uri.removeprefix("file://")) for uri in open_table(known.location, "frames").file_uris()]
    for part in parts:
        part.unlink()
    assert main(["--store", known.location.url]) == 1
    *problems, last = capfd.readouterr().out.splitlines()
    assert len(problems) == len(parts)
    for part in parts:
        assert any(line.startswith("problem: frames: ") and part.name in line for line in problems)
    report = json.loads(last)
    assert report["ok"] is False
    assert [f"problem: {problem}" for problem in report["problems"]] == problems


def test_vectors_are_looked_at_only_when_told_to(known: KnownStore, capfd: pytest.CaptureFixture[str]) -> None:
    tracks = open_table(known.location, "tracks")
    row = tracks.to_pyarrow_table().to_pylist()[0] | {"track_id": "x", "resolutions": ["global"]}
    rows = pa.Table.from_pylist([row | {"embedding": [1.0, np.nan]}], schema=TRACKS)
    url = known.location.table_url("tracks")
    part = write_part(rows, "tracks", url, {"recipe": row["recipe"]}, "stranger")
    commit_actions(tracks, "tracks", [part.as_add_action()], {})
    assert main(["--store", known.location.url]) == 0
    assert main(["--store", known.location.url, "--deep"]) == 1
    (problem,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert problem.endswith("global of x is not a vector of finite values")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: --store"),
        (["--store", "{}/none"], "no feature store at"),
        (["--store", "{}/store", "--storage-option", SECRET], "expected KEY=VALUE"),
        (["--store", "{}/store", "--depth"], "unrecognized arguments: --depth"),
        (["--store", "{}/newer"], "has format 9"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, known: KnownStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = KnownStore(StoreLocation(str(tmp_path / "newer")))
    newer.run({"a": "a 1"})
    open_table(newer.location, "failures").alter.set_table_properties({FORMAT_PROPERTY: "9"}, False)
    try:
        exit_code = main([text.format(tmp_path) for text in arguments])
    except SystemExit as end:
        exit_code = int(str(end.code))
    out, err = capfd.readouterr()
    assert exit_code == 2
    assert words in err
    assert SECRET not in err
    assert err.count("\n") == 1
    assert out == ""


def test_help_explains_the_flags(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capfd.readouterr().out
    assert all(flag in out for flag in ("--store", "--deep", "--storage-option"))
