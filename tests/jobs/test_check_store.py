from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.check_store import main
from pipeline.location import StoreLocation
from pipeline.schema import PARTITION_COLUMNS, TABLES
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
    assert report["num_frame_rows"] == {f"{recipe}/8hz": 2, f"{recipe}/global": 2}
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
    recipe = make_recipe().recipe_id
    keys = {"recipe": recipe, "track_id": "x", "content_hash": "x 1"}
    frames = {"start_frame": 0, "num_frames": 1, "embeddings": [[1.0, np.nan]]}
    commit_row(known, "frames", {**keys, **frames, "resolution": "global"})
    commit_row(known, "tracks", {**keys, "resolutions": ["global"]})
    assert main(["--store", known.location.url]) == 0
    assert main(["--store", known.location.url, "--deep"]) == 1
    (problem,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert problem.endswith("global of x is not a whole matrix of finite values")


def commit_row(known: KnownStore, table_name: str, row: dict[str, Any]) -> None:
    """Commit a row to a table; one of the ledger names the newest ``frames``."""
    url, schema = known.location.table_url(table_name), TABLES[table_name]
    partition = {name: row[name] for name in PARTITION_COLUMNS[table_name]}
    part = write_part(pa.Table.from_pylist([row], schema=schema), table_name, url, partition, "stranger")
    metadata = {"frames_version": str(open_table(known.location, "frames").version())}
    commit_actions(open_table(known.location, table_name), table_name, [part.as_add_action()], metadata)


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
