import json
from pathlib import Path

import pytest

from jobs import maintain_store
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.index.manifest import list_indexes
from pipeline.location import StoreLocation
from pipeline.store.check import check_store
from pipeline.store.tables import create_tables, open_table
from tests.runs import R4, R7, list_frames, run, sound


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    run(location, sound("a"), recipes=(R7, R4), run_id="one")
    run(location, sound("a", "b"), recipes=(R7, R4), run_id="two")
    return location


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_a_report_weighs_each_partition_and_writes_nothing(
    store: StoreLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    version = open_table(store, "tracks").version()
    assert maintain_store.main(["--store", store.url, "--report"]) == 0
    partitions = last_line(capsys)["partitions"]
    assert isinstance(partitions, list)
    assert [(p["recipe"], p["resolution"], p["num_parts"], p["num_rows"]) for p in partitions] == [
        (recipe, resolution, 2, 2) for recipe in sorted((R4, R7)) for resolution in ("8hz", "global")
    ]
    for partition in partitions:
        assert partition["bytes_per_value"] == pytest.approx(
            partition["size_bytes"] / partition["num_values"], abs=1e-3
        )
    assert open_table(store, "tracks").version() == version


def test_compaction_drops_and_vacuums_as_told(store: StoreLocation, capsys: pytest.CaptureFixture[str]) -> None:
    assert maintain_store.main(["--store", store.url, "--drop-recipe", R4, "--vacuum", "0"]) == 0
    line = last_line(capsys)
    assert line["parts_replaced"] == 4
    assert {recipe for recipe, *_ in list_frames(store)} == {R7}
    left = [path for path in (Path(store.url) / "frames").rglob("*.parquet") if "_delta_log" not in path.parts]
    assert len(left) == 2  # resolutions


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_much_is_rewritten_in_tasks(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list_frames(store)
    monkeypatch.setattr(maintain_store, "MIN_SHARED_BYTES", 0)
    assert maintain_store.main(["--store", store.url]) == 0
    assert last_line(capsys)["parts_replaced"] == 8
    assert list_frames(store) == before
    assert len(open_table(store, "frames").file_uris()) == 4  # recipes and resolutions
    assert not check_store(store, deep=True).problems


def test_a_dropped_recipe_takes_its_indexes_along(
    store: StoreLocation, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in (R4, R7):
        build_index(store, IndexSettings("8hz", recipe=recipe))
    assert maintain_store.main(["--store", store.url, "--drop-recipe", R4]) == 0
    assert last_line(capsys)["indexes_removed"] == ["8hz"]
    assert [location.recipe for location in list_indexes(store)] == [R7]


def test_recipes_are_listed(store: StoreLocation, capsys: pytest.CaptureFixture[str]) -> None:
    assert maintain_store.main(["--store", store.url, "--recipes"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {(row["recipe"], row["num_tracks"]) for row in listed} == {(R4, 2), (R7, 2)}


def test_mistakes_are_one_line(store: StoreLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert maintain_store.main(["--store", str(tmp_path / "none"), "--report"]) == 2
    assert maintain_store.main(["--store", store.url, "--drop-recipe", "unknown"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "no feature store" in errors[0]
    assert R7 in errors[1]
