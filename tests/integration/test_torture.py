"""Breaking a run at random moments: in the end the tables are those of an undisturbed one.

``make test-slow`` takes one moment for all, ``make torture`` does it at length. The moments are drawn anew each
time, and the seed is printed where a test fails.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from ray.cluster_utils import Cluster

from pipeline.config import DEFAULT_RESOLUTIONS
from pipeline.errors import FeatureStoreError
from pipeline.location import StoreLocation
from pipeline.store.check import check_store
from pipeline.store.read import FeatureStore
from tests.corpus import encode_clip, load_music

ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS = int(os.environ.get("TORTURE_KILLS", "1"))
NUM_TRACKS = 24
NUM_SHARDS = 4

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    music = load_music(seconds=2.0 * NUM_TRACKS, sample_rate=24_000)
    for index in range(NUM_TRACKS):
        start = index * 48_000
        encode_clip(folder / f"track{index:02d}.wav", music[start : start + 30_000 + 500 * index], 24_000)
    (folder / "broken.mp3").write_bytes(b"not music")
    return folder


@contextmanager
def run_cluster(num_nodes: int) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def start_job(audio: Path, store: Path, checkpoint: Path, address: str, *others: str) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/embed_catalog.py", "--audio", str(audio), "--store", str(store)]
    command += ["--checkpoint", str(checkpoint), "--layers", "2", "--commit-interval-s", "0.5", *others]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish_job(job: subprocess.Popen[str]) -> None:
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, output + errors


def kill_driver(job: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.communicate()


def read_parent(pid: int) -> int:
    """Return the process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_an_actor() -> bool:
    """Kill a model actor, if one runs on a cluster of ours: this process starts nodes, and they start actors."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            pid = int(path.parent.name)
            if path.read_bytes().startswith(b"ray::MapWorker") and read_parent(read_parent(pid)) == os.getpid():
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def read_features(store: Path) -> dict[tuple[Any, ...], np.ndarray]:
    """All rows of ``frames``, dead ones too, and of the ledger by their keys; a key that stands twice fails."""
    found: dict[tuple[Any, ...], np.ndarray] = {}
    for row in DeltaTable(store / "frames").to_pyarrow_table().to_pylist():
        key = (row["recipe"], row["resolution"], row["track_id"], row["content_hash"])
        assert key not in found
        found[key] = np.array(row["embeddings"], np.float32)
    for row in DeltaTable(store / "tracks").to_pyarrow_table().to_pylist():
        key = (row["recipe"], "ledger", row["track_id"], row["content_hash"], *sorted(row["resolutions"]))
        assert key not in found
        found[key] = np.array(row["num_frames_25hz"])
    return found


def assert_same_store(store: Path, undisturbed: Path) -> None:
    report = check_store(StoreLocation(str(store)), deep=True)
    assert not report.problems
    found, expected = read_features(store), read_features(undisturbed)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        # One unit of the last of ten bits, where rounding fell to the other side.
        np.testing.assert_allclose(found[key], values, rtol=2.0**-9, atol=1e-6)
    failed = [
        {(row["track_id"], row["error_type"]) for row in DeltaTable(s / "failures").to_pyarrow_table().to_pylist()}
        for s in (store, undisturbed)
    ]
    assert failed[0] == failed[1] == {("broken.mp3", "unreadable")}


@dataclass
class Watcher:
    """A reader that polls a store for as long as it is being broken."""

    store: Path
    undisturbed: dict[tuple[Any, ...], np.ndarray]
    problems: list[str] = field(default_factory=list)
    num_polls: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def poll(self) -> None:
        while not self.ended.is_set():
            try:
                snapshot = FeatureStore(str(self.store), "latest")
                self.problems += self.look(snapshot)
                self.num_polls += 1
            except FeatureStoreError:
                pass  # there is no store yet
            time.sleep(0.1)

    def look(self, snapshot: FeatureStore) -> list[str]:
        ids = snapshot.tracks(["track_id"]).column("track_id").to_pylist()
        problems = [f"{len(ids) - len(set(ids))} duplicates"] if len(ids) != len(set(ids)) else []
        for resolution in DEFAULT_RESOLUTIONS:
            if not ids:
                continue
            frames = snapshot.frames(ids, resolution).to_pylist()
            if sorted(row["track_id"] for row in frames) != sorted(ids):
                problems.append(f"version {snapshot.version}: {resolution} is not one row of each of {ids}")
            (recipe,) = {key[0] for key in self.undisturbed}
            for row in frames:
                expected = self.undisturbed[recipe, resolution, row["track_id"], row["content_hash"]]
                found = np.array(row["embeddings"], np.float32)
                if found.shape != expected.shape or not np.allclose(found, expected, rtol=2.0**-9, atol=1e-6):
                    problems.append(f"{resolution} of {row['track_id']} is not its own")
        return problems


def draw_moments() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@contextmanager
def break_in_sight(store: Path, reference: Path) -> Iterator[None]:
    """Poll a store while it is broken inside the block; in the end it has to be the other one's equal."""
    watcher = Watcher(store, read_features(reference))
    thread = threading.Thread(target=watcher.poll)
    thread.start()
    try:
        yield
    finally:
        watcher.ended.set()
        thread.join()
    assert_same_store(store, reference)
    assert not watcher.problems
    assert watcher.num_polls > 0


@pytest.fixture(scope="module")
def undisturbed(
    audio: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Cluster, float]]:
    """The store of a run that nobody breaks, the cluster that it ran on, and how long it took."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with run_cluster(1) as cluster:
        start_s = time.monotonic()
        finish_job(start_job(audio, store, tiny_checkpoint, cluster.address))
        yield store, cluster, time.monotonic() - start_s


@pytest.mark.timeout(3600)
def test_killed_drivers_leave_what_an_undisturbed_run_leaves(
    audio: Path, tiny_checkpoint: Path, tmp_path: Path, undisturbed: tuple[Path, Cluster, float]
) -> None:
    reference, cluster, run_s = undisturbed
    moments = draw_moments()
    store = tmp_path / "store"
    with break_in_sight(store, reference):
        for _ in range(NUM_KILLS):
            job = start_job(audio, store, tiny_checkpoint, cluster.address)
            time.sleep(moments.uniform(0.3, 1.0) * run_s)
            kill_driver(job)
        finish_job(start_job(audio, store, tiny_checkpoint, cluster.address))


@pytest.mark.timeout(3600)
def test_shards_of_which_some_are_killed_leave_what_an_undisturbed_run_leaves(
    audio: Path, tiny_checkpoint: Path, tmp_path: Path, undisturbed: tuple[Path, Cluster, float]
) -> None:
    reference, _, run_s = undisturbed
    moments = draw_moments()
    store = tmp_path / "store"

    def start_shard(number: int) -> subprocess.Popen[str]:
        # Each on a cluster of its own.
        return start_job(audio, store, tiny_checkpoint, "local", "--shard", f"{number}/{NUM_SHARDS}", "--prune")

    jobs = {number: start_shard(number) for number in range(1, NUM_SHARDS + 1)}
    with break_in_sight(store, reference):
        for number in (2, 3):
            time.sleep(moments.uniform(0.5, 1.0) * run_s)
            kill_driver(jobs[number])
            jobs[number] = start_shard(number)
        for number, job in jobs.items():
            output, errors = job.communicate(timeout=400)
            if job.returncode and "Ray did not start" in errors:  # four at once may be too many for this machine
                finish_job(start_shard(number))
            else:
                assert job.returncode == 0, output + errors


@pytest.mark.timeout(3600)
def test_killed_nodes_and_actors_leave_what_an_undisturbed_run_leaves(
    audio: Path, tiny_checkpoint: Path, tmp_path: Path, undisturbed: tuple[Path, Cluster, float]
) -> None:
    reference, _, run_s = undisturbed
    store = tmp_path / "store"
    with run_cluster(3) as cluster:
        for _ in range(max(1, NUM_KILLS // 4)):
            job = start_job(audio, store, tiny_checkpoint, cluster.address)
            deadline_s = time.monotonic() + 4 * run_s
            while not kill_an_actor() and job.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.05)
            time.sleep(0.5)
            node = next(iter(cluster.worker_nodes))
            cluster.remove_node(node)
            output, errors = job.communicate(timeout=300)
            assert job.returncode in (0, 1), output + errors
            cluster.add_node(num_cpus=1)
        finish_job(start_job(audio, store, tiny_checkpoint, cluster.address))
    assert_same_store(store, reference)
