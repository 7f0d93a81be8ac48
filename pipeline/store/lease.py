"""Leases: whether the process that wrote last may still be at work, here or on another machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LEASE_S = 900.0  # a writer on another machine counts as dead after so long a silence


def explain_lease(writer: Mapping[str, Any]) -> str:
    """Return what there is to add to "wait until it ends" about a writer, from ``describe_process``."""
    if writer["machine"] == _identify_machine():
        return ""
    return f", or {LEASE_S / 60:.0f} minutes after its last commit if it was killed"


def may_be_alive(writer: Mapping[str, Any], silence_s: float) -> bool:
    """Say whether another process than this one may still write.

    Args:
        writer: From ``describe_process``.
        silence_s: Since when it has not said anything.
    """
    if writer["machine"] != _identify_machine():
        return silence_s < LEASE_S
    return writer["pid"] != os.getpid() and _is_alive(writer["pid"], writer["started"])


def describe_process() -> dict[str, Any]:
    """Describe this process so that others can tell whether it is alive."""
    return {"machine": _identify_machine(), "pid": os.getpid(), "started": _read_start(os.getpid())}


def _identify_machine() -> str:
    """Name this machine since its last start: process numbers mean nothing beyond it."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot_id.read_text().strip() if boot_id.exists() else ''}"


def _read_start(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; "" where nobody tells, or it is gone."""
    try:
        # proc(5): field 22, counted after the command's name, which may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_alive(pid: int, started: str) -> bool:
    """Say whether a process still runs, and is not another one with its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _read_start(pid) == started
