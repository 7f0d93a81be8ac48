import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError, StorageError
from pipeline.index.build import build_index
from pipeline.index.dataflow import map_over_ray
from pipeline.index.draft import IndexSettings
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from tests.stores import KnownStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def square_elsewhere(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def fail(number: int) -> int:
    raise StorageError(f"cannot read part {number}") if number else ValueError("a bug")


def test_results_come_in_order_from_other_processes() -> None:
    results = list(map_over_ray(square_elsewhere, range(30)))
    assert [square for square, _ in results] == [number**2 for number in range(30)]
    assert os.getpid() not in {process for _, process in results}


def test_mistakes_come_back_as_what_they_are() -> None:
    with pytest.raises(StorageError, match="cannot read part 7"):
        list(map_over_ray(fail, [7]))
    with pytest.raises(RunError, match="ValueError: a bug"):
        list(map_over_ray(fail, [0]))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_build_over_ray_is_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("pipeline.index.build.SHARD_ROWS", 6)
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({f"track{number:02d}": f"content {number}" for number in range(20)})
    alone = build_index(known.location, IndexSettings("0.5hz", kind=kind))
    first = VectorIndex.open(known.location, "0.5hz")
    spread = build_index(known.location, IndexSettings("0.5hz", kind=kind, rebuild=True), map_over_ray)
    second = VectorIndex.open(known.location, "0.5hz")
    assert len(spread.segments) > 1
    assert (spread.num_vectors, spread.num_tracks) == (alone.num_vectors, alone.num_tracks)
    for position in range(20):
        assert np.array_equal(first.vectors_of(position), second.vectors_of(position))
    query = first.vectors_of(4)
    np.testing.assert_allclose(first.search(query, 10)[0], second.search(query, 10)[0], atol=1e-6)
