"""The measurement of a GPU, rehearsed: all that it does on one is done on the processor, with a small model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.report import write_report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import STEPS, Step, run_steps

pytestmark = pytest.mark.slow

EXTERNAL = {"tests", "published", "end to end"}  # pytest itself, a checkout of the published code, Ray


def run(tmp_path: Path, names: list[str], until_s: float = float("inf")) -> dict[str, dict[str, object]]:
    figures = tmp_path / "gpu.json"
    figures.write_text(json.dumps({"machine": {"name": "none", "torch": "2"}, "steps": {}}))
    run_steps(Setting.choose(None, tmp_path, rehearse=True), names, figures, until_s)
    report = json.loads(figures.read_text())
    assert "| precision |" in write_report(report)
    steps: dict[str, dict[str, object]] = report["steps"]
    return steps


def test_every_step_gives_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in STEPS if name not in EXTERNAL]
    for name in names:
        monkeypatch.setitem(STEPS, name, replace(STEPS[name], limit_s=600))  # a busy processor is no lent GPU
    steps = run(tmp_path, names)
    assert list(steps) == names
    for name, figures in steps.items():
        assert "failed" not in figures, (name, figures)
        assert len(figures) > 2


def test_a_step_that_fails_or_hangs_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    def hang(*_: object) -> None:
        while True:
            pass

    monkeypatch.setitem(STEPS, "throughput", Step(fail, 5))
    monkeypatch.setitem(STEPS, "kernels", Step(hang, 0.2))
    steps = run(tmp_path, ["throughput", "kernels", "end to end"])
    assert steps["throughput"]["failed"] == "RuntimeError: no such kernel"
    assert steps["kernels"]["failed"] == "TimeoutError: stopped after 0 s"
    assert "not run" in steps["end to end"]


def test_nothing_begins_after_the_time_is_up(tmp_path: Path) -> None:
    assert run(tmp_path, ["throughput"], until_s=0.0) == {}
