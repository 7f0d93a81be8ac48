"""A probe on the cluster: some planned tracks in a task like those that run the model, and what a start takes."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.dataflow import EmbedderStart, choose_placement, open_plan, share_plan
from pipeline.errors import RunError
from pipeline.metrics import start_monitor
from pipeline.placement import Placement
from pipeline.probe import Probe, choose_files, probe_catalog


@dataclass(frozen=True)
class ClusterProbe:
    """A probe, and what the cluster is that it was made on.

    Args:
        probe: Cost by stage.
        placement: Where a run's actors and tasks would go.
        num_cpus: Cores of the cluster.
        ray_start_s: Seconds until Ray was joined or started.
        pipeline_start_s: Until a pipeline laid out as a run's, its workers and a model on its device were up.
    """

    probe: Probe
    placement: Placement
    num_cpus: float
    ray_start_s: float
    pipeline_start_s: float


class ProbeActor:
    """A probe in an actor like those that run the model.

    Args:
        start: Starts the model; says what the run would compute.
    """

    def __init__(self, start: EmbedderStart) -> None:
        self.embedder, self.recipes, self.settings = start(), start.recipes, start.settings

    def __call__(self, shared: pa.Table) -> pa.Table:
        """Take planned rows through every stage; return the probe, pickled, and when it began and ended."""
        began_time = time.time()
        probe = probe_catalog(open_plan(shared), self.embedder, self.recipes, self.settings)
        return pa.table({"found": [pickle.dumps((probe, began_time, time.time()))]})


def probe_on_cluster(
    planned: pa.Table, checkpoint: Checkpoint, recipes: Mapping[str, Recipe], settings: RunSettings
) -> ClusterProbe:
    """Try some planned tracks where a run would embed them; nothing is written to the store.

    Args:
        planned: Rows of ``schema.PLAN``; at least one.
        checkpoint: The model.
        recipes: Recipes of the run, by id.
        settings: What the run would compute.

    Raises:
        UsageError: A GPU is asked for and there is none.
        RunError: The task failed, or the cluster had no room for it.
    """
    start_s = time.monotonic()
    placement = choose_placement(settings, checkpoint.config).fit(planned.num_rows)
    ray_start_s = time.monotonic() - start_s
    start = EmbedderStart.share(checkpoint, recipes, settings, placement.num_threads)
    results: queue.Queue[Any] = queue.Queue()

    def pull() -> None:
        try:
            results.put(_run_probe(choose_files(planned), placement, start))
        except BaseException as error:
            results.put(error)

    asked_time = time.time()
    threading.Thread(target=pull, daemon=True, name="probe").start()
    try:
        found = results.get(timeout=settings.stall_timeout_s)
    except queue.Empty:
        raise RunError(f"the probe found no room on the cluster for {settings.stall_timeout_s:g} s") from None
    if isinstance(found, BaseException):
        detail = " ".join(str(found).split())[-300:]
        raise RunError(f"the probe failed: {type(found).__name__}: {detail}") from found
    probe, began_time, ended_time = found
    pipeline_start_s = max(0.0, began_time - asked_time) + max(0.0, time.time() - ended_time)
    num_cpus = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return ClusterProbe(probe, placement, num_cpus, ray_start_s, pipeline_start_s)


def _run_probe(rows: pa.Table, placement: Placement, start: EmbedderStart) -> tuple[Probe, float, float]:
    """Send the rows through a pipeline laid out as a run's, whose actor probes them."""
    monitor = start_monitor("probe", rows.num_rows)  # a run starts the same processes
    task: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": placement.task_num_cpus}
    results = (
        share_plan([rows])
        .map_batches(_pass_on, **task)
        .map_batches(
            ProbeActor,
            batch_size=1,  # with GPUs Ray wants a number
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            fn_constructor_args=(start,),
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
        )
        .map_batches(_pass_on, **task)
    )
    (found,) = results.take_all()
    del monitor
    probe: tuple[Probe, float, float] = pickle.loads(found["found"])
    return probe


def _pass_on(rows: pa.Table) -> pa.Table:
    return rows
