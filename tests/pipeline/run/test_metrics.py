"""The meters of a run, scraped as Prometheus does."""

import re
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import ray

from pipeline.run.measure import ModelLock, measure
from pipeline.run.metrics import start_monitor
from pipeline.schema import EMBEDDED, PLAN

ROWS = pa.Table.from_pylist(
    [{"track_id": f"t{i}", "size_bytes": 100, "wanted": ["r/8hz"], "held": [], "stored": []} for i in range(5)],
    schema=PLAN,
)


def spin(rows: pa.Table) -> Any:
    for index in range(rows.num_rows):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        while min(time.perf_counter() - start_s, time.process_time() - start_cpu_s) < 0.02:
            pass  # both clocks: the process has other threads as well
        yield pa.Table.from_pylist([{"track_id": str(index), "duration_s": 2.0}], schema=EMBEDDED)


def work_in_task(monitor: Any) -> int:
    taken = 0
    for _ in measure("decode", monitor, "shared", spin, ROWS):
        time.sleep(0.05)  # whoever takes the rows is slow: that is not the stage's time
        taken += 1
    ray.get(monitor.read.remote())  # the actor has heard all that was told before
    return taken


class Contender:
    """Runs a stage in several calls at once, which take turns."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor
        self.model_lock = ModelLock()
        self.num_inside = self.most_inside = self.num_calls = self.most_calls = 0
        self.inside_s = 0.0

    def spin(self, rows: pa.Table) -> Any:
        steps = spin(rows)
        while True:
            with self.model_lock:
                self.num_inside += 1
                self.most_inside = max(self.most_inside, self.num_inside)
                start_s = time.perf_counter()
                table = next(steps, None)
                self.inside_s += time.perf_counter() - start_s
                self.num_inside -= 1
            if table is None:
                return
            yield table

    def work(self) -> int:
        self.num_calls += 1
        self.most_calls = max(self.most_calls, self.num_calls)
        tables = measure("decode", self.monitor, "shared", self.spin, ROWS, self.model_lock)
        num_rows: int = sum(table.num_rows for table in tables)
        self.num_calls -= 1
        return num_rows

    def finish(self) -> tuple[int, int, float, dict[str, Any]]:
        books = ray.get(self.monitor.read.remote())  # the monitor has heard all that was told before
        found = books["placement"]["decode"].popitem()[1]
        return self.most_calls, self.most_inside, self.inside_s, found


def break_off(monitor: Any) -> None:
    def fail(rows: pa.Table) -> pa.Table:
        raise ValueError("no")

    list(measure("write", monitor, "shared", fail, ROWS))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_calls_that_take_turns_compute_one_at_a_time_and_waiting_does_not_count() -> None:
    actor: Any = ray.remote(Contender).options(max_concurrency=3).remote(start_monitor("run43", 10))
    assert ray.get([actor.work.remote(), actor.work.remote()], timeout=60) == [5, 5]
    most_calls, most_inside, inside_s, found = ray.get(actor.finish.remote(), timeout=60)
    assert (most_calls, most_inside) == (2, 1)
    assert (found["num_tasks"], found["num_tracks"]) == (2, 10)
    assert 0.2 <= inside_s <= found["seconds"] < 1.5 * inside_s  # waiting would count nearly as much again


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tasks_are_measured_and_exported() -> None:
    monitor = start_monitor("run42", 5)
    ray.get(monitor.add_model.remote("w1", "node1", "cpu"))
    ray.get(monitor.count_outcomes.remote({"embedded": 4, "failed": 1}, {("decode", "silent"): 1}))
    assert ray.get(ray.remote(work_in_task).remote(monitor), timeout=60) == 5
    with pytest.raises(ValueError, match="no"):
        ray.get(ray.remote(max_retries=0)(break_off).remote(monitor), timeout=60)
    books = ray.get(monitor.read.remote())
    ((node, found),) = books["placement"]["decode"].items()
    assert node.endswith(ray.get_runtime_context().get_node_id()[:8])
    assert (found["num_tasks"], found["num_tracks"], found["audio_s"], found["bytes_read"]) == (1, 5, 10.0, 500)
    assert 0.1 <= found["cpu_seconds"] < 0.2
    assert found["seconds"] >= 0.1
    assert books["waiting"] == {"decode": 0, "embed": 5, "write": 0}
    assert books["devices"] == {"node1": "cpu"}
    (write,) = books["placement"]["write"].values()
    assert (write["num_tasks"], write["num_tracks"]) == (1, 0)  # what failed is not left as running
    patterns = (
        r'ray_musicfm_stage_tracks_total\{[^}]*run="run42"[^}]*stage="decode"[^}]*\} 5.0',
        r'ray_musicfm_tracks_total\{[^}]*outcome="embedded"[^}]*run="run42"[^}]*\} 4.0',
        r'ray_musicfm_failures_total\{[^}]*reason="silent"[^}]*run="run42"[^}]*stage="decode"[^}]*\} 1.0',
        r'ray_musicfm_planned_tracks\{[^}]*run="run42"[^}]*\} 5.0',
        r'ray_musicfm_task_seconds_count\{[^}]*run="run42"[^}]*stage="decode"[^}]*\} 1.0',
    )
    assert find_missing(patterns) == []


def find_missing(patterns: Sequence[str]) -> list[str]:
    """Read the node's metrics until all patterns are there (every process reports its own, every few seconds)."""
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    deadline_s = time.monotonic() + 60
    missing = list(patterns)
    while missing and time.monotonic() < deadline_s:
        time.sleep(1.0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        missing = [pattern for pattern in patterns if not re.search(pattern, text)]
    return missing
