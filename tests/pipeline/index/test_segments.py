from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.index.codes import Axes, find_axes, map_index
from pipeline.index.files import IndexLocation, fetch_file
from pipeline.index.segments import (
    fit_map,
    iterate_rows,
    join_segments,
    mean_by_track,
    place_rows,
    sample_rows,
    write_segments,
)
from pipeline.location import StoreLocation
from pipeline.store.source import VectorBatch
from tests.indexes import Matrix, draw_tracks, make_batch


@pytest.fixture
def location(tmp_path: Path) -> IndexLocation:
    return IndexLocation(StoreLocation(str(tmp_path)), "recipe", "global")


def make_batches(tracks: list[Matrix], size: int) -> Iterator[VectorBatch]:
    keys = pa.table(
        {"track_id": [f"t{number}" for number in range(len(tracks))], "content_hash": ["x"] * len(tracks)}
    )
    for first in range(0, len(tracks), size):
        yield make_batch(keys, tracks, np.arange(first, min(len(tracks), first + size)))


def test_segments_hold_unit_rows_in_order_and_say_whose_they_are(location: IndexLocation, tmp_path: Path) -> None:
    tracks = draw_tracks(40, max_vectors=6)
    written = write_segments(make_batches(tracks, 7), location, str(tmp_path), segment_bytes=500)
    assert len(written.files) > 2
    segments = [map_index(fetch_file(location, file)) for file in written.files]
    assert [int(segment.ntotal) for segment in segments] == [file.num_rows for file in written.files]
    rows = np.concatenate([rows for segment in segments for _, rows in iterate_rows(segment)])
    expected = np.concatenate(tracks)
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)
    for owner in written.owners.to_pylist():
        number = int(owner["track_id"][1:])
        assert owner["num_vectors"] == len(tracks[number])
        assert owner["first_row"] == sum(len(track) for track in tracks[:number])


def test_no_vectors_make_no_segment(location: IndexLocation, tmp_path: Path) -> None:
    written = write_segments([], location, str(tmp_path))
    assert written.files == ()
    assert written.owners.num_rows == 0


def test_shards_are_laid_one_after_another_and_of_a_track_the_first_is_kept(
    location: IndexLocation, tmp_path: Path
) -> None:
    tracks = draw_tracks(5, max_vectors=3)
    shard = write_segments(make_batches(tracks, 5), location, str(tmp_path))
    joined = join_segments([shard, shard])
    assert joined.num_rows == 2 * shard.num_rows
    assert joined.owners.equals(shard.owners.combine_chunks())


def test_a_sample_is_drawn_from_all_segments_without_repeats(location: IndexLocation, tmp_path: Path) -> None:
    written = write_segments(make_batches(draw_tracks(60), 10), location, str(tmp_path), segment_bytes=300)
    segments = [map_index(fetch_file(location, file)) for file in written.files]
    everything = np.concatenate([rows for segment in segments for _, rows in iterate_rows(segment)])
    sample = sample_rows(segments, 30)
    assert sample.shape == (30, 8)
    assert len(np.unique(sample, axis=0)) == 30
    assert {tuple(row) for row in sample.tolist()} <= {tuple(row) for row in everything.tolist()}
    assert len(sample_rows(segments, 1000)) == 60


def test_the_map_places_rows_by_their_first_two_axes(location: IndexLocation, tmp_path: Path) -> None:
    written = write_segments(make_batches(draw_tracks(50), 50), location, str(tmp_path))
    rows = sample_rows([map_index(fetch_file(location, written.files[0]))], 50)
    placed = place_rows(written.files[0], location, fit_map(find_axes(rows)), None)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * values[:2]
    np.testing.assert_allclose(np.abs(placed), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize("flip", [1, -1])
def test_the_map_is_not_mirrored_by_chance(flip: int) -> None:
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0].astype(np.float32)
    axes = Axes(np.zeros(4, np.float32), flip * directions, np.ones(4))
    straight = Axes(np.zeros(4, np.float32), directions, np.ones(4))
    assert np.array_equal(fit_map(axes), fit_map(straight))


def test_one_dimension_has_a_flat_map() -> None:
    axes = find_axes(np.random.default_rng(0).standard_normal((9, 1)).astype(np.float32))
    assert fit_map(axes)[2].tolist() == [0.0]


def test_means_over_tracks_are_those_of_a_loop() -> None:
    values = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
    first, number = np.array([6, 0]), np.array([4, 2])
    expected = [values[6:10].mean(axis=0), values[0:2].mean(axis=0)]
    np.testing.assert_allclose(mean_by_track(values, first, number), expected, rtol=1e-5)
    assert mean_by_track(values, first[:0], number[:0]).shape == (0, 2)
