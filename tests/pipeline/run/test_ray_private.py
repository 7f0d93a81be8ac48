"""What Ray does not promise, and this package relies on: these tests break when Ray changes it."""

import copy
import pickle
import threading
import time
import warnings
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from pipeline.run.cluster import set_up
from pipeline.run.ray_private import LeaveSwitch, attach_switch, map_blocks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def make_dataset(num_blocks: int, rows_per_block: int = 1) -> ray.data.Dataset:
    blocks = [pa.table({"number": [block] * rows_per_block}) for block in range(num_blocks)]
    dataset: ray.data.Dataset = ray.data.from_blocks(blocks)
    set_up(dataset)
    return dataset


class Counts:
    """Says how many rows it is given at once."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.table({"num_rows": [rows.num_rows]})


def test_an_actor_with_a_gpu_may_be_given_whole_blocks_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RayDeprecationWarning)
        counted = map_blocks(
            make_dataset(3, rows_per_block=5),
            Counts,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_gpus=1,
            ray_remote_args_fn=lambda: {"max_task_retries": 1},
        )
        again = map_blocks(
            make_dataset(3, rows_per_block=5), Counts().__call__, ray_remote_args_fn=lambda: {"max_retries": 1}
        )
        assert [row["num_rows"] for row in again.take_all()] == [5, 5, 5]
    assert isinstance(counted, ray.data.Dataset)
    with pytest.raises(ValueError, match="batch_size"):  # the public way: once this passes, it will do
        make_dataset(1).map_batches(Counts, batch_size=None, num_gpus=1)


def sleep(rows: pa.Table) -> pa.Table:
    time.sleep(3600)
    return rows


def test_a_pass_is_left_while_it_waits_and_others_go_on() -> None:
    switch, found = LeaveSwitch(), []
    left = map_blocks(make_dataset(2), sleep, num_cpus=0.5)
    attach_switch(left, switch)

    def pull() -> None:
        try:
            left.take_all()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    time.sleep(3.0)
    assert thread.is_alive()
    other: Any = make_dataset(4)
    attach_switch(other, LeaveSwitch())
    switch.leave()
    assert [row["number"] for row in other.take_all()] == [0, 1, 2, 3]
    thread.join(60)
    assert not thread.is_alive()
    assert len(found) == 1


def test_a_switch_is_itself_in_copies_of_its_context_and_means_nothing_elsewhere() -> None:
    switch = LeaveSwitch()
    assert copy.deepcopy([switch]) == [switch]
    switch.leave()
    pickle.loads(pickle.dumps(switch)).on_execution_step(None)
    with pytest.raises(Exception, match="was left"):
        switch.on_execution_step(None)
