"""Placement: how many model actors a cluster gets, and what each actor and task asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UsageError

TRACKS_PER_BLOCK_CPU = 8  # a block is what a killed run loses: on a CPU a few minutes of work
TRACKS_PER_BLOCK_GPU = 64
MAX_CPUS_PER_ACTOR = 16  # more threads than this do not speed up one model
TASK_HEAP_BYTES = 2**30  # a bulk read of 256 MiB, a long track's waveform and its copies


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
    """

    num_actors: int
    num_gpus: int
    num_cpus: float
    num_threads: int
    task_num_cpus: float
    task_heap_bytes: int
    tracks_per_block: int

    def fit(self, num_tracks: int) -> Placement:
        """Return the placement with no more actors than a run of so many tracks has blocks."""
        num_blocks = -(-num_tracks // self.tracks_per_block)
        return replace(self, num_actors=max(1, min(self.num_actors, num_blocks)))


def place_actors(
    nodes: Sequence[Mapping[str, float]], device: str | None, num_gpus: int | None = None
) -> Placement:
    """Choose one actor per GPU, or one per node where the cluster has no GPU (or is told not to use them).

    Args:
        nodes: Resources of each node, as Ray names them.
        device: ``cuda``, ``cpu`` or None for what there is.
        num_gpus: GPUs to use, by default those that are there; more make an autoscaler add nodes, which shows its
            limits to nobody.

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
        share = _share_of_cpus(nodes)
        if share is not None:
            num_threads = min(MAX_CPUS_PER_ACTOR, max(1, int(share)))
            return Placement(num_gpus, 1, share, num_threads, 1, heap_bytes, TRACKS_PER_BLOCK_GPU)
        are_coming = not any(node.get("GPU", 0) for node in nodes)  # with a CPU for each GPU at least
        has_room = all(node.get("CPU", 0) >= node.get("GPU", 0) for node in nodes)
        num_cpus = 1 if are_coming or (has_room and sum(node.get("CPU", 0) for node in nodes) > num_gpus) else 0
        return Placement(num_gpus, 1, num_cpus, 1, 1, heap_bytes, TRACKS_PER_BLOCK_GPU)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 2]
    if not cpus:
        num_nodes = sum(node.get("CPU", 0) >= 1 for node in nodes)
        return Placement(max(1, num_nodes), 0, 0.5, 1, 0.5, heap_bytes, TRACKS_PER_BLOCK_CPU)
    # Decoding and writing take a small part of what the model takes, so it may use the last core as well.
    num_threads = min(*cpus, MAX_CPUS_PER_ACTOR)
    return Placement(len(cpus), 0, num_threads - 1, num_threads, 1, heap_bytes, TRACKS_PER_BLOCK_CPU)


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
