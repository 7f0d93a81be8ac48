"""``jobs.embed_catalog`` with the same flags, and a last line of JSON that says what Ray did meanwhile."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray._private import internal_api

from jobs.embed_catalog import main
from jobs.program import run_program


def main_measured(arguments: list[str]) -> int:
    """Run the job; print its own report, then the facts; return its exit code."""
    code = main(arguments)
    api: Any = internal_api
    address = ray.get_runtime_context().gcs_address
    store = api.get_memory_info_reply(api.get_state_from_address(address)).store_stats
    facts = {
        "spilled_bytes": store.spilled_bytes_total,
        "object_store_bytes": store.cumulative_created_bytes,
        **read_processes(),
    }
    print(json.dumps(facts))
    return code


def read_processes() -> dict[str, Any]:
    """Return core-seconds and peak resident bytes of this process and of Ray's on this node, by name.

    A worker that maps objects which others hold as well counts them in its peak.
    """
    core_s: dict[str, float] = {}
    peak_bytes: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_ours = _is_descendant(folder)
            usage = (folder / "stat").read_text().rpartition(")")[2].split()
            status = dict(
                line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
            )
        except OSError:
            continue
        if not is_ours or "VmHWM" not in status:
            continue
        name = f"{Path(command[0]).name} {folder.name}"
        core_s[name] = (int(usage[11]) + int(usage[12])) / os.sysconf("SC_CLK_TCK")
        peak_bytes[name] = int(status["VmHWM"].split()[0]) * 1024
    return {"core_seconds": core_s, "peak_bytes": peak_bytes}


def _is_descendant(folder: Path) -> bool:
    """Say whether a process is this one or was started below it."""
    process = int(folder.name)
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    run_program("embed_catalog.py", lambda: main_measured(sys.argv[1:]))
