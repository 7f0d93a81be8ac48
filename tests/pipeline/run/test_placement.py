import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.run.placement import Placement, describe_stall, place_actors

GIB = 2**30

cpu_nodes = st.lists(
    st.fixed_dictionaries(
        {
            "CPU": (st.integers(1, 2) | st.integers(1, 128)).map(float),
            "memory": st.integers(1, 64).map(lambda n: n * GIB / 2),
        }
    ),
    min_size=1,
    max_size=6,
)
gpu_nodes = st.lists(
    st.fixed_dictionaries(
        {"CPU": (st.integers(1, 2) | st.integers(1, 128)).map(float)},
        optional={"GPU": st.integers(1, 8).map(float)},
    ),
    min_size=1,
    max_size=6,
).filter(lambda nodes: any("GPU" in node for node in nodes))


def count_task_slots(nodes: list[dict[str, float]], placement: Placement) -> int:
    """Place the actors on the first node with room, as if Ray did its worst; count the tasks that fit beside."""
    free = [dict(node) for node in nodes]
    for _ in range(placement.num_actors):
        node = next(
            node
            for node in free
            if node["CPU"] >= placement.num_cpus - 1e-9 and node.get("GPU", 0) >= placement.num_gpus
        )
        node["CPU"] -= placement.num_cpus
        node["GPU"] = node.get("GPU", 0) - placement.num_gpus
    return sum(math.floor(node["CPU"] / placement.task_num_cpus + 1e-9) for node in free)


window_tflops = st.floats(0.0, 2.0)


@given(cpu_nodes, st.sampled_from([None, "cpu"]), window_tflops)
def test_models_without_a_gpu_fill_cpus_and_no_more(
    nodes: list[dict[str, float]], device: str | None, window_tflop: float
) -> None:
    placement = place_actors(nodes, device, None, window_tflop)
    larger = [node for node in nodes if node["CPU"] >= 2]  # where there are any, the others only decode and write
    assert placement.num_gpus == 0
    assert len(larger or nodes) <= placement.num_actors
    assert placement.num_actors * placement.num_threads <= sum(node["CPU"] for node in larger or nodes)
    assert 1 <= placement.num_threads <= min(node["CPU"] for node in larger or nodes)


@given(cpu_nodes, window_tflops)
def test_models_leave_half_of_the_memory_or_are_one_a_node(
    nodes: list[dict[str, float]], window_tflop: float
) -> None:
    placement = place_actors(nodes, None, None, window_tflop)
    peak_bytes = (1 + 2 * window_tflop) * GIB
    assert placement.num_actors <= sum(max(1, node["memory"] / 2 / peak_bytes) for node in nodes)


@given(cpu_nodes, window_tflops)
def test_cpu_actors_leave_room_for_tasks(nodes: list[dict[str, float]], window_tflop: float) -> None:
    assert count_task_slots(nodes, place_actors(nodes, None, None, window_tflop)) >= 2  # one decodes, one writes


@pytest.mark.parametrize(
    ("window_tflop", "cpus", "num_actors", "num_threads", "num_cpus"),
    [
        (0.002, 2.0, 2, 1, 0.5),  # a model that one thread computes as fast as two
        (0.015, 8.0, 8, 1, 0.875),
        (0.075, 2.0, 1, 2, 1),  # 1.9 times as fast on two
        (0.075, 8.0, 4, 2, 1.75),
        (1.09, 2.0, 1, 2, 1),  # as published
        (1.09, 32.0, 2, 16, 15.5),
    ],
)
def test_a_model_gets_the_threads_that_its_size_keeps_busy(
    window_tflop: float, cpus: float, num_actors: int, num_threads: int, num_cpus: float
) -> None:
    placement = place_actors([{"CPU": cpus}], None, None, window_tflop)
    assert (placement.num_actors, placement.num_threads, placement.num_cpus) == (num_actors, num_threads, num_cpus)


@pytest.mark.parametrize(("num_tracks", "num_actors"), [(1, 1), (32, 1), (33, 2), (1000, 8)])
def test_a_second_small_model_is_started_where_there_is_work_for_it(num_tracks: int, num_actors: int) -> None:
    assert place_actors([{"CPU": 8.0}], None, None, 0.002).fit(num_tracks).num_actors == num_actors


@given(gpu_nodes, st.sampled_from([None, "cuda"]))
def test_every_gpu_gets_an_actor_and_tasks_have_room(nodes: list[dict[str, float]], device: str | None) -> None:
    placement = place_actors(nodes, device)
    assert placement.num_actors == sum(node.get("GPU", 0) for node in nodes)
    assert placement.num_gpus == 1
    assert count_task_slots(nodes, placement) >= (2 if sum(node["CPU"] for node in nodes) > 1 else 1)


@given(gpu_nodes)
def test_gpus_are_left_alone_when_told_so(nodes: list[dict[str, float]]) -> None:
    without = [{"CPU": node["CPU"]} for node in nodes]
    assert place_actors(nodes, "cpu") == place_actors(without, None)


@given(cpu_nodes)
def test_a_task_never_asks_for_more_memory_than_four_of_them_have(nodes: list[dict[str, float]]) -> None:
    placement = place_actors(nodes, None)
    assert 4 * placement.task_heap_bytes <= max(4 * GIB, min(node["memory"] for node in nodes))
    assert all(
        4 * placement.task_heap_bytes <= node["memory"] or placement.task_heap_bytes == GIB for node in nodes
    )


@pytest.mark.parametrize(
    ("nodes", "num_actors", "num_cpus", "num_threads", "task_num_cpus"),
    [
        ([{"CPU": 1.0}], 1, 0.5, 1, 0.25),  # half of the only core is left
        ([{"CPU": 2.0}], 1, 1, 2, 0.5),
        ([{"CPU": 8.0}], 1, 7, 8, 0.5),
        ([{"CPU": 64.0}], 4, 15.75, 16, 0.5),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, 3, 4, 0.5),
        ([{"node:10.0.0.1": 1.0}, {"CPU": 4.0}], 1, 3, 4, 0.5),  # a head that does no work
        ([{"CPU": 16.0, "GPU": 1.0}], 1, 1, 1, 1),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 8.0}], 8, 1, 1, 1),  # too few beside: the GPU's node decodes as well
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 32.0}], 8, 2, 2, 1),
        ([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}], 1, 2, 2, 1),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}], 2, 4, 4, 1),
        ([{"CPU": 0.0}, {"CPU": 96.0, "GPU": 4.0}, {"CPU": 96.0}], 4, 24, 16, 1),  # no more threads than help
    ],
)
def test_clusters_as_people_have_them(
    nodes: list[dict[str, float]], num_actors: int, num_cpus: float, num_threads: int, task_num_cpus: float
) -> None:
    placement = place_actors(nodes, None)
    assert (placement.num_actors, placement.num_cpus) == (num_actors, num_cpus)
    assert (placement.num_threads, placement.task_num_cpus) == (num_threads, task_num_cpus)


def test_blocks_are_larger_where_a_gpu_works_them_off() -> None:
    on_cpu, on_gpu = (place_actors([{"CPU": 8.0, "GPU": gpus}], None) for gpus in (0.0, 1.0))
    assert 1 < on_cpu.tracks_per_block < on_gpu.tracks_per_block
    assert 1 == on_cpu.calls_per_actor < on_gpu.calls_per_actor


@given(cpu_nodes)
def test_cuda_without_a_gpu_is_a_mistake(nodes: list[dict[str, float]]) -> None:
    with pytest.raises(UsageError, match="--device cuda: expected a GPU in the cluster, found none"):
        place_actors(nodes, "cuda")


@given(gpu_nodes)
def test_cpu_stages_keep_off_gpu_nodes_of_one_kind_where_others_have_as_many_cpus(
    nodes: list[dict[str, float]],
) -> None:
    gpu_node = next(node for node in nodes if node.get("GPU"))
    others = [{"CPU": node["CPU"]} for node in nodes]
    if sum(node["CPU"] for node in others) < 2 * gpu_node["CPU"]:
        others.append({"CPU": 2 * gpu_node["CPU"]})
    placement = place_actors([gpu_node, gpu_node, *others], None)
    assert placement.num_cpus * gpu_node["GPU"] == pytest.approx(gpu_node["CPU"])
    assert count_task_slots([gpu_node, gpu_node], placement) == 0


@given(st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 64).map(float)}), min_size=1), st.integers(1, 99))
def test_gpus_that_an_autoscaler_has_yet_to_add_are_asked_for(
    nodes: list[dict[str, float]], num_gpus: int
) -> None:
    for device in (None, "cuda"):
        placement = place_actors(nodes, device, num_gpus)
        assert (placement.num_actors, placement.num_gpus) == (num_gpus, 1)
        assert placement.num_cpus == 1  # fits any node that may come


def test_fewer_gpus_than_there_are_may_be_used() -> None:
    assert place_actors([{"CPU": 32.0, "GPU": 8.0}], None, 2).num_actors == 2


@pytest.mark.parametrize(("num_tracks", "num_actors"), [(1, 1), (32, 1), (64, 1), (65, 2), (10_000, 8)])
def test_a_small_run_starts_no_more_actors_than_it_has_blocks(num_tracks: int, num_actors: int) -> None:
    assert place_actors([{"CPU": 32.0, "GPU": 8.0}], None).fit(num_tracks).num_actors == num_actors


@pytest.mark.parametrize(
    ("num_tracks", "store_gib", "tracks_per_block"),
    [
        (64, 100, 64),
        (8_000, 100, 64),  # 16 blocks for each of 8 GPUs
        (50_000, 100, 97),
        (1_000_000, 100, 192),
        (1_000_000, 36, 96),  # of 3 MiB a clip, four blocks for each of 32 CPUs
        (1_000_000, 8, 64),
        (1_000_000, None, 64),
    ],
)
def test_blocks_of_a_large_run_grow_as_far_as_there_is_room(
    num_tracks: int, store_gib: int | None, tracks_per_block: int
) -> None:
    room = {} if store_gib is None else {"object_store_memory": store_gib * float(GIB)}
    nodes = [{"CPU": 32.0, "GPU": 8.0, **room}, {"CPU": 2.0, **room}]
    placement = place_actors(nodes, None).fit(num_tracks)
    assert placement.tracks_per_block == tracks_per_block
    assert (
        place_actors([{"CPU": 32.0, "object_store_memory": 90.0 * GIB}], None).fit(num_tracks).tracks_per_block
        == 8
    )


def test_a_large_model_starts_on_every_node_of_one_core_that_has_a_block() -> None:
    assert place_actors([{"CPU": 1.0}] * 4, None).fit(16).num_actors == 2


def test_a_stall_says_what_it_waits_for() -> None:
    placement = place_actors([{"CPU": 4.0, "GPU": 2.0, "memory": 2.0 * GIB}], None)
    text = describe_stall(90.0, placement, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 0.5})
    assert "no track finished for 90 s" in text
    assert "2 model actors with 1 GPU and 1 CPU each" in text
    assert "tasks with 1 CPU and 0.5 GiB" in text
    assert "free 0.5 of 4 CPU, 0 of 2 GPU" in text
    assert "\n" not in text
