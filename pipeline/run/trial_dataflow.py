"""A trial on the cluster: some planned tracks in a task like those that run the model, and what a start takes."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.errors import RunError
from pipeline.run.cluster import quiet_ray, set_up
from pipeline.run.dataflow import EmbedderStart, choose_placement
from pipeline.run.metrics import start_monitor
from pipeline.run.placement import Placement
from pipeline.run.ray_private import map_blocks, share_rows
from pipeline.run.trial import Trial, choose_files, run_trial


@dataclass(frozen=True)
class ClusterTrial:
    """A trial, and what the cluster is that it was made on.

    Args:
        trial: Cost by stage.
        placement: Where a run's actors and tasks would go.
        num_cpus: Cores of the cluster.
        ray_start_s: Seconds until Ray was joined or started.
        pipeline_start_s: Until a pipeline laid out as a run's, its workers and a model on its device were up.
    """

    trial: Trial
    placement: Placement
    num_cpus: float
    ray_start_s: float
    pipeline_start_s: float


class TrialActor:
    """A trial in an actor like those that run the model.

    Args:
        start: Starts the model; says what the run would compute.
        known: From ``known_content.list_prefixes``.
    """

    def __init__(self, start: EmbedderStart, known: npt.NDArray[np.uint64]) -> None:
        self.known = known
        self.embedder, self.recipes, self.settings = start(), start.recipes, start.settings

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Take planned rows through every stage; return the trial, pickled, and when it began and ended."""
        began_time = time.time()
        trial = run_trial(rows, self.embedder, self.recipes, self.settings, known=self.known)
        return pa.table({"found": [pickle.dumps((trial, began_time, time.time()))]})


def run_cluster_trial(
    planned: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    known: npt.NDArray[np.uint64],
) -> ClusterTrial:
    """Try some planned tracks where a run would embed them; nothing is written to the store.

    Args:
        planned: Rows of ``schema.PLAN``; at least one.
        checkpoint: The model.
        recipes: Recipes of the run, by id.
        settings: What the run would compute.
        known: From ``known_content.list_prefixes``: content that the run would not decode.

    Raises:
        UsageError: A GPU is asked for and there is none.
        RunError: The task failed, or the cluster had no room for it.
    """
    start_s = time.monotonic()
    placement = choose_placement(settings, checkpoint.config).fit(planned.num_rows)
    ray_start_s = time.monotonic() - start_s
    start = EmbedderStart.share(checkpoint, recipes, settings, placement)
    results: queue.Queue[Any] = queue.Queue()

    def pull() -> None:
        try:
            results.put(_pull_trial(choose_files(planned), placement, start, known))
        except BaseException as error:
            results.put(error)

    asked_time = time.time()
    threading.Thread(target=pull, daemon=True, name="trial").start()
    try:
        outcome = results.get(timeout=settings.stall_timeout_s)
    except queue.Empty:
        raise RunError(f"the trial found no room on the cluster for {settings.stall_timeout_s:g} s") from None
    if isinstance(outcome, BaseException):
        detail = " ".join(str(outcome).split())[-300:]
        raise RunError(f"the trial failed: {type(outcome).__name__}: {detail}") from outcome
    trial, began_time, ended_time = outcome
    pipeline_start_s = max(0.0, began_time - asked_time) + max(0.0, time.time() - ended_time)
    num_cpus = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return ClusterTrial(trial, placement, num_cpus, ray_start_s, pipeline_start_s)


def _pull_trial(
    rows: pa.Table, placement: Placement, start: EmbedderStart, known: npt.NDArray[np.uint64]
) -> tuple[Trial, float, float]:
    """Send the rows through a pipeline laid out as a run's, whose actor tries them."""
    monitor = start_monitor("trial", rows.num_rows)  # a run starts the same processes
    task: dict[str, Any] = {"num_cpus": placement.task_num_cpus}
    actor: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(size=1),
        "fn_constructor_args": (start, known),
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
    }
    planned = share_rows([(rows, [range(rows.num_rows)])])  # all in one task
    set_up(planned)
    passed = map_blocks(planned, _pass_on, **task)
    results = map_blocks(map_blocks(passed, TrialActor, **actor), _pass_on, **task)
    with quiet_ray():
        (row,) = results.take_all()
    del monitor
    trial: tuple[Trial, float, float] = pickle.loads(row["found"])
    return trial


def _pass_on(rows: pa.Table) -> pa.Table:
    return rows
