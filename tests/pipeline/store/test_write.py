from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from pipeline.config import RESOLUTIONS
from pipeline.schema import EMBEDDED, FAILURES, RESULTS, TRACKS, UNCHANGED
from pipeline.store.parts import ROW_GROUP_VALUES, from_ipc
from pipeline.store.segments import SEGMENT_S
from pipeline.store.write import WriteSettings, write_parts
from tests.rows import EMBED_DIM, fake_features, pool

MANTISSA_BITS = {"r1": 10, "r2": 23}
SILENT = {"stage": "decode", "error_type": "silent", "error_message": "expected sound, found silence"}


def build_row(track_id: str, wanted: list[str], **others: Any) -> dict[str, Any]:
    return {
        "track_id": track_id,
        "uri": f"/{track_id}.mp3",
        "title": track_id.upper(),
        "wanted": wanted,
        "held": [],
        "content_hash": f"hash of {track_id}",
        "codec": "mp3",
        "num_channels": 2,
        "duration_s": 1.5,
        "features": [],
        **others,
    }


def build_done_row(track_id: str, *wanted: str) -> dict[str, Any]:
    features = [pool(name, fake_features(f"hash of {track_id}", name)) for name in wanted]
    return build_row(track_id, list(wanted), features=features)


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write rows; return the parts' records and contents, and the three tables of the result."""
    settings = WriteSettings(str(tmp_path / "frames"), MANTISSA_BITS, "run1")
    result = write_parts(pa.Table.from_pylist(rows, schema=EMBEDDED), settings)
    assert result.schema == RESULTS
    (row,) = result.to_pylist()
    tables = {name: from_ipc(row[name]) for name in ("tracks", "failures", "unchanged")}
    assert (tables["tracks"].schema, tables["failures"].schema) == (TRACKS, FAILURES)
    assert tables["unchanged"].schema == UNCHANGED
    parts = {(part["recipe"], part["resolution"]): part for part in row["parts"]}
    assert len(parts) == len(row["parts"])
    stored = {key: pq.ParquetFile(tmp_path / "frames" / part["path"]).read() for key, part in parts.items()}
    return {"parts": parts, "stored": stored, **tables}


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def round_to_half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Ten mantissa bits: those of half precision, whose range holds all the values here."""
    return values.astype(np.float16).astype(np.float32)


WANTED = ["r1/16hz", "r1/0.5hz", "r1/global", "r2/16hz"]
TRACK_IDS = ["z", "a", "Ünü/ with space", "m"]


def test_each_recipe_and_resolution_has_one_part_of_nested_lists_sorted_by_track(tmp_path: Path) -> None:
    written = write(tmp_path, [build_done_row(track_id, *WANTED) for track_id in TRACK_IDS])
    assert set(written["stored"]) == {("r1", "16hz"), ("r1", "0.5hz"), ("r1", "global"), ("r2", "16hz")}
    assert list_files(tmp_path / "frames") == {part["path"] for part in written["parts"].values()}
    lengths = set()
    for (recipe, resolution), table in written["stored"].items():
        assert table.column("track_id").to_pylist() == sorted(TRACK_IDS)
        assert set(table.column("frame_rate_hz").to_pylist()) == {RESOLUTIONS[resolution].frame_rate_hz}
        for row in table.to_pylist():
            expected = fake_features(row["content_hash"], f"{recipe}/{resolution}")
            expected = round_to_half(expected) if recipe == "r1" else expected
            np.testing.assert_array_equal(np.array(row["embeddings"], np.float32), expected)
            assert row["num_frames"] == len(expected)
            assert row["content_hash"] == f"hash of {row['track_id']}"
            lengths.add(len(expected))
    assert len(lengths) > 1, "the tracks must differ in length for this to show anything"


@pytest.mark.parametrize(
    ("num_seconds", "row_group_values"),
    [(4, ROW_GROUP_VALUES), (400, ROW_GROUP_VALUES), (400, 1), (2 * SEGMENT_S, 1)],
)
def test_frames_are_pooled_and_rounded_to_each_resolution_that_is_wanted_of_them(
    tmp_path: Path, num_seconds: int, row_group_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.parts.ROW_GROUP_VALUES", row_group_values)
    frames = np.random.default_rng(1).standard_normal((num_seconds * 25, EMBED_DIM), dtype=np.float32)
    rates_hz = {"50hz": 50.0, "25hz": 25.0, "16hz": 16.0, "8hz": 8.0, "0.5hz": 0.5}
    wanted = [f"r1/{name}" for name in (*rates_hz, "global")] + ["r2/16hz"]
    item = {"wanted": wanted, "frame_rate_hz": 25.0, "num_frames": len(frames), "values": frames.ravel()}
    written = write(tmp_path, [build_row("a", wanted, features=[item])])
    vectors = written["stored"].pop(("r1", "global")).to_pylist()
    for (recipe, name), table in written["stored"].items():
        num_bins = round(num_seconds * rates_hz[name])
        expected = F.adaptive_avg_pool1d(torch.from_numpy(frames.T), num_bins).numpy().T
        rows = table.to_pylist()
        assert len(rows) == -(-num_seconds // SEGMENT_S)
        found = np.array([vector for row in rows for vector in row["embeddings"]], np.float32)
        lengths = [row["num_frames"] for row in rows]
        assert lengths == [len(row["embeddings"]) for row in rows]
        assert [row["start_frame"] for row in rows] == [sum(lengths[:index]) for index in range(len(rows))]
        assert max(lengths) <= SEGMENT_S * rates_hz[name]
        assert sum(lengths) == num_bins
        np.testing.assert_allclose(found, expected, rtol=2**-11 if recipe == "r1" else 1e-6, atol=1e-6)
        if recipe == "r1":
            assert not np.any(found.view(np.uint32) & (2**13 - 1)), "of 23 mantissa bits 10 are kept"
    assert set(written["stored"]) == {*(("r1", name) for name in rates_hz), ("r2", "16hz")}
    (row,) = vectors
    assert (row["start_frame"], row["num_frames"], row["frame_rate_hz"]) == (0, 1, None)
    (vector,) = row["embeddings"]
    np.testing.assert_allclose(vector, frames.astype(np.float64).mean(axis=0), rtol=2**-11, atol=1e-6)
    assert not np.any(np.array(vector, np.float32).view(np.uint32) & (2**13 - 1))


def test_a_part_tells_where_it_lies_and_whose_rows_it_holds(tmp_path: Path) -> None:
    written = write(tmp_path, [build_done_row(track_id, *WANTED) for track_id in TRACK_IDS])
    for (recipe, resolution), part in written["parts"].items():
        assert part["path"].startswith(f"recipe={recipe}/resolution={resolution}/part-run1-")
        assert part["size_bytes"] == (tmp_path / "frames" / part["path"]).stat().st_size
        assert part["num_rows"] == len(TRACK_IDS)
        assert (part["min_track_id"], part["max_track_id"]) == (min(TRACK_IDS), max(TRACK_IDS))


def test_the_ledger_has_a_row_for_each_recipe_that_lists_what_was_wanted(tmp_path: Path) -> None:
    tracks = write(tmp_path, [build_done_row(track_id, *WANTED) for track_id in TRACK_IDS])["tracks"].to_pylist()
    by_key = {(row["recipe"], row["track_id"]): row for row in tracks}
    assert set(by_key) == {(recipe, track_id) for recipe in ("r1", "r2") for track_id in TRACK_IDS}
    assert len(by_key) == len(tracks)
    for (recipe, track_id), row in by_key.items():
        assert (row["uri"], row["title"]) == (f"/{track_id}.mp3", track_id.upper())
        assert (row["codec"], row["num_channels"], row["duration_s"]) == ("mp3", 2, 1.5)
        assert (row["content_hash"], row["run_id"]) == (f"hash of {track_id}", "run1")
        assert row["resolutions"] == (["16hz"] if recipe == "r2" else ["16hz", "0.5hz", "global"])


def test_every_row_of_a_batch_has_exactly_one_outcome(tmp_path: Path) -> None:
    rows = [
        build_row("e", ["r1/16hz", "r1/global", "r2/16hz"], **SILENT),
        build_done_row("d", "r1/16hz"),
        build_row("c", []),
        build_row("b", ["r2/16hz"], content_hash=None, **SILENT),
        build_done_row("a", "r2/16hz", "r2/8hz"),
    ]
    written = write(tmp_path, rows)
    tracks = [(row["recipe"], row["track_id"]) for row in written["tracks"].to_pylist()]
    assert tracks == [("r2", "a"), ("r1", "d")]
    failures = [(row["recipe"], row["track_id"]) for row in written["failures"].to_pylist()]
    assert failures == [("r2", "b"), ("r1", "e"), ("r2", "e")]
    assert written["unchanged"].to_pylist() == [{name: rows[2].get(name) for name in UNCHANGED.names}]
    stored = {key: table.column("track_id").to_pylist() for key, table in written["stored"].items()}
    assert stored == {("r2", "16hz"): ["a"], ("r2", "8hz"): ["a"], ("r1", "16hz"): ["d"]}


def test_what_frames_has_already_is_not_written_twice_but_stands_in_the_ledger(tmp_path: Path) -> None:
    row = build_done_row("a", "r1/16hz", "r1/8hz", "r1/global")
    row["stored"] = ["r1/16hz@hash of a", "r1/global@hash of a", "r1/8hz@another hash", "r2/8hz@hash of a"]
    written = write(tmp_path, [row])
    assert set(written["parts"]) == {("r1", "8hz")}
    (track,) = written["tracks"].to_pylist()
    assert track["resolutions"] == ["16hz", "8hz", "global"]


def test_a_failure_says_which_file_it_was_and_why(tmp_path: Path) -> None:
    (row,) = write(tmp_path, [build_row("a", ["r1/16hz"], **SILENT)])["failures"].to_pylist()
    expected: Mapping[str, Any] = {"uri": "/a.mp3", "content_hash": "hash of a", "run_id": "run1", **SILENT}
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("rows", [[], [build_row("a", ["r1/16hz"], **SILENT)]], ids=["empty", "all failed"])
def test_a_batch_without_features_writes_no_part(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    written = write(tmp_path, rows)
    assert written["parts"] == {}
    assert written["tracks"].num_rows == 0
    assert written["failures"].num_rows == len(rows)
    assert not (tmp_path / "frames").exists()


def test_rows_in_many_chunks_are_written_as_one(tmp_path: Path) -> None:
    rows = [build_done_row(track_id, "r2/16hz") for track_id in TRACK_IDS]
    chunks = pa.concat_tables([pa.Table.from_pylist([row], schema=EMBEDDED) for row in rows])
    result = write_parts(chunks, WriteSettings(str(tmp_path), MANTISSA_BITS, "run1"))
    (part,) = result.to_pylist()[0]["parts"]
    stored = pq.ParquetFile(tmp_path / part["path"]).read().to_pylist()
    for row in stored:
        np.testing.assert_array_equal(row["embeddings"], fake_features(row["content_hash"], "r2/16hz"))
    assert [row["track_id"] for row in stored] == sorted(TRACK_IDS)


def test_settings_do_not_show_the_options() -> None:
    assert "hunter2" not in repr(WriteSettings("s3://b/frames", MANTISSA_BITS, "run1", {"secret": "hunter2"}))
