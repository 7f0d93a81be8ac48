"""Pretraining on Ray Train: two workers are as one, and a group that loses one goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from jobs.pretrain import main
from tests.corpus import encode_clip, load_music

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 24
FLAGS = [
    *("--embed-dim", "16", "--num-layers", "2", "--num-heads", "2", "--ffn-dim", "16", "--conv-dim", "4"),
    *("--codebook-size", "64", "--num-warmup-steps", "2", "--masked-s", "4", "--contrast-s", "8"),
    *("--crop-lengths-s", "2", "--num-steps", str(NUM_STEPS), "--num-slots", "2"),
    *("--report-every", "1", "--measure-every", "0", "--save-every", "2", "--held-out-share", "0.01"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Music, and what comes of runs on it."""
    folder = tmp_path_factory.mktemp("group")
    (folder / "music").mkdir()
    for number in range(3):
        encode_clip(folder / f"music/{number}.flac", load_music(seconds=5.0 + number, sample_rate=24_000), 24_000)
    return folder


def train(folder: Path, name: str, num_workers: int) -> dict[str, Any]:
    """Run the command, and return the state that its run ended with."""
    where = ["--audio", str(folder / "music"), "--out", str(folder / "out"), "--name", name]
    assert main([*where, "--num-workers", str(num_workers), *FLAGS]) == 0
    state: dict[str, Any] = torch.load(folder / "out" / name / "state.pt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def one(folder: Path, local_ray: None) -> dict[str, Any]:
    """A run in one process."""
    return train(folder, "one", 0)


def check_same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the curves step by step, and the weights at their end."""
    assert [line["step"] for line in state["curve"]] == list(range(1, NUM_STEPS + 1))
    for name in ("cross_entropy", "accuracy", "vector_2", "grad_norm"):
        curves = [[line[name] for line in each["curve"]] for each in (state, expected)]
        assert curves[0] == pytest.approx(curves[1], rel=2e-3, abs=2e-3), name
    for name, parameter in expected["model"].items():
        # Running statistics are the first worker's own: of half of the crops.
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(parameter.float(), state["model"][name].float(), rtol=1e-2, atol=1e-3), name


def test_two_workers_are_as_one(folder: Path, one: dict[str, Any]) -> None:
    check_same(train(folder, "two", 2), one)
    assert (folder / "out/two/two.pt").is_file()


def find_workers() -> list[int]:
    """Return processes of Ray Train's workers that a Ray of this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            pid = int(path.parent.name)
            if b"RayTrainWorker" in path.read_bytes() and os.getpid() in list_ancestors(pid):
                found.append(pid)
    return found


def list_ancestors(pid: int) -> list[int]:
    """Return the processes that a process descends from, itself first."""
    found = []
    while pid > 1:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def kill_worker_once_saved(state: Path, killed: list[int]) -> None:
    """Kill one worker as soon as the run has saved a state."""
    deadline_s = time.monotonic() + 600
    while not state.exists() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    for pid in find_workers()[-1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(torch.load(state, weights_only=True)["next_step"])


def test_a_group_that_loses_a_worker_starts_again_from_the_last_state(folder: Path, one: dict[str, Any]) -> None:
    killed: list[int] = []
    state = folder / "out/lost/state.pt"
    killer = threading.Thread(target=kill_worker_once_saved, args=(state, killed))
    killer.start()
    try:
        found = train(folder, "lost", 2)
    finally:
        killer.join()
    assert len(killed) == 1
    assert killed[0] < NUM_STEPS
    check_same(found, one)


def test_two_nodes_are_as_one(folder: Path, one: dict[str, Any]) -> None:
    resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        cluster.add_node(**resources)  # a worker takes a processor, so that each node has one
        cluster.wait_for_nodes()
        where = ["--audio", str(folder / "music"), "--out", str(folder / "out"), "--name", "nodes"]
        done = subprocess.run(
            [sys.executable, "jobs/pretrain.py", *where, "--num-workers", "2", *FLAGS],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(torch.load(folder / "out/nodes/state.pt", weights_only=True), one)
