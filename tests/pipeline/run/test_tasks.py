import math
import os
from pathlib import Path

import pytest
import ray

from pipeline.errors import RunError, StorageError
from pipeline.run.tasks import map_on_cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def take_root(number: int) -> float:
    if number < 0:
        raise StorageError(f"expected no debts, found {number}")
    return math.sqrt(number)


def die_once(folder: str) -> int:
    path = Path(folder) / "died"
    if not path.exists():
        path.touch()
        os._exit(1)
    return 7


def test_results_come_in_order(tmp_path: Path) -> None:
    assert list(map_on_cluster(take_root, [9, 4, 1], num_cpus=0.5, memory_bytes=0)) == [3, 2, 1]
    assert list(map_on_cluster(die_once, [str(tmp_path)])) == [7]


def test_a_step_fails_as_it_would_here() -> None:
    found = map_on_cluster(take_root, [4, -1, 9])
    assert next(found) == 2
    with pytest.raises(StorageError, match=r"^expected no debts, found -1$"):
        next(found)


def test_a_result_that_does_not_come_is_not_waited_for() -> None:
    too_many = 1 + ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    with pytest.raises(RunError, match="Ray gave up"):
        next(map_on_cluster(take_root, [4], timeout_s=0.5, num_cpus=too_many))
