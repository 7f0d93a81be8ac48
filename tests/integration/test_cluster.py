"""The job on a cluster of three nodes, one of which has a GPU: each stage on the nodes that are meant for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.corpus import encode_clip, load_music

ROOT = Path(__file__).resolve().parents[2]
NUM_TRACKS = 70  # two blocks of the size that a GPU gets
MEMORY_BYTES = 8 * 2**30  # as nodes of that size would say; all three lie on this machine

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class ThreeNodes:
    """A cluster's address, and ids of its nodes, cut as the report has them."""

    address: str
    with_gpu: set[str]
    without: set[str]


@pytest.fixture(scope="module", autouse=True)
def _pretended_gpu() -> Iterator[None]:
    """Let the processes of clusters that start meanwhile take a GPU that Ray is told of for one."""
    folders = [str(ROOT / "tests/pretended_gpu"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        yield


@pytest.fixture(scope="module")
def cluster(_pretended_gpu: None) -> Iterator[ThreeNodes]:
    """Two nodes of two processors, and one with a GPU that is only said to be there."""
    resources: dict[str, Any] = {"num_cpus": 2, "memory": MEMORY_BYTES, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**resources, "num_gpus": 0})
    try:
        plain = [cluster.head_node, cluster.add_node(**resources, num_gpus=0)]
        gpu = cluster.add_node(**resources, num_gpus=1)
        cluster.wait_for_nodes()
        yield ThreeNodes(cluster.address, {gpu.node_id[:8]}, {node.node_id[:8] for node in plain})
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    encode_clip(folder / "0.wav", load_music(seconds=0.5, sample_rate=24_000), 24_000)
    for number in range(1, NUM_TRACKS):
        os.link(folder / "0.wav", folder / f"{number}.wav")
    return folder


def start(audio: Path, store: Path, checkpoint: Path, address: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/embed_catalog.py", "--audio", str(audio), "--store", str(store)]
    command += ["--checkpoint", str(checkpoint), "--layers", "2", "--resolutions", "global", *flags]
    environment = os.environ | {"RAY_ADDRESS": address}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(job: subprocess.Popen[str], store: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the command's last line and the run's report."""
    try:
        output, errors = job.communicate(timeout=200)
    finally:
        job.kill()
    assert job.returncode == 0, output + errors
    line = json.loads(output.splitlines()[-1])
    return line, json.loads((store / "reports" / f"{line['run_id']}.json").read_text())


def list_used(report: dict[str, Any]) -> dict[str, set[str]]:
    """Return the nodes of each stage."""
    return {
        stage: {name.split("/")[1] for name in where if where[name]["num_tracks"]}
        for stage, where in report["placement"].items()
    }


def test_decoding_and_writing_keep_off_the_node_with_the_gpu(
    cluster: ThreeNodes, audio: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    line, report = finish(start(audio, tmp_path / "store", tiny_checkpoint, cluster.address), tmp_path / "store")
    assert (line["planned"], line["embedded"], line["failed"]) == (NUM_TRACKS, NUM_TRACKS, 0)
    assert (len(cluster.with_gpu), len(cluster.without)) == (1, 2)
    used = list_used(report)
    assert used["embed"] == cluster.with_gpu
    assert used["decode"] <= cluster.without
    assert used["write"] <= cluster.without
    for where in report["placement"].values():
        assert sum(node["num_tracks"] for node in where.values()) == NUM_TRACKS
    # The GPU is reserved, and torch has no CUDA here: the model says what it really computed on.
    devices = {name.split("/")[1]: device for name, device in report["devices"].items()}
    assert devices == dict.fromkeys(cluster.with_gpu, "cpu")
    page = (tmp_path / "store" / "reports" / f"{line['run_id']}.html").read_text()
    assert all(node in page for stage in used.values() for node in stage)


def test_a_dry_run_reckons_with_the_gpu(
    cluster: ThreeNodes, audio: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    job = start(audio, tmp_path / "store", tiny_checkpoint, cluster.address, "--dry-run")
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, output + errors
    line = json.loads(output.splitlines()[-1])
    assert line["planned"] == NUM_TRACKS
    assert line["estimate"]["num_tracks"] == NUM_TRACKS
    assert not (tmp_path / "store").exists()


def test_a_run_begins_with_the_gpus_that_are_there_while_it_asks_for_more(
    cluster: ThreeNodes, audio: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("num-gpus = 1\nstall-timeout-s = 100\n")
    flags = ["--config", str(settings), "--num-gpus", "2"]
    job = start(audio, tmp_path / "store", tiny_checkpoint, cluster.address, *flags)
    line, report = finish(job, tmp_path / "store")
    assert (line["embedded"], line["failed"]) == (NUM_TRACKS, 0)
    assert list_used(report)["embed"] == cluster.with_gpu
    configuration = report["configuration"]
    assert (configuration["num-gpus"], configuration["stall-timeout-s"], configuration["layers"]) == (2, 100, [2])


def test_a_run_begins_on_a_head_alone_and_keeps_stages_apart_as_nodes_come(
    audio: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    resources: dict[str, Any] = {"memory": MEMORY_BYTES, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**resources, "num_cpus": 0, "num_gpus": 0})
    try:
        flags = ["--num-gpus", "2"]
        job = start(audio, tmp_path / "store", tiny_checkpoint, cluster.address, *flags)
        time.sleep(15)  # as long as a machine takes to come: the run waits
        assert job.poll() is None
        plain = cluster.add_node(**resources, num_cpus=4, num_gpus=0)
        gpu = cluster.add_node(**resources, num_cpus=1, num_gpus=1)  # as the manifests have it
        line, report = finish(job, tmp_path / "store")
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    assert (line["embedded"], line["failed"]) == (NUM_TRACKS, 0)
    plain_id, gpu_id = plain.node_id[:8], gpu.node_id[:8]
    assert list_used(report) == {"decode": {plain_id}, "embed": {gpu_id}, "write": {plain_id}}
