"""Processes that tests start: commands as users run them, and free ports for servers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One finished command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The last line of its output, which is JSON."""
        report: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return report


def run_command(*arguments: str, environment: Mapping[str, str] | None = None, timeout_s: float = 280.0) -> Run:
    """Run one of the project's commands to its end.

    Args:
        arguments: Path of the command below the project's root, and its command line.
        environment: All of its environment; by default that of the tests.
        timeout_s: When to give up.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def find_free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
