"""The figures of a measurement as tables for people."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu.setting import PRECISIONS


def describe_device(rehearse: bool) -> dict[str, Any]:
    """Return what a figure needs beside it."""
    found = {"torch": torch.__version__, "cores": os.cpu_count(), "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    if rehearse:
        return {"name": "a rehearsal on the processor: no figure means anything", **found}
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
        "--format=csv,noheader",
    ]
    try:
        state = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        state = "unknown"
    free, total = torch.cuda.mem_get_info()
    return {
        "name": torch.cuda.get_device_name(),
        "free_gb": free / 1e9,
        "total_gb": total / 1e9,
        "state": state,
    } | found


def write_report(report: Mapping[str, Any]) -> str:
    """Return the tables: the precisions side by side, then every step's figures."""
    steps = report["steps"]
    lines = [f"{report['machine']['name']}, PyTorch {report['machine']['torch']}", ""]
    lines += _compare_precisions(steps)
    for name, figures in steps.items():
        lines += ["", f"{name} ({figures.get('seconds', 'not finished:')} s)", ""]
        lines += [f"- {key}: {_show(value)}" for key, value in figures.items() if key != "seconds"]
    return "\n".join(lines) + "\n"


def _compare_precisions(steps: Mapping[str, Any]) -> list[str]:
    rows = [
        "| precision | windows/s | TFLOP/s | of the matrix product | × published code | peak GB |",
        "|---|" + "--:|" * 5,
    ]
    for precision in PRECISIONS:
        measured = {
            key: row
            for key, row in steps.get("throughput", {}).items()
            if key.startswith(f"{precision},") and "windows/s" in row
        }
        if not measured:
            continue
        key, best = max(measured.items(), key=lambda item: float(item[1]["windows/s"]))
        matrix = steps.get("ceilings", {}).get(f"matrix {precision} TFLOP/s")
        published = [
            row["windows/s"]
            for name, row in steps.get("published", {}).items()
            if name.startswith(f"{precision},") and "windows/s" in row
        ]
        share = f"{best['TFLOP/s'] / matrix:.0%}" if matrix else "not measured"
        ratio = f"{best['windows/s'] / max(published):.2f}" if published else "not measured"
        rate = f"{best['windows/s']:.1f} | {best['TFLOP/s']:.1f}"
        rows.append(f"| {key} | {rate} | {share} | {ratio} | {best.get('peak GB', 0):.1f} |")
    return rows


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_show(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "".join(f"\n  - {_show(each)}" for each in value)
    return str(value)
