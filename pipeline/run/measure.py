"""Measure: what each task of a stage takes, told to the run's monitor."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.config import WindowPolicy, list_window_lengths_s
from pipeline.run.progress import Work

ADVANCE_INTERVAL_S = 2.0  # from when on, and how often, a task says how far it is


class ModelLock:
    """A lock that knows how long the calling thread has waited for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_thread = threading.local()

    def __enter__(self) -> None:
        start_s = time.perf_counter()
        self._lock.acquire()
        self._by_thread.waited_s = self.waited_s() + time.perf_counter() - start_s

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def waited_s(self) -> float:
        """Return the seconds that this thread has waited so far."""
        return float(getattr(self._by_thread, "waited_s", 0.0))


def measure(
    stage: str,
    monitor: Any,
    windows: WindowPolicy,
    function: Callable[[pa.Table], pa.Table | Iterable[pa.Table]],
    rows: pa.Table,
    model_lock: ModelLock | None = None,
) -> Iterator[pa.Table]:
    """Run one task of a stage and tell the monitor what it took: once where it is short.

    Args:
        stage: One of ``progress.STAGES``.
        monitor: From ``start_monitor``.
        windows: Window policy, to count what the model is given.
        function: The stage: one table in; one, or several, out.
        rows: What it is given.
        model_lock: What calls in one process take turns by, where there are several: waiting for it does not
            count, and of the processor time only this thread's does.

    Yields:
        What the stage yields.
    """
    who = str(ray.get_runtime_context().get_task_id()), stage, name_node()
    told = TaskReport(who, monitor, rows.column("track_id").to_pylist() if rows.num_rows else [])
    work, num_done = Work(), 0
    size_bytes = pc.sum(rows.column("size_bytes")).as_py() or 0 if stage == "decode" else 0
    clock = time.thread_time if model_lock else time.process_time
    steps = _take_steps(function, rows)
    del rows  # a block of waveforms need not outlive its own stage
    try:
        while True:
            waited_s = model_lock.waited_s() if model_lock else 0.0
            start_s, start_cpu_s = time.perf_counter(), clock()
            table = next(steps, None)
            now_s, now_cpu_s = time.perf_counter(), clock()
            waited_s = model_lock.waited_s() - waited_s if model_lock else 0.0
            work.add(Work(seconds=now_s - start_s - waited_s, cpu_seconds=now_cpu_s - start_cpu_s))
            if table is None:
                break
            work.add(count_work(stage, table, windows))
            num_done += table.num_rows if stage != "write" else told.num_tracks
            if told.advance(work, num_done):
                work = Work()
            yield table
            del table  # it need not be there beside the next one
    finally:
        if stage == "write":
            work.num_tracks = num_done
        work.add(Work(num_tasks=1, bytes_read=size_bytes))
        told.end(work)


class TaskReport:
    """What the monitor is told of one task: how it ended; of one that lasts, also that it began and how far it is.

    Most tasks take less time than anybody looks at the books: of these there is one message.

    Args:
        who: The task, its stage and its node.
        monitor: From ``start_monitor``.
        track_ids: What the task was given.
    """

    def __init__(self, who: tuple[str, str, str], monitor: Any, track_ids: list[str]) -> None:
        self._monitor, self._who = monitor, who
        self._ids = track_ids
        self._num_done, self._has_begun, self._has_ended = 0, False, False
        self._told_s = time.monotonic()
        self._lock = threading.Lock()
        # From beside: the task itself may be kept by one file for ever.
        self._timer = threading.Timer(ADVANCE_INTERVAL_S, self._begin)
        self._timer.daemon = True
        self._timer.start()

    @property
    def num_tracks(self) -> int:
        """How many tracks the task was given."""
        return len(self._ids)

    def advance(self, work: Work, num_done: int) -> bool:
        """Say how far the task is, where it has not said so for a while; return whether the work was told."""
        with self._lock:
            self._num_done = num_done
            is_due = self._has_begun and time.monotonic() - self._told_s > ADVANCE_INTERVAL_S
            if not is_due or num_done >= len(self._ids):
                return False
            self._monitor.advance.remote(*self._who, work, self._ids[num_done])
            self._told_s = time.monotonic()
            return True

    def end(self, work: Work) -> None:
        """Say that the task ended, and what it did that was not told yet."""
        self._timer.cancel()
        with self._lock:
            self._has_ended = True
            self._monitor.end.remote(*self._who, work, len(self._ids))

    def _begin(self) -> None:
        with self._lock:
            if not self._has_ended:
                self._has_begun, self._told_s = True, time.monotonic()
                at = self._ids[self._num_done] if self._num_done < len(self._ids) else ""
                self._monitor.begin.remote(*self._who, len(self._ids), at)


def _take_steps(
    function: Callable[[pa.Table], pa.Table | Iterable[pa.Table]], rows: pa.Table
) -> Iterator[pa.Table]:
    """Call a stage at the first step, not before."""
    found = function(rows)
    del rows
    if isinstance(found, pa.Table):
        yield found
    else:
        yield from found


def count_work(stage: str, table: pa.Table, windows: WindowPolicy) -> Work:
    """Count what stands in a table that left a stage; it does not tell how many tracks a write task took."""
    if stage == "write":
        sizes: dict[str, int] = {}
        for part in table.column("parts")[0].as_py() or ():
            sizes[part["resolution"]] = sizes.get(part["resolution"], 0) + part["size_bytes"]
        return Work(bytes_written=sizes)
    facts = table.select(["stage", "duration_s", "wanted"])  # waveforms and features are not copied to be counted
    done = facts.filter(pc.and_(pc.is_null(facts.column("stage")), pc.is_valid(facts.column("duration_s"))))
    num_windows = 0
    if stage == "embed":
        durations_s, wanted = (done.column(name).to_pylist() for name in ("duration_s", "wanted"))
        for duration_s, names in zip(durations_s, wanted, strict=True):
            lengths_s = list_window_lengths_s((name.split("/")[1] for name in names), windows)
            num_windows += sum(math.ceil(duration_s / length_s) for length_s in lengths_s)
    audio_s = pc.sum(done.column("duration_s")).as_py() or 0.0
    return Work(num_tracks=table.num_rows, audio_s=audio_s, num_windows=num_windows)


def name_node() -> str:
    """Return the address of this node and the start of its id: several may share an address."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"{address}/{ray.get_runtime_context().get_node_id()[:8]}"


def name_worker() -> str:
    """Return the id of this worker process."""
    return f"{ray.get_runtime_context().get_worker_id()}/{os.getpid()}"
