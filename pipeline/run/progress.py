"""Progress: what each stage has done, on which node, and which of them a run that stands still waits for.

Tasks say when they end, and those that last say that they began and how far they are; the book adds it up. It
knows nothing of Ray: ``metrics`` holds one in an actor, which tasks on all nodes reach.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

STAGES = ("decode", "embed", "write")
"""The stages that work is counted for; fetching is part of decoding, pooling of embedding."""


@dataclass
class Work:
    """What some tasks of one stage did on one node.

    Args:
        num_tasks: Tasks that ended.
        num_tracks: Tracks that left the stage, failed ones included.
        seconds: Wall time in which the tasks worked, not waiting for whoever takes their results.
        cpu_seconds: Processor time of the same, of all threads.
        audio_s: Seconds of audio that left the stage.
        num_windows: Windows that the model took.
        bytes_read: Bytes of audio files, as the catalog states them.
        bytes_written: Bytes of parts, by resolution.
    """

    num_tasks: int = 0
    num_tracks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    audio_s: float = 0.0
    num_windows: int = 0
    bytes_read: int = 0
    bytes_written: dict[str, int] = field(default_factory=dict)

    def add(self, other: Work) -> None:
        """Add what other tasks did."""
        for name, value in vars(other).items():
            if name == "bytes_written":
                for resolution, size_bytes in value.items():
                    self.bytes_written[resolution] = self.bytes_written.get(resolution, 0) + size_bytes
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class _RunningTask:
    stage: str
    node: str
    num_tracks: int
    track_id: str
    advanced_s: float


class WorkBook:
    """The books of a run's stages. Times are given by the caller, in seconds of one clock.

    Args:
        now_s: When the run began.
    """

    def __init__(self, now_s: float) -> None:
        self.work: dict[tuple[str, str], Work] = {}
        self.devices: dict[str, str] = {}
        self._running: dict[str, _RunningTask] = {}
        self._advanced_s = dict.fromkeys(STAGES, now_s)
        self._entered = dict.fromkeys(STAGES, 0)
        self._left = dict.fromkeys(STAGES, 0)  # by tasks that ended: what others still hold nobody can take yet

    def begin(
        self, task_id: str, stage: str, node: str, num_tracks: int, first_track_id: str, now_s: float
    ) -> None:
        """Note that a task took some tracks; one that is tried again takes the place of its first try."""
        self._running[task_id] = _RunningTask(stage, node, num_tracks, first_track_id, now_s)
        self._entered[stage] += num_tracks

    def advance(self, task_id: str, stage: str, node: str, work: Work, track_id: str, now_s: float) -> None:
        """Add what a task did since it last said so.

        Args:
            task_id: The task.
            stage: Its stage.
            node: Where it runs.
            work: What it did.
            track_id: The track that it is at.
            now_s: When.
        """
        self.work.setdefault((stage, node), Work()).add(work)
        self._advanced_s[stage] = now_s
        if task_id in self._running:
            self._running[task_id].track_id, self._running[task_id].advanced_s = track_id, now_s

    def end(self, task_id: str, stage: str, node: str, work: Work, num_tracks: int, now_s: float) -> None:
        """Add what a task did since it last said so; it may be short enough never to have said that it began.

        Args:
            task_id: The task.
            stage: Its stage.
            node: Where it ran.
            work: What it did.
            num_tracks: Tracks that it was given.
            now_s: When.
        """
        self.work.setdefault((stage, node), Work()).add(work)
        self._advanced_s[stage] = now_s
        if self._running.pop(task_id, None) is None:
            self._entered[stage] += num_tracks
        self._left[stage] += num_tracks

    def forget_running(self) -> None:
        """Let go of tasks that were begun: their workers died, or another pass begins."""
        self._running.clear()
        for before, stage in pairwise(STAGES):
            self._entered[stage] = self._left[before]

    def count_tracks(self, stage: str) -> int:
        """Return how many tracks left a stage."""
        return sum(work.num_tracks for (stage_of_work, _), work in self.work.items() if stage_of_work == stage)

    def count_waiting(self, stage: str) -> int:
        """Return how many tracks left the stage before and were not yet taken by this one; 0 for the first."""
        position = STAGES.index(stage)
        return max(0, self._left[STAGES[position - 1]] - self._entered[stage]) if position else 0

    def count_running(self) -> dict[tuple[str, str], int]:
        """Return how many tasks are at work, by stage and node, for all that ever had one."""
        counts = dict.fromkeys(self.work, 0)
        for task in self._running.values():
            counts[task.stage, task.node] = counts.get((task.stage, task.node), 0) + 1
        return counts

    def idle_s(self, stage: str, now_s: float) -> float:
        """Return for how long no task of a stage has advanced."""
        return now_s - self._advanced_s[stage]

    def describe_standstill(self, now_s: float) -> str:
        """Say in one sentence which stage does not advance, and where it stands.

        It is the last one that has tracks to work on: those before it may rest because it takes nothing more.
        """
        for stage in reversed(STAGES):
            tasks = sorted(
                (task for task in self._running.values() if task.stage == stage), key=lambda task: task.advanced_s
            )
            waiting = self.count_waiting(stage)
            if tasks:
                oldest = tasks[0]
                return (
                    f"the stage that does not advance is {stage}: {len(tasks)} of its tasks are at work, one on "
                    f"{oldest.node} at track {oldest.track_id!r} since {now_s - oldest.advanced_s:.0f} s, and "
                    f"{waiting} more tracks wait for it"
                )
            if waiting:
                return f"the stage that does not advance is {stage}: {waiting} tracks wait, none of its tasks runs"
        return f"the stage that does not advance is {STAGES[0]}: none of its tasks has begun"

    def read(self) -> dict[str, Any]:
        """Return the books as plain values: ``placement`` by stage and node, ``devices`` by node."""
        placement: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
        for (stage, node), work in sorted(self.work.items()):
            placement[stage][node] = asdict(work)
        return {
            "placement": placement,
            "devices": dict(self.devices),
            "waiting": {stage: self.count_waiting(stage) for stage in STAGES},
        }
