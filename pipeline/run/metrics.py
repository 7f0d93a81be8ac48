"""Metrics: the stages' books in one actor, and on Prometheus through ``ray.util.metrics``.

One actor sets all meters, so that a figure is one series however many workers come and go. Ray exports them with
``ray_`` before the name; ``infra/monitoring`` has a dashboard and alerts of them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.run.progress import STAGES, Work, WorkBook

GAUGE_INTERVAL_S = 5.0
BUSY_SPAN = 3  # intervals over which the models' busy share is taken
TASK_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]

_STAGE_COUNTERS = {
    "num_tracks": ("musicfm_stage_tracks_total", "Tracks that left a stage"),
    "seconds": ("musicfm_stage_seconds_total", "Wall seconds in which tasks of a stage worked"),
    "cpu_seconds": ("musicfm_stage_cpu_seconds_total", "Processor seconds of a stage, all threads"),
    "audio_s": ("musicfm_audio_seconds_total", "Seconds of audio that left a stage"),
}


class Meters:
    """The run's meters.

    Args:
        run_id: Label ``run`` of all of them.
    """

    def __init__(self, run_id: str) -> None:
        def counter(name: str, description: str, *labels: str) -> Counter:
            meter = Counter(name, description, tag_keys=("run", *labels))
            meter.set_default_tags({"run": run_id})
            return meter

        def gauge(name: str, description: str, *labels: str) -> Gauge:
            meter = Gauge(name, description, tag_keys=("run", *labels))
            meter.set_default_tags({"run": run_id})
            return meter

        self.stages = {
            key: counter(name, description, "stage", "node")
            for key, (name, description) in _STAGE_COUNTERS.items()
        }
        self.windows = counter("musicfm_windows_total", "Windows that the model took", "node")
        self.bytes_read = counter("musicfm_read_bytes_total", "Bytes of audio files read", "node")
        self.bytes_written = counter("musicfm_written_bytes_total", "Bytes of parts", "resolution", "node")
        self.tracks = counter("musicfm_tracks_total", "Tracks by outcome", "outcome")
        self.failures = counter("musicfm_failures_total", "Failed tracks by stage and reason", "stage", "reason")
        self.task_seconds = Histogram(
            "musicfm_task_seconds", "Seconds of one task", TASK_SECONDS, tag_keys=("run", "stage")
        )
        self.task_seconds.set_default_tags({"run": run_id})
        self.planned = gauge("musicfm_planned_tracks", "Tracks to process in this run")
        self.models = gauge("musicfm_models", "Model actors at work", "device")
        self.running = gauge("musicfm_running_tasks", "Tasks begun and not ended", "stage", "node")
        self.queue = gauge("musicfm_queue_tracks", "Tracks that wait for a stage", "stage")
        self.busy = gauge("musicfm_model_busy_ratio", "Share of the models' time spent computing")
        self.idle = gauge("musicfm_stage_idle_seconds", "Seconds since a stage last advanced", "stage")

    def count(self, stage: str, node: str, work: Work) -> None:
        """Add what a task did."""
        for key, counter in self.stages.items():
            _increase(counter, getattr(work, key), {"stage": stage, "node": node})
        _increase(self.windows, work.num_windows, {"node": node})
        _increase(self.bytes_read, work.bytes_read, {"node": node})
        for resolution, size_bytes in work.bytes_written.items():
            _increase(self.bytes_written, size_bytes, {"resolution": resolution, "node": node})


class Monitor:
    """The books of one run, in an actor that all tasks report to. Its methods are called without waiting."""

    def __init__(self, run_id: str, num_planned: int) -> None:
        self.book = WorkBook(time.monotonic())
        self.meters = Meters(run_id)
        self.meters.planned.set(num_planned)
        self._models: dict[str, str] = {}
        self._task_seconds: dict[str, float] = {}
        self._busy: list[tuple[float, float]] = []
        self._lock = threading.Lock()  # the gauges are set from a thread of their own
        threading.Thread(target=self._set_gauges, daemon=True, name="gauges").start()

    def add_model(self, worker_id: str, node: str, device: str) -> None:
        """Note that a model actor started, and what it computes on."""
        with self._lock:
            self._models[worker_id] = device
            self.book.devices[node] = device

    def begin(self, task_id: str, stage: str, node: str, num_tracks: int, first_track_id: str) -> None:
        """Note that a task began."""
        with self._lock:
            self._task_seconds[task_id] = 0.0
            self.book.begin(task_id, stage, node, num_tracks, first_track_id, time.monotonic())

    def advance(self, task_id: str, stage: str, node: str, work: Work, track_id: str) -> None:
        """Note what a task that began did, and the track that it is at."""
        with self._lock:
            self.book.advance(task_id, stage, node, work, track_id, time.monotonic())
            self.meters.count(stage, node, work)
            self._task_seconds[task_id] = self._task_seconds.get(task_id, 0.0) + work.seconds

    def end(self, task_id: str, stage: str, node: str, work: Work, num_tracks: int) -> None:
        """Note what a task did since it last said so, if ever, and that it ended."""
        with self._lock:
            self.book.end(task_id, stage, node, work, num_tracks, time.monotonic())
            self.meters.count(stage, node, work)
            self.meters.task_seconds.observe(self._task_seconds.pop(task_id, 0.0) + work.seconds, {"stage": stage})

    def count_outcomes(self, outcomes: dict[str, int], failures: dict[tuple[str, str], int]) -> None:
        """Count tracks by outcome, and failures by stage and reason, as the driver accepts them."""
        for outcome, number in outcomes.items():
            _increase(self.meters.tracks, number, {"outcome": outcome})
        for (stage, reason), number in failures.items():
            _increase(self.meters.failures, number, {"stage": stage, "reason": reason})

    def forget_running(self) -> None:
        """Begin another pass: what was running is gone."""
        with self._lock:
            self.book.forget_running()
            self._models.clear()

    def read(self) -> dict[str, Any]:
        """Return the books as plain values."""
        with self._lock:
            return {**self.book.read(), "standstill": self.book.describe_standstill(time.monotonic())}

    def _set_gauges(self) -> None:
        while True:
            with self._lock:
                now_s = time.monotonic()
                self._busy = [*self._busy[-BUSY_SPAN:], (now_s, self._sum_model_seconds())]
                (first_s, before), (last_s, after) = self._busy[0], self._busy[-1]
                if last_s > first_s and self._models:
                    self.meters.busy.set(min(1.0, (after - before) / (last_s - first_s) / len(self._models)))
                for device in set(self._models.values()):
                    self.meters.models.set(list(self._models.values()).count(device), {"device": device})
                for stage in STAGES:
                    self.meters.idle.set(self.book.idle_s(stage, now_s), {"stage": stage})
                    self.meters.queue.set(self.book.count_waiting(stage), {"stage": stage})
                for (stage, node), number in self.book.count_running().items():
                    self.meters.running.set(number, {"stage": stage, "node": node})
            time.sleep(GAUGE_INTERVAL_S)

    def _sum_model_seconds(self) -> float:
        return sum(work.seconds for (stage, _), work in self.book.work.items() if stage == "embed")


def start_monitor(run_id: str, num_planned: int) -> Any:
    """Start the run's monitor on the driver's node, where it is lost only together with the run.

    Returns:
        A handle, which tasks may be given.
    """
    node_id = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node_id, soft=True)
    actor: Any = ray.remote(Monitor)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote(run_id, num_planned)


def _increase(counter: Counter, value: float, labels: dict[str, str]) -> None:
    if value > 0:  # Ray refuses to add nothing
        counter.inc(value, labels)
