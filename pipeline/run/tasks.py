"""Tasks: one step over many items, wherever the cluster has room, beside what else it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions

from pipeline.errors import FeatureStoreError, RunError
from pipeline.run.placement import TASK_HEAP_BYTES

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cluster(
    step: Callable[[Item], Result],
    items: Sequence[Item],
    timeout_s: float | None = None,
    num_cpus: float = 1,
    memory_bytes: int = TASK_HEAP_BYTES,
) -> Iterator[Result]:
    """Run a step over items as ``map`` does, each in a task of its own.

    Tasks are not cancelled: where one ends at that moment, Ray 2.60 aborts the driver ("Tried to complete task
    that was not pending"). What nobody asks for any more runs to its end, or to that of the driver.

    Args:
        step: What is run; a task whose worker dies is run again.
        items: What over.
        timeout_s: How long to wait for the next result.
        num_cpus: CPUs of a task.
        memory_bytes: Memory of a task.

    Yields:
        Results, in the items' order.

    Raises:
        FeatureStoreError: A step's own.
        RunError: Ray gave up, or nothing came for ``timeout_s``.
    """
    task: Any = ray.remote(run_step).options(num_cpus=num_cpus, memory=memory_bytes)
    refs = [task.remote(step, item) for item in items]
    try:
        for ref in refs:
            yield ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FeatureStoreError):
            raise cause from error
        raise RunError(f"Ray gave up: … {' '.join(str(error).split())[-500:]}") from error


def run_step(step: Callable[[Item], Result], item: Item) -> Result:
    """Run the step over one item, in a task."""
    return step(item)
