import logging
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.store.joining import join_parts, plan_joins, remove_parts
from pipeline.store.parts import Part, write_part
from tests.pipeline.store.test_parts import build_frames

PARTITION = {"recipe": "musicfm-l7-test", "resolution": "8hz"}


@st.composite
def parts_of_blocks(draw: st.DrawFn) -> tuple[list[Part], dict[tuple[str | None, str | None], list[str]]]:
    """Blocks of a sorted plan at two resolutions, in any order; some are committed, some are to be."""
    edges = sorted(draw(st.sets(st.integers(0, 999), min_size=2, max_size=30)))
    blocks = [(f"{start:03d}", f"{stop - 1:03d}") for start, stop in pairwise(edges)]
    parts, first_ids = [], {}
    for resolution in ("8hz", "16hz"):
        committed = draw(st.sets(st.sampled_from(blocks)))
        first_ids["r", resolution] = sorted(first for first, _ in committed)
        parts += [
            Part("r", resolution, f"{resolution}/{first}", draw(st.integers(1, 60)), 1, first, last)
            for first, last in blocks
            if (first, last) not in committed
        ]
    return draw(st.permutations(parts)), first_ids  # type: ignore[return-value]


@given(parts_of_blocks())
def test_only_neighbours_join_up_to_the_target(
    drawn: tuple[list[Part], dict[tuple[str | None, str | None], list[str]]],
) -> None:
    parts, first_ids = drawn
    groups = plan_joins(parts, first_ids, target_bytes=100)
    assert sorted(part.path for group in groups for part in group) == sorted(part.path for part in parts)
    for group in groups:
        assert len(group) == 1 or sum(part.size_bytes for part in group) <= 100
        assert len({part.resolution for part in group}) == 1
        for before, after in pairwise(group):
            assert before.max_track_id < after.min_track_id  # type: ignore[operator]
            others = first_ids[group[0].recipe, group[0].resolution]
            assert not any(before.max_track_id < first < after.min_track_id for first in others)  # type: ignore[operator]
    for first, second in pairwise(groups):  # no two that could have been one
        if first[0].resolution == second[0].resolution:
            others = first_ids[first[0].recipe, first[0].resolution]
            reached = any(first[-1].max_track_id < other < second[0].min_track_id for other in others)  # type: ignore[operator]
            assert reached or sum(part.size_bytes for part in [*first, second[0]]) > 100


def test_parts_whose_tracks_overlap_stay_apart() -> None:
    parts = [Part("r", "8hz", path, 1, 1, *path.split("-")) for path in ("a-d", "c-c", "e-f", "f-g")]
    assert [[part.path for part in group] for group in plan_joins(parts, {})] == [
        ["a-d"],
        ["c-c", "e-f"],
        ["f-g"],
    ]


@pytest.fixture
def frames() -> pa.Table:
    return build_frames(30, 7, 64)


def write_three(frames: pa.Table, folder: Path) -> list[Part]:
    cuts = [slice(0, 11), slice(11, 12), slice(12, 30)]
    return [write_part(frames[cut], "frames", str(folder), PARTITION, "run1") for cut in cuts]


def test_a_joined_part_is_what_one_task_would_have_written(frames: pa.Table, tmp_path: Path) -> None:
    parts = write_three(frames, tmp_path)
    joined = join_parts(parts, str(tmp_path), "run1")
    whole = write_part(frames, "frames", str(tmp_path), PARTITION, "run1")
    path = tmp_path / joined.path
    assert path.parent == (tmp_path / whole.path).parent
    assert pq.ParquetFile(path).read().equals(pq.ParquetFile(tmp_path / whole.path).read())
    assert joined.size_bytes == path.stat().st_size
    assert (joined.num_rows, joined.min_track_id, joined.max_track_id) == (30, "track0000", "track0029")
    assert (joined.recipe, joined.resolution) == (whole.recipe, whole.resolution)


def test_a_damaged_part_is_named(frames: pa.Table, tmp_path: Path) -> None:
    parts = write_three(frames, tmp_path)
    file = tmp_path / parts[1].path
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StorageError, match=f"{parts[1].path}.*damaged"):
        join_parts(parts, str(tmp_path), "joined")
    assert not list(tmp_path.rglob("part-joined-*")), "of a new file nothing is left"


def test_what_cannot_be_removed_is_left(
    frames: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = write_three(frames, tmp_path)
    (tmp_path / parts[0].path).unlink()
    remove_parts(parts, str(tmp_path))
    assert not list(tmp_path.rglob("*.parquet"))
    (tmp_path / parts[0].path).mkdir()
    with caplog.at_level(logging.WARNING):
        remove_parts(parts, str(tmp_path))
    assert "1 parts that were joined are left for a vacuum" in caplog.text
