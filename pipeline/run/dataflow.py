"""The steps, laid out on Ray: the one file that knows both.

 plan ─▶ fetch + decode ─▶ embed ─▶ pool + write parts ─▶ commit
(driver)  (CPU tasks)    (actors)     (CPU tasks)      (driver)
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from pipeline.config import Recipe, RunSettings
from pipeline.decode.isolation import decode_audio_apart, decode_audio_in_time
from pipeline.decode.known_content import KnownContent
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder, choose_embedder_settings
from pipeline.errors import DeviceError, RunError, StorageError
from pipeline.run.blocks import count_block_bytes, join_tables, share_plan
from pipeline.run.cluster import quiet_ray, start_ray, take_turn
from pipeline.run.collect import Collector, mark_as_crashed
from pipeline.run.measure import ModelLock, measure, name_node, name_worker
from pipeline.run.metrics import start_monitor
from pipeline.run.passes import ALONE, PassSettings
from pipeline.run.placement import Placement, place_actors
from pipeline.run.ray_private import map_blocks
from pipeline.run.watch import ProgressLine, RunWatch
from pipeline.schema import RESULTS
from pipeline.store.commit import RunCommitter
from pipeline.store.write import WriteSettings, keep_mantissa_bits, write_parts

logger = logging.getLogger(__name__)


class EmbedderActor:
    """An ``Embedder`` in a Ray actor, which tells the monitor what it does.

    Several calls may run at once: one has its turn with the model, while Ray takes in or carries off the others'
    blocks.

    Args:
        start: Starts the embedder, on the actor's node.
        monitor: Is told of it.
        block_bytes: Of what travels together.
    """

    def __init__(self, start: Callable[[], Embedder], monitor: Any, block_bytes: int) -> None:
        self.embedder = start()
        self.monitor, self.block_bytes = monitor, block_bytes
        self.model_lock = ModelLock() if self.embedder.settings.device == "cuda" else None
        monitor.add_model.remote(name_worker(), name_node(), self.embedder.settings.device)

    def __call__(self, decoded: pa.Table) -> Iterator[pa.Table]:
        """Embed decoded rows, in several tables."""
        embed = partial(self.embedder.embed_rows, model_lock=self.model_lock)
        try:
            yield from run_stage(
                self.block_bytes,
                "embed",
                self.monitor,
                self.embedder.settings.windows,
                embed,
                decoded,
                self.model_lock,
            )
        except DeviceError:
            logger.exception("this process ends, so that Ray starts another")
            os._exit(1)  # raised, the error would cost the block and leave the actor to spoil the next one


@dataclass(frozen=True)
class EmbedderStart:
    """What an actor starts its embedder from: its weights lie in the object store, so that no node needs the file.

    Args:
        weights: The state dict as NumPy arrays.
        model: The checkpoint without its weights.
        recipes: The run's recipes by id.
        settings: What to compute.
        num_threads: Torch threads.
        on_gpu: Whether the actor has a GPU to itself: it then computes there, or not at all.
    """

    weights: ray.ObjectRef[dict[str, np.ndarray]]
    model: Checkpoint
    recipes: Mapping[str, Recipe]
    settings: RunSettings
    num_threads: int
    on_gpu: bool

    @classmethod
    def share(
        cls, checkpoint: Checkpoint, recipes: Mapping[str, Recipe], settings: RunSettings, placement: Placement
    ) -> EmbedderStart:
        """Put a checkpoint's weights into the object store; the arguments are the class's."""
        weights = ray.put({name: tensor.numpy() for name, tensor in checkpoint.state_dict.items()})
        model = replace(checkpoint, state_dict={})
        return cls(weights, model, recipes, settings, placement.num_threads, placement.num_gpus > 0)

    def __call__(self) -> Embedder:
        """Start the embedder here, on what the placement gave it; DeviceError where the model does not run."""
        torch.set_num_threads(self.num_threads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to weights
            state_dict = {name: torch.from_numpy(array) for name, array in ray.get(self.weights).items()}
        device = "cuda" if self.on_gpu else "cpu"
        settings = choose_embedder_settings(self.recipes, replace(self.settings, device=device))
        embedder = Embedder(replace(self.model, state_dict=state_dict), settings)
        embedder.check_device()
        return embedder


def choose_placement(settings: RunSettings, model: ModelConfig) -> Placement:
    """Start or join Ray and choose where the model's actors go.

    Args:
        settings: What to compute, and on what.
        model: Sizes of the model.

    Raises:
        UsageError: ``cuda`` is wanted, and no node has a GPU.
    """
    start_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return place_actors(nodes, settings.device, settings.num_gpus, count_window_tflop(model, max(settings.layers)))


def build_write_settings(recipes: Mapping[str, Recipe], settings: RunSettings, run_id: str) -> WriteSettings:
    """Return where and how write tasks write."""
    url, options = settings.store.table_url("frames"), settings.store.options
    return WriteSettings(url, keep_mantissa_bits(recipes), run_id, options)


def build_dataset(
    rows: pa.Table,
    start: EmbedderStart,
    run_id: str,
    placement: Placement,
    careful: PassSettings,
    monitor: Any,
    known: ray.ObjectRef[np.ndarray] | None = None,
) -> ray.data.Dataset:
    """Lay out one pass as a Ray Data pipeline whose rows are results of write tasks.

    Args:
        rows: Rows of ``schema.PLAN``, sorted by track_id.
        start: Starts the model; says what to compute.
        run_id: The run.
        placement: Where actors and tasks go.
        careful: How careful the pass is.
        monitor: Is told what each task does.
        known: From ``known_content.list_prefixes``, shared.

    Returns:
        A lazy dataset of ``schema.RESULTS``.
    """
    settings = start.settings
    decode = partial(
        decode_or_recognise,
        shared=known,
        audio_options=settings.audio_options,
        max_duration_s=settings.max_duration_s,
        decode=decode_audio_apart if careful.isolated else decode_audio_in_time,
    )
    write = partial(write_or_refuse, settings=build_write_settings(start.recipes, settings, run_id))
    block_bytes = count_block_bytes(careful.tracks_per_block)
    task: dict[str, Any] = {
        "num_cpus": placement.task_num_cpus,
        "memory": placement.task_heap_bytes,
        # Ray Data starts tasks again without end where it is not told otherwise.
        "ray_remote_args_fn": lambda: {"max_retries": careful.max_retries},
    }
    actor: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(
            size=placement.num_actors,
            # Where workers died, a track is to have the actor to itself.
            max_concurrent_calls_per_actor=1 if careful.isolated else placement.calls_per_actor,
        ),
        "fn_constructor_args": (start, monitor, block_bytes),
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "ray_remote_args_fn": lambda: {"max_task_retries": careful.max_retries},
    }
    planned = share_plan(rows, careful.tracks_per_block, careful.known_sizes_bytes)
    # A block whose worker died for good is left out, and its tracks are tried again. (-1, for any number, hangs.)
    # Long tracks leave the block in which they were planned, so that there may be one for each row.
    planned.context.max_errored_blocks = rows.num_rows
    decoded = map_blocks(
        planned, partial(run_stage, block_bytes, "decode", monitor, settings.windows, decode), **task
    )
    # Blocks stay as they come, so that long tracks do not fill the memory; the embedder makes batches of windows.
    embedded = map_blocks(decoded, EmbedderActor, **actor)
    return map_blocks(embedded, partial(run_stage, block_bytes, "write", monitor, settings.windows, write), **task)


def run_stage(block_bytes: int, *measured: Any) -> Iterator[pa.Table]:
    """Run one task of a stage, with the arguments of ``measure``; so many bytes of its tables travel joined."""
    return join_tables(measure(*measured), block_bytes)


def decode_or_recognise(
    rows: pa.Table, shared: ray.ObjectRef[np.ndarray] | None, **settings: Any
) -> Iterator[pa.Table]:
    """Call ``decode_tracks`` with the hashes that are known; every task of a node reads the same copy of them."""
    return decode_tracks(rows, known=None if shared is None else ray.get(shared), **settings)


def process_tracks(
    rows: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    committer: RunCommitter,
    watch: RunWatch,
    known: KnownContent | None = None,
) -> None:
    """Run the pipeline over the planned rows and commit as results come in.

    A file may kill the worker that decodes it, or a track the one that embeds it. Blocks lost that way are left
    out and the pass goes on; what has no outcome then is tried again, each track in a block of its own and each
    file decoded in a child process. What still has none is recorded as a failure.

    Args:
        rows: Rows of ``schema.PLAN``, sorted by track_id.
        checkpoint: The model.
        recipes: The run's recipes by id.
        settings: What to compute.
        committer: Takes the results.
        watch: Is told of the run's course.
        known: Content that is left undecoded.

    Raises:
        RunError: The store refuses, the model cannot be started, no track gets through, or the cluster stalls.
        UsageError: A GPU is asked for and there is none.
    """
    watch.enter("starting Ray")
    placement = choose_placement(settings, checkpoint.config).fit(rows.num_rows)
    start = EmbedderStart.share(checkpoint, recipes, settings, placement)
    num_planned = rows.num_rows
    with take_turn(committer.writer.renew_lease), quiet_ray():
        watch.enter("starting the model", f"{num_planned:,} tracks to embed: starting the model")
        watch.work_began_s = watch.age_s()
        shared = None if known is None else ray.put(known.prefixes)
        first = PassSettings(placement.tracks_per_block, False, 3, known and known.sizes_bytes)
        monitor = start_monitor(committer.run_id, num_planned)
        with closing(ProgressLine(num_planned)) as line:
            collector = Collector(settings, placement, committer, monitor, watch, line)
            for careful in (first, ALONE, ALONE):
                collector.collect(
                    partial(build_dataset, rows, start, committer.run_id, placement, careful, monitor, shared)
                )
                done = pa.array(sorted(committer.done), pa.string())
                rows = rows.filter(pc.invert(pc.is_in(rows.column("track_id"), done)))
                if rows.num_rows == 0:
                    return
                logger.warning("%d tracks have no outcome: their workers died", rows.num_rows)
                monitor.forget_running.remote()
            if rows.num_rows == num_planned > 1:
                raise RunError(
                    f"not one of {num_planned} tracks got through: every worker died; the Ray logs of the last "
                    "tasks say why (memory, GPU driver, a missing library)"
                )
            write_settings = build_write_settings(recipes, settings, committer.run_id)
            collector.accept(write_parts(mark_as_crashed(rows), write_settings))
            collector.tell_outcomes()


def write_or_refuse(embedded: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write parts; where the store does not take them, say so in the result: an exception would cost a block."""
    try:
        return write_parts(embedded, settings)
    except StorageError as error:
        return pa.Table.from_pylist([{"refusal": str(error)}], schema=RESULTS)
