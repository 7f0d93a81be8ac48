"""Collect: results of write tasks come back to the driver, are counted and committed, and watched for stalls."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from pipeline.config import RunSettings
from pipeline.errors import Reason, RunError, Stage, StorageError
from pipeline.run.placement import Placement, describe_stall
from pipeline.run.ray_private import LeaveSwitch, attach_switch
from pipeline.run.tasks import map_on_cluster
from pipeline.run.watch import ProgressLine, RunWatch
from pipeline.schema import EMBEDDED
from pipeline.store.commit import Join, RunCommitter
from pipeline.store.parts import Part

logger = logging.getLogger(__name__)

OUTCOMES = ("embedded", "failed", "unchanged", "recognised")
POLL_INTERVAL_S = 5.0
LEAVE_TIMEOUT_S = 5.0  # a lost cluster may never answer the thread that waits for it
COMMIT_SHARE = 0.1  # of the time at most goes into commits, which take longer as a table has more parts
MIN_SHARED_BYTES = 2**28  # of parts that are joined by tasks: fewer are joined sooner than a task starts
WARNED_SHARE = 0.1  # of the stall timeout: after such a silence the log names the stage that is waited for


@dataclass
class Collector:
    """Takes results for a run.

    Args:
        settings: The run's settings.
        placement: What the run asks of the cluster.
        committer: Makes results visible.
        monitor: The stages' books, from ``metrics.start_monitor``.
        watch: The driver's own view.
        line: Shows how far the run is.
    """

    settings: RunSettings
    placement: Placement
    committer: RunCommitter
    monitor: Any
    watch: RunWatch
    line: ProgressLine
    _asked_s: float = field(default=0.0, init=False)
    _outcomes: Counter[str] = field(default_factory=Counter, init=False)  # that the monitor was not told of yet
    _failures: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)
    _committed_s: float = field(default=0.0, init=False)
    _commit_took_s: float = field(default=0.0, init=False)

    def collect(self, build: Callable[[], ray.data.Dataset]) -> None:
        """Run one pass to its end and commit as results come in.

        Args:
            build: Lays out the pass as a dataset of ``schema.RESULTS``.

        Raises:
            RunError: The store refuses, Ray gives up, or nothing is finished for too long.
        """
        self._committed_s = time.monotonic()
        with closing(self._iterate(build)) as results:
            for result in results:
                refusal = result.column("refusal")[0].as_py()
                if refusal is not None:
                    raise RunError(f"{refusal}; what was committed before is kept: run the same command again")
                self.accept(result)
                interval_s = max(self.settings.commit_interval_s, self._commit_took_s / COMMIT_SHARE)
                if time.monotonic() - self._committed_s >= interval_s:
                    self._commit()
        self._join()  # while there is a cluster that does it
        self._read_books()
        self._show()

    def accept(self, result: pa.Table) -> None:
        """Hand one result to the committer, and count it where the run is watched."""
        accepted = self.committer.accept(result)
        if accepted.num_tracks:
            self._outcomes.update({name: len(getattr(accepted, name)) for name in OUTCOMES})
            self._failures.update(accepted.failures)
            self.watch.accept(accepted.num_tracks, accepted.audio_s)
        self._show(accepted.num_tracks)

    def _commit(self) -> None:
        self._join()
        start_s = time.monotonic()
        self.committer.commit()
        self._committed_s = time.monotonic()
        self._commit_took_s = self._committed_s - start_s
        logger.info("committed", extra={"outcomes": vars(self.committer.counts)})

    def _join(self) -> None:
        """Join small parts before they are committed; where that fails, they are committed as they are."""
        try:
            self.committer.join_pending(self._run_joins)
        except (StorageError, RunError) as error:
            logger.warning("small parts stay as they are: %s", error)

    def _run_joins(self, join: Join, groups: Sequence[Sequence[Part]]) -> Iterable[Part]:
        """Join groups of parts: many in tasks, wherever there is a CPU, a few here."""
        if sum(part.size_bytes for group in groups for part in group) < MIN_SHARED_BYTES:
            return map(join, groups)
        place, timeout_s = self.placement, self.settings.stall_timeout_s
        return map_on_cluster(join, groups, timeout_s, place.task_num_cpus, place.task_heap_bytes)

    def tell_outcomes(self) -> None:
        """Tell the monitor of the outcomes that it was not told of yet."""
        self.monitor.count_outcomes.remote(dict(self._outcomes), dict(self._failures))
        self._outcomes.clear()
        self._failures.clear()

    def _show(self, num_tracks: int = 0) -> None:
        if time.monotonic() - self._asked_s > POLL_INTERVAL_S:
            self._read_books()
        self.line.update(num_tracks, self.watch.describe(self.committer.counts.failed))

    def _read_books(self) -> None:
        """Tell the monitor of outcomes, and ask it how the stages are; without its answer the run goes on."""
        self._asked_s = time.monotonic()
        self.tell_outcomes()
        try:
            self.watch.books = ray.get(self.monitor.read.remote(), timeout=POLL_INTERVAL_S)
        except ray.exceptions.RayError as error:
            logger.debug("the monitor does not answer: %s", error)

    def _iterate(self, build: Callable[[], ray.data.Dataset]) -> Generator[pa.Table, None, None]:
        """Yield a pass's results; a silence of ``stall_timeout_s`` ends the run and says what it waits for.

        The dataset is built under the same watch: of a cluster that is lost it may hear nothing either. Whoever
        leaves before the end stops the pass: a thread that goes on would start another Ray once this one is left.
        """
        results: queue.Queue[pa.Table | BaseException | None] = queue.Queue()
        switch = LeaveSwitch()

        def pull() -> None:
            try:
                dataset = build()
                attach_switch(dataset, switch)
                for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                    results.put(batch)
                results.put(None)
            except BaseException as error:
                results.put(error)

        thread = threading.Thread(target=pull, daemon=True, name="results")
        thread.start()
        try:
            while True:
                result = self._await(results)
                if result is None:
                    return
                if isinstance(result, ray.exceptions.RayError):
                    detail = " ".join(str(result).split())[-500:]
                    raise RunError(f"Ray gave up: … {detail}") from result
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            switch.leave()
            thread.join(LEAVE_TIMEOUT_S)

    def _await(self, results: queue.Queue[pa.Table | BaseException | None]) -> pa.Table | BaseException | None:
        """Wait for the next result, with an eye on the stages.

        Raises:
            RunError: Nothing came for ``stall_timeout_s``, or another run has claimed the store.
            StorageError: The store cannot be written.
        """
        began_s, timeout_s, warned = time.monotonic(), self.settings.stall_timeout_s, False
        while (left_s := began_s + timeout_s - time.monotonic()) > 0:
            self.committer.writer.renew_lease()
            try:
                return results.get(timeout=min(POLL_INTERVAL_S, left_s))
            except queue.Empty:
                self._read_books()
                self._show()
            silence_s = time.monotonic() - began_s
            if silence_s >= max(2 * POLL_INTERVAL_S, WARNED_SHARE * timeout_s) and not warned:
                warned = True
                logger.warning("no track finished for %.0f s: %s", silence_s, self._describe_standstill())
        total, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        self._read_books()
        stall = describe_stall(timeout_s, self.placement, total, free)
        raise RunError(f"{self._describe_standstill()}; {stall}")

    def _describe_standstill(self) -> str:
        return str(self.watch.books.get("standstill", "the stages do not say how far they are"))


def mark_as_crashed(rows: pa.Table) -> pa.Table:
    """Return planned rows as embedded rows that failed because their workers died."""
    failure = {
        "stage": Stage.EMBED.value,
        "error_type": Reason.WORKER_CRASHED.value,
        "error_message": "the worker died on this track each time it was tried, at last alone: out of memory, or "
        "a fault in native code",
    }
    columns = {
        field.name: rows.column(field.name)
        if field.name in rows.column_names
        else pa.array([failure.get(field.name)] * rows.num_rows, field.type)
        for field in EMBEDDED
    }
    return pa.table(columns, schema=EMBEDDED)
