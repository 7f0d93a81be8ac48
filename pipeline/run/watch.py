"""Watch: the driver's view of a run: what it is at, one line of progress, throughput, what the stages report."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TextIO

from tqdm import tqdm

from pipeline.logs import say

MAX_BUCKETS = 120
FIRST_BUCKET_S = 1.0
LINE_FORMAT = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE_INTERVAL_S = 30.0  # between lines in a log, which cannot be written over as a terminal can


class Throughput:
    """Tracks and audio over a run's time, in buckets that widen as the run goes on, so that they stay few."""

    def __init__(self) -> None:
        self.bucket_s = FIRST_BUCKET_S
        self.tracks: list[int] = [0]
        self.audio_s: list[float] = [0.0]

    def add(self, at_s: float, num_tracks: int, audio_s: float) -> None:
        """Count what was finished.

        Args:
            at_s: Seconds since the run's begin; never less than before.
            num_tracks: Tracks that got their outcome.
            audio_s: Seconds of audio of those that were embedded.
        """
        while at_s >= self.bucket_s * MAX_BUCKETS:
            self.bucket_s *= 2
            self.tracks = [sum(self.tracks[i : i + 2]) for i in range(0, len(self.tracks), 2)]
            self.audio_s = [sum(self.audio_s[i : i + 2]) for i in range(0, len(self.audio_s), 2)]
        num_missing = int(at_s / self.bucket_s) + 1 - len(self.tracks)
        self.tracks += [0] * num_missing
        self.audio_s += [0.0] * num_missing
        self.tracks[-1] += num_tracks
        self.audio_s[-1] += audio_s

    def read(self) -> dict[str, Any]:
        """Return ``bucket_s`` and, for each bucket in turn, ``tracks`` and ``audio_s``."""
        return {
            "bucket_s": self.bucket_s,
            "tracks": list(self.tracks),
            "audio_s": [round(value, 3) for value in self.audio_s],
        }


class ProgressLine:
    """How far the run is: a line that moves on a terminal, and now and then a whole line in a log.

    Args:
        total: Tracks to process.
        file: Where to; standard error by default.
        interval_s: Between lines in a log.
    """

    def __init__(self, total: int, file: TextIO | None = None, interval_s: float = LINE_INTERVAL_S) -> None:
        self._file = file or sys.stderr
        self._interval_s = interval_s
        self._start_s = self._told_s = time.monotonic()
        self._total, self._done, self._facts = total, 0, ""
        is_terminal = self._file.isatty()
        self._bar = tqdm(total=total, unit="track", desc="embedding", file=self._file) if is_terminal else None

    def update(self, num_tracks: int, facts: str) -> None:
        """Count tracks, and show a few words beside them."""
        self._done += num_tracks
        self._facts = facts
        if self._bar is not None:
            self._bar.set_postfix_str(facts, refresh=False)
            self._bar.update(num_tracks)
            self._bar.refresh()
        elif time.monotonic() - self._told_s >= self._interval_s:
            self._tell()

    def close(self) -> None:
        """Show the last state, and end the line."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._told_s - self._start_s,
            prefix="embedding",
            unit="track",
            postfix=self._facts,
            bar_format=LINE_FORMAT,
        )
        print(line, file=self._file, flush=True)


@dataclass
class RunWatch:
    """What a run's driver knows of its course.

    Args:
        start_s: ``time.monotonic()`` at its begin.
        phases: What the run was at in turn, and since which of its seconds; each lasts until the next begins.
        throughput: Outcomes over time.
        books: What ``progress.WorkBook.read`` said last.
        num_audio_s: Seconds of audio embedded so far.
        work_began_s: Seconds from the run's begin until tracks were given to the cluster; None before.
        first_result_s: Until the first outcome came back.
        work_ended_s: Until the last one did.
    """

    start_s: float = field(default_factory=time.monotonic)
    phases: list[tuple[str, float]] = field(default_factory=list)
    throughput: Throughput = field(default_factory=Throughput)
    books: dict[str, Any] = field(default_factory=dict)
    num_audio_s: float = 0.0
    work_began_s: float | None = None
    first_result_s: float | None = None
    work_ended_s: float | None = None

    def age_s(self) -> float:
        """Return the seconds since the run's begin."""
        return time.monotonic() - self.start_s

    def enter(self, phase: str, words: str = "") -> None:
        """Begin another phase of the run, and say so.

        Args:
            phase: Its name in the report.
            words: What to say; by default the name.
        """
        self.phases.append((phase, self.age_s() if self.phases else 0.0))
        say(words or phase)

    def measure_phases(self) -> dict[str, float]:
        """Return the seconds of each phase so far; together they are the run's whole time."""
        spent_s: dict[str, float] = {}
        for (phase, begin_s), (_, end_s) in pairwise([*self.phases, ("", self.age_s())]):
            spent_s[phase] = spent_s.get(phase, 0.0) + end_s - begin_s
        return spent_s

    def accept(self, num_tracks: int, audio_s: float) -> None:
        """Count tracks that got their outcome."""
        now_s = self.age_s()
        if self.first_result_s is None:
            self.phases.append(("embedding", now_s))  # the progress line tells of it
        self.throughput.add(now_s, num_tracks, audio_s)
        self.num_audio_s += audio_s
        self.first_result_s = now_s if self.first_result_s is None else self.first_result_s
        self.work_ended_s = now_s

    def describe(self, num_failed: int) -> str:
        """Return a few words for the progress line: the pace, what failed, what waits for the model."""
        pace = self.num_audio_s / max(1e-9, self.age_s() - (self.work_began_s or 0.0))
        words = [f"{pace:.0f}x real time"] if self.num_audio_s else []
        words += ["the model starts"] if self.first_result_s is None and not self.books.get("devices") else []
        words += [f"{num_failed} failed"] if num_failed else []
        waiting = self.books.get("waiting", {}).get("embed", 0)
        words += [f"{waiting} wait for the model"] if waiting else []
        return ", ".join(words)
