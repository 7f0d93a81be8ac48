"""The steps of a measurement, in the order of their worth, and how one that hangs or dies costs itself alone."""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.actor import measure_actor
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.checks import check_values, run_tests
from benchmarks.gpu.conformer_variants import measure_conformers
from benchmarks.gpu.frontend_variants import measure_frontends
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.throughput import measure_modes, measure_published, measure_throughput
from benchmarks.gpu.trace import measure_kernels
from benchmarks.gpu.whole_run import run_whole

GRACE_S = 20.0  # after its time limit a step that does not answer is ended with its process


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        measure: Takes the setting and a function that keeps a figure.
        limit_s: Seconds that it may take.
    """

    measure: Callable[[Setting, Callable[[str, Any], None]], None]
    limit_s: float


STEPS = {
    "values": Step(check_values, 50),
    "tests": Step(run_tests, 60),
    "ceilings": Step(measure_ceilings, 20),
    "frontends": Step(measure_frontends, 60),
    "throughput": Step(measure_throughput, 40),
    "kernels": Step(measure_kernels, 20),
    "published": Step(measure_published, 40),
    "conformers": Step(measure_conformers, 50),
    "modes": Step(measure_modes, 60),
    "actor": Step(measure_actor, 50),
    "end to end": Step(run_whole, 300),
}


def run_steps(setting: Setting, names: Sequence[str], figures: Path, until_s: float) -> None:
    """Run steps in this process; what they find goes to a file at once.

    Args:
        setting: Where and with what.
        names: Of the steps.
        figures: The JSON file, which exists.
        until_s: On ``time.time``'s clock: what has not begun by then is left out.
    """
    for name in names:
        limit_s = min(STEPS[name].limit_s, until_s - time.time())
        if limit_s <= 0:
            return
        book = _Book(figures, name)
        start_s = time.perf_counter()
        try:
            with _limit(limit_s), torch.inference_mode():
                STEPS[name].measure(setting, book.put)
        except Exception as error:
            book.put("failed", f"{type(error).__name__}: {str(error)[:500]}")
            if "CUDA error" in str(error):
                sys.exit(f"{name}: {error}")  # the device refuses this process from now on
        book.put("seconds", round(time.perf_counter() - start_s, 1))
        if setting.is_gpu:
            torch.cuda.empty_cache()


class _Book:
    """Keeps a step's figures in the file.

    Args:
        figures: The file.
        step: Its name.
    """

    def __init__(self, figures: Path, step: str) -> None:
        self.figures = figures
        self.step = step
        self.found: dict[str, Any] = {}
        self._write()

    def put(self, name: str, value: Any) -> None:
        """Keep a figure, and show it."""
        self.found[name] = value
        print(f"{self.step}: {name}: {value}", flush=True)
        self._write()

    def _write(self) -> None:
        report = json.loads(self.figures.read_text())
        report["steps"][self.step] = self.found
        scratch = self.figures.with_suffix(".tmp")
        scratch.write_text(json.dumps(report, indent=1))
        scratch.replace(self.figures)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after so long; where it does not answer, end the process."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
