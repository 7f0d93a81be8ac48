"""What may be skipped on a plain machine, and that nothing else is: a test that did not run proves nothing."""

from __future__ import annotations

import re

import pytest

# What a machine may lack: a GPU and flash-attn, Feast's environment, Spark's Java, a browser, or one of root and
# another user.
ALLOWED_REASONS = re.compile(r"CUDA|flash.attn|Feast|Java|browser|root")


class SkipGuard:
    """A pytest plugin: a run in which something was skipped for another reason than the allowed ones fails."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = str(report.longrepr[2])
            if not ALLOWED_REASONS.search(reason):
                self._refused[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refused:
            terminalreporter.section("skipped though a plain machine has what they need", red=True)
            for name, reason in self._refused.items():
                terminalreporter.line(f"{name}: {reason}")
            terminalreporter.line("`make setup` installs all else; tests/skips.py lists what may be missing.")
