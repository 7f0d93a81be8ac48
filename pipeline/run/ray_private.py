"""What this package uses of Ray that Ray does not promise: look here when Ray is upgraded (docs/decisions/0023).

Ray 2.60 has no public way to

* give whole blocks to an actor that has a GPU (``map_batches`` wants a number of rows, and would join blocks), or
  say how often a task is tried without a warning of deprecation, which has no successor yet;
* share a table once, and give each task some rows of it;
* end a pass over a dataset from another thread than the one that waits for its results.

``tests/pipeline/run/test_ray_private.py`` breaks where one of these changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import BlockEntry, RefBundle
from ray.data._internal.execution.interfaces.ref_bundle import BlockSlice
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import InputData
from ray.data._internal.stats import DatasetStats
from ray.data.block import BlockMetadata


def map_blocks(dataset: ray.data.Dataset, step: Callable[..., Any], **asked: Any) -> ray.data.Dataset:
    """Map a function, or a class that Ray makes actors of, over whole blocks as Arrow tables.

    Args:
        dataset: What to map over.
        step: Takes a table; returns one, or yields several.
        asked: As ``ray.data.Dataset.map_batches``, with GPUs too.
    """
    return dataset.map_batches_internal(step, batch_size=None, batch_format="pyarrow", **asked)


def share_rows(tables: Iterable[tuple[pa.Table, Sequence[range]]]) -> ray.data.Dataset:
    """Share tables, of which each block of the dataset is some rows: a table is sent once to each node.

    Args:
        tables: Each table, and the rows of its blocks.
    """
    bundles = []
    for table, blocks in tables:
        shared: Any = ray.put(table)
        entry = BlockEntry(shared, BlockMetadata(table.num_rows, table.nbytes, None, None))
        bundles += [
            RefBundle((entry,), table.schema, owns_blocks=False, slices=(BlockSlice(rows.start, rows.stop),))
            for rows in blocks
        ]
    context = ray.data.DataContext.get_current().copy()
    stats = DatasetStats(metadata={}, parent=None)
    return ray.data.Dataset(LogicalPlan(InputData(bundles), context), context, stats)


class LeftError(Exception):
    """Ends a pass that nobody waits for any more."""


class LeaveSwitch(ExecutionCallback):
    """Ends one pass over one dataset, whatever it waits for.

    Ray Data calls each of a context's ``custom_execution_callback_classes`` once a pass, and asks what it gets at
    every step: here the switch itself, so that no class keeps what belongs to one run.
    """

    def __init__(self) -> None:
        self._is_left = threading.Event()

    def leave(self) -> None:
        """End the pass at its next step."""
        self._is_left.set()

    def on_execution_step(self, executor: object) -> None:
        """Raise ``LeftError`` once the pass is left."""
        if self._is_left.is_set():
            raise LeftError(f"{executor} was left")

    def __call__(self) -> LeaveSwitch:
        """Return the switch."""
        return self

    def __deepcopy__(self, memo: object) -> LeaveSwitch:
        return self  # contexts are copied

    def __reduce__(self) -> tuple[type[LeaveSwitch], tuple[()]]:
        return (LeaveSwitch, ())  # and sent to workers, where nobody leaves


def attach_switch(dataset: ray.data.Dataset, switch: LeaveSwitch) -> None:
    """Let a switch end the pass over a dataset; other datasets do not hear of it."""
    context = dataset.context
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, switch]  # type: ignore[list-item]
