"""The steps, laid out on Ray: the one file that knows both.

 plan ─▶ fetch + decode ─▶ embed + pool ─▶ write parts ─▶ commit
(driver)  (CPU tasks)     (actor pool)    (CPU tasks)   (driver)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions
import torch
from tqdm import tqdm

from musicfm_model.checkpoint import Checkpoint
from pipeline.commit import RunCommitter
from pipeline.config import Recipe, RunSettings
from pipeline.decode import decode_tracks
from pipeline.embed import Embedder, EmbedderSettings, choose_batch_size, choose_device
from pipeline.errors import FeatureStoreError, RunError, UsageError
from pipeline.write import WriteSettings, write_parts

logger = logging.getLogger(__name__)

TRACKS_PER_BLOCK_CPU = 8  # a block is what a killed run loses: on a CPU a few minutes of work
TRACKS_PER_BLOCK_GPU = 64
MAX_CPUS_PER_ACTOR = 16  # more threads than this do not speed up one model
MAX_PASSES = 3
TASK_HEAP_BYTES = 2**30  # a bulk read of 256 MiB, a long track's waveform and its copies; declared, so that Ray
# neither packs a node with more tasks than it can feed nor fuses decoding into the model's actors


@dataclass(frozen=True)
class Placement:
    """How the model's actors lie on the cluster.

    Args:
        num_actors: Size of the actor pool.
        num_gpus: GPUs of each actor.
        num_cpus: CPUs of each actor.
        num_threads: Torch threads of each actor.
        task_num_cpus: CPUs of each decode and write task.
        tracks_per_block: Tracks that one task takes.
    """

    num_actors: int
    num_gpus: int
    num_cpus: float
    num_threads: int
    task_num_cpus: float
    tracks_per_block: int


def place_actors(nodes: Sequence[Mapping[str, float]], device: str | None) -> Placement:
    """Choose one actor per GPU, or one per node where the cluster has no GPU (or is told not to use them).

    Args:
        nodes: Resources of each live node, as Ray names them.
        device: ``cuda``, ``cpu`` or None for what there is.

    Returns:
        The placement. At least one CPU, or half of the only one, is left for decoding and writing.

    Raises:
        UsageError: ``cuda`` is wanted, and no node has a GPU.
    """
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and num_gpus == 0:
        raise UsageError("--device cuda: expected a GPU in the cluster, found none; leave it out to run on CPUs")
    if num_gpus and device != "cpu":
        return Placement(num_gpus, 1, 1, 1, 1, TRACKS_PER_BLOCK_GPU)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if sum(cpus) <= 1:
        return Placement(1, 0, 0.5, 1, 0.5, TRACKS_PER_BLOCK_CPU)
    smallest = min(cpus)
    # Decoding and writing take a small part of what the model takes, so it may use the last core as well.
    num_threads = min(smallest, MAX_CPUS_PER_ACTOR)
    return Placement(len(cpus), 0, max(1, num_threads - 1), num_threads, 1, TRACKS_PER_BLOCK_CPU)


class EmbedderActor:
    """An ``Embedder`` in a Ray actor: takes its weights from the object store, so that no node needs the file.

    Args:
        weights: The state dict as NumPy arrays, put into the object store by the driver.
        checkpoint: The checkpoint without its weights.
        settings: How to embed; ``device`` and ``batch_size`` are resolved on the actor's node.
        batch_size: Windows in one call of the model, if given.
        num_threads: Torch threads.
    """

    def __init__(
        self,
        weights: ray.ObjectRef[dict[str, np.ndarray]],
        checkpoint: Checkpoint,
        settings: EmbedderSettings,
        batch_size: int | None,
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)
        state_dict = {name: torch.from_numpy(array.copy()) for name, array in ray.get(weights).items()}
        device = choose_device() if settings.device == "auto" else settings.device
        size = batch_size or choose_batch_size(device, settings.precision)
        self.embedder = Embedder(
            replace(checkpoint, state_dict=state_dict), replace(settings, device=device, batch_size=size)
        )

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        """Embed decoded rows, one table a track."""
        yield from self.embedder.embed_rows(decoded)


def start_ray() -> None:
    """Join the cluster that the environment names, or start one on this machine.

    Under ``ray job submit`` the address is set; on a laptop nothing is, and Ray starts by itself.
    """
    if not ray.is_initialized():
        # Ray's notice that local connections need a token, which it makes and uses by itself.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # one line of our own counts tracks, not blocks
    context.execution_options.preserve_order = True  # parts hold consecutive ids, which is their index
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled"


def build_dataset(
    rows: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    run_id: str,
    placement: Placement,
) -> ray.data.Dataset:
    """Lay out the run as a Ray Data pipeline whose rows are results of write tasks.

    Args:
        rows: Rows of ``schema.PLAN``, sorted by track_id.
        checkpoint: The model.
        recipes: The run's recipes by id.
        settings: What to compute.
        run_id: The run.
        placement: Where actors and tasks go.

    Returns:
        A lazy dataset of ``schema.RESULTS``.
    """
    weights = ray.put({name: tensor.numpy() for name, tensor in checkpoint.state_dict.items()})
    embedder_settings = EmbedderSettings(
        {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()},
        settings.windows,
        settings.precision,
        settings.attention,
        settings.device or "auto",
    )
    write_settings = WriteSettings(
        settings.store.table_url("frames"),
        {recipe_id: recipe.mantissa_bits for recipe_id, recipe in recipes.items()},
        run_id,
        settings.store.options,
    )
    size = placement.tracks_per_block
    blocks = [rows.slice(start, size) for start in range(0, rows.num_rows, size)]
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            partial(decode_tracks, audio_options=settings.audio_options, max_duration_s=settings.max_duration_s),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=placement.task_num_cpus,
            memory=TASK_HEAP_BYTES,
        )
        .map_batches(
            EmbedderActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=placement.num_actors),
            fn_constructor_kwargs={
                "weights": weights,
                "checkpoint": replace(checkpoint, state_dict={}),
                "settings": embedder_settings,
                "batch_size": settings.batch_size,
                "num_threads": placement.num_threads,
            },
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
        )
        .map_batches(
            partial(write_parts, settings=write_settings),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=placement.task_num_cpus,
            memory=TASK_HEAP_BYTES,
        )
    )


def process_tracks(
    rows: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    committer: RunCommitter,
) -> None:
    """Run the pipeline over the planned rows and commit as results come in.

    A worker that dies takes the pass with it once Ray has retried it; what has no outcome then is planned
    again, in blocks of one track, so that the next pass loses less.
    """
    start_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    placement = place_actors(nodes, settings.device)
    with tqdm(total=rows.num_rows, unit="track", desc="embedding", mininterval=1.0, smoothing=0.1) as progress:
        for _ in range(MAX_PASSES):
            dataset = build_dataset(rows, checkpoint, recipes, settings, committer.run_id, placement)
            try:
                _commit_results(dataset, settings.commit_interval_s, committer, progress)
            except ray.exceptions.RayError as error:
                _raise_own_cause(error)
                logger.warning("a pass over the catalog broke off: %s", error)
            done = pa.array(sorted(committer.done), pa.string())
            rows = rows.filter(pc.invert(pc.is_in(rows.column("track_id"), done)))
            if rows.num_rows == 0:
                return
            placement = replace(placement, tracks_per_block=1)


def _commit_results(
    dataset: ray.data.Dataset, commit_interval_s: float, committer: RunCommitter, progress: Any
) -> None:
    last_commit_s = time.monotonic()
    for result in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        progress.update(committer.accept(result))
        if time.monotonic() - last_commit_s >= commit_interval_s:
            committer.commit()
            last_commit_s = time.monotonic()


def _raise_own_cause(error: BaseException) -> None:
    """Raise the error of ours that a Ray error wraps, if there is one: it says what to do."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        for candidate in (cause, inner):
            if isinstance(candidate, FeatureStoreError):
                raise RunError(str(candidate)) from error
        cause = inner or cause.__cause__
