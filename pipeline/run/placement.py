"""Placement: how many model actors a cluster gets, and what each actor and task asks of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UsageError

TRACKS_PER_BLOCK_CPU = 8  # a block is what a killed run loses: on a CPU a few minutes of work
TRACKS_PER_BLOCK_GPU = 64  # clips: 184 MB of waveforms; fills batches
MAX_TRACKS_PER_BLOCK_GPU = 192  # of a large run: a block costs its driver 20 core-ms, whatever it holds
BLOCKS_BEFORE_LARGER = 64  # that each actor has before they grow: the last of all are waited for
BLOCKS_STORED_PER_CPU = 4  # in a node's object store: a task's own, what waits, what an actor has and gives
CLIP_BYTES = 3 * 2**20  # of a clip's waveform, or its frames
CALLS_PER_GPU = 2  # a GPU is through with a block sooner than Ray with carrying it off
MAX_CPUS_PER_ACTOR = 16  # more threads than this do not speed up one model
TFLOP_PER_THREAD = 0.05  # of a window: with less for each, threads mostly wait for each other
BLOCKS_WORTH_A_START = 4  # of a small model: starting another takes some seconds of a core
TASK_HEAP_BYTES = 2**30  # a bulk read of 256 MiB, a long track's waveform and its copies
ACTOR_HEAP_BYTES = 2**30  # of a small model, its libraries included
ACTOR_HEAP_BYTES_PER_TFLOP = 2 * 2**30  # of a window: the published model peaks at 2.9 GiB
PUBLISHED_WINDOW_TFLOP = 1.09

# For the workers of a Ray that a run starts itself; clusters have it from infra/docker and infra/slurm.
WORKER_ENVIRONMENT = {
    # A model's threads that wait for each other leave their cores to decoding and writing. Spinning, as is the
    # default, took three times the processor time where cores are shared.
    "OMP_WAIT_POLICY": "passive",
    # The C library keeps freed memory for the next track: to get it anew took up to 8 % of a model's time.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    # Ray ends workers that idle for a second where there are more than cores; each takes seconds to start.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Batches of many shapes then share a GPU's memory, instead of each leaving behind blocks that fit no other.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


@dataclass(frozen=True)
class Placement:
    """How the model's actors lie on the cluster.

    Args:
        num_actors: Size of the actor pool.
        num_gpus: GPUs of each actor.
        num_cpus: CPUs of each actor.
        num_threads: Torch threads of each actor.
        task_num_cpus: CPUs of each decode and write task.
        task_heap_bytes: Memory declared for each such task, so that Ray does not pack a node with too many.
        tracks_per_block: Tracks that one task takes.
        blocks_per_actor: Blocks for whose sake an actor is worth its start.
        calls_per_actor: Blocks that an actor holds at once: one in the model, others on their way in or out.
        max_tracks_per_block: Tracks that a task takes where a run has very many.
    """

    num_actors: int
    num_gpus: int
    num_cpus: float
    num_threads: int
    task_num_cpus: float
    task_heap_bytes: int
    tracks_per_block: int
    blocks_per_actor: int = 1
    calls_per_actor: int = 1
    max_tracks_per_block: int = 0

    def fit(self, num_tracks: int) -> Placement:
        """Return the placement for so many tracks: no actors without work, and larger blocks for very many."""
        num_useful = math.ceil(num_tracks / (self.tracks_per_block * self.blocks_per_actor))
        larger = min(self.max_tracks_per_block, num_tracks // (self.num_actors * BLOCKS_BEFORE_LARGER))
        return replace(
            self,
            num_actors=max(1, min(self.num_actors, num_useful)),
            tracks_per_block=max(self.tracks_per_block, larger),
        )


def place_actors(
    nodes: Sequence[Mapping[str, float]],
    device: str | None,
    num_gpus: int | None = None,
    window_tflop: float = PUBLISHED_WINDOW_TFLOP,
) -> Placement:
    """Choose one actor per GPU, or where the cluster has none (or is told not to use them) what fills its CPUs.

    A model on CPUs gets as many threads as its size can keep busy, and a node as many models as it has CPUs and
    memory for: two models of one thread get through more than one of two.

    Args:
        nodes: Resources of each node, as Ray names them.
        device: ``cuda``, ``cpu`` or None for what there is.
        num_gpus: GPUs to use, by default those that are there; more make an autoscaler add nodes, which shows its
            limits to nobody.
        window_tflop: Operations of the model for a window, 10¹² of them.

    Returns:
        The placement. Where nodes without a GPU have at least as many CPUs as those with one, a GPU's actor takes
        its share of all CPUs of its node, which leaves decoding and writing to the others. Elsewhere at least one
        CPU, or half of the only one, is left for them on every node that holds an actor, so that the run goes on
        when other nodes are lost.

    Raises:
        UsageError: ``cuda`` is wanted, and no node has a GPU.
    """
    if num_gpus is None:
        num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and num_gpus == 0:
        raise UsageError("--device cuda: expected a GPU in the cluster, found none; leave it out to run on CPUs")
    smallest_memory_bytes = min(
        (node["memory"] for node in nodes if "memory" in node), default=4 * TASK_HEAP_BYTES
    )
    heap_bytes = int(min(TASK_HEAP_BYTES, smallest_memory_bytes / 4))
    if num_gpus and device != "cpu":
        return _place_on_gpus(nodes, num_gpus, heap_bytes)
    return _place_on_cpus(nodes, window_tflop, heap_bytes)


def _place_on_gpus(nodes: Sequence[Mapping[str, float]], num_gpus: int, heap_bytes: int) -> Placement:
    """Put a model on each GPU, and say what it takes of the CPUs."""
    share = _share_of_cpus(nodes)
    if share is not None:
        num_threads = min(MAX_CPUS_PER_ACTOR, max(1, int(share)))
        task_num_cpus = _share_with_tasks(nodes, num_gpus * share)
    else:
        are_coming = not any(node.get("GPU", 0) for node in nodes)  # with a CPU for each GPU at least
        has_room = all(node.get("CPU", 0) >= node.get("GPU", 0) for node in nodes)
        share = 1 if are_coming or (has_room and sum(node.get("CPU", 0) for node in nodes) > num_gpus) else 0
        num_threads = 1
        task_num_cpus = 1 if are_coming else _share_with_tasks(nodes, num_gpus * share)
    return Placement(
        num_actors=num_gpus,
        num_gpus=1,
        num_cpus=share,
        num_threads=num_threads,
        task_num_cpus=task_num_cpus,
        task_heap_bytes=heap_bytes,
        tracks_per_block=TRACKS_PER_BLOCK_GPU,
        calls_per_actor=CALLS_PER_GPU,
        max_tracks_per_block=_count_storable(nodes),
    )


def _count_storable(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the tracks of the largest blocks for which every node's object store has room."""
    room_bytes = min(
        (
            node["object_store_memory"] / max(1, node.get("CPU", 0))
            for node in nodes
            if "object_store_memory" in node
        ),
        default=0,
    )
    return min(MAX_TRACKS_PER_BLOCK_GPU, int(room_bytes / (BLOCKS_STORED_PER_CPU * CLIP_BYTES)))


def _place_on_cpus(nodes: Sequence[Mapping[str, float]], window_tflop: float, heap_bytes: int) -> Placement:
    """Fill the nodes that have at least two CPUs with models; the others only decode and write."""
    large = [node for node in nodes if node.get("CPU", 0) >= 2]
    if not large:
        num_nodes = sum(node.get("CPU", 0) >= 1 for node in nodes)
        return Placement(max(1, num_nodes), 0, 0.5, 1, 0.25, heap_bytes, TRACKS_PER_BLOCK_CPU)
    smallest = int(min(node["CPU"] for node in large))
    num_threads = min(smallest, MAX_CPUS_PER_ACTOR, max(1, math.ceil(window_tflop / TFLOP_PER_THREAD)))
    actor_bytes = ACTOR_HEAP_BYTES + ACTOR_HEAP_BYTES_PER_TFLOP * window_tflop

    def count(node: Mapping[str, float]) -> int:
        by_memory = node.get("memory", math.inf) / 2 / actor_bytes  # the other half is for tasks
        return int(max(1, min(node["CPU"] // num_threads, by_memory)))

    # Decoding and writing take a small part of what models take, so that these may compute on all CPUs of a node;
    # one of them is not reserved, and shared by a task that decodes and one that writes.
    num_cpus = min(num_threads, *((node["CPU"] - 1) / count(node) for node in large))
    num_actors = sum(count(node) for node in large)
    worth = BLOCKS_WORTH_A_START if window_tflop <= TFLOP_PER_THREAD else 1
    return Placement(num_actors, 0, num_cpus, num_threads, 0.5, heap_bytes, TRACKS_PER_BLOCK_CPU, worth)


def _share_with_tasks(nodes: Sequence[Mapping[str, float]], reserved: float) -> float:
    """Return the CPUs of a task, so that one that decodes and one that writes have room beside the models.

    Where there is room for one alone, Ray Data writes nothing before everything is decoded.
    """
    free = sum(node.get("CPU", 0) for node in nodes) - reserved
    return 1 if free >= 2 else 0.5


def _share_of_cpus(nodes: Sequence[Mapping[str, float]]) -> float | None:
    """Return the CPUs beside each GPU; None where the nodes without one have fewer, and all nodes decode."""
    with_gpu = [node for node in nodes if node.get("GPU", 0)]
    beside = sum(node.get("CPU", 0) for node in nodes if not node.get("GPU", 0))
    if not with_gpu or beside < sum(node.get("CPU", 0) for node in with_gpu):
        return None
    return min(node.get("CPU", 0) / node["GPU"] for node in with_gpu) or None


def describe_stall(
    stall_timeout_s: float, placement: Placement, total: Mapping[str, float], free: Mapping[str, float]
) -> str:
    """Say what a run without progress waits for.

    Args:
        stall_timeout_s: How long there was no result.
        placement: What the run asks of the cluster.
        total: Resources of the cluster, as Ray names them.
        free: Those of them that nobody holds.
    """
    has = ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return (
        f"no track finished for {stall_timeout_s:g} s. The run waits for {placement.num_actors} model actors with "
        f"{placement.num_gpus} GPU and {placement.num_cpus:g} CPU each, and for tasks with "
        f"{placement.task_num_cpus:g} CPU and {placement.task_heap_bytes / 2**30:.1f} GiB; the cluster has free "
        f"{has}. See `ray status`; give it more nodes, or raise --stall-timeout-s if single tracks take that long"
    )
