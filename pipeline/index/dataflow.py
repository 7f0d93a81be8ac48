"""A map over Ray tasks, for index builds that one machine is too slow for.

The functions that are mapped read from the store and write to it; only file names, ids and codes travel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.exceptions

from pipeline.errors import FeatureStoreError, RunError
from pipeline.run.cluster import start_ray

TASKS_AHEAD = 4  # a CPU: so many results may wait for their turn


def map_over_ray(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Map a function over items in Ray tasks, results in the order of the items.

    Args:
        function: What to run; it is put into the object store once, with all that it carries.
        items: Small arguments.

    Raises:
        FeatureStoreError: What the function raised.
        RunError: Ray gave up on a task.
    """
    start_ray()
    shared = ray.put(function)
    num_ahead = TASKS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    running: deque[ray.ObjectRef[Any]] = deque()
    for item in items:
        running.append(_call.remote(shared, item))
        if len(running) >= num_ahead:
            yield _collect(running.popleft())
    while running:
        yield _collect(running.popleft())


@ray.remote(num_cpus=1)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _collect(result: ray.ObjectRef[Any]) -> Any:
    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FeatureStoreError):
            raise error.cause from error
        raise RunError(f"a task of the build failed: {_shorten(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray gave up on the build: {_shorten(error)}") from error


def _shorten(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
