"""Which kernels take the time: a profile of one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.setting import Setting, cudnn_tries
from benchmarks.gpu.throughput import build

NUM_KERNELS = 15


def measure_kernels(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Write the kernels that take longest, with their shares, for three precisions."""
    for precision in ("bfloat16", "tf32", "float32"):
        model = build(setting, precision)
        waveforms = setting.draw_waveforms(setting.batch_size)
        with cudnn_tries(True):
            for _ in range(2):
                model.get_latent(waveforms, setting.layer)
            setting.wait()
            activities = [ProfilerActivity.CUDA] if setting.is_gpu else [ProfilerActivity.CPU]
            with profile(activities=activities) as profiled:
                start_s = time.perf_counter()
                model.get_latent(waveforms, setting.layer)
                setting.wait()
                wall_us = 1e6 * (time.perf_counter() - start_s)
        put(precision, _list_kernels(profiled.key_averages(), setting.is_gpu, wall_us))


def _list_kernels(averages: Any, is_gpu: bool, wall_us: float) -> dict[str, Any]:
    def read_us(event: Any) -> float:
        return float(event.self_device_time_total if is_gpu else event.self_cpu_time_total)

    events = sorted(averages, key=read_us, reverse=True)
    total_us = sum(read_us(event) for event in events)
    return {
        "wall ms": wall_us / 1e3,
        "kernels ms": total_us / 1e3,
        "number of kernels": sum(event.count for event in events),
        "longest": [
            f"{read_us(event) / total_us:6.1%} {read_us(event) / 1e3:9.3f} ms {event.count:>5} x {event.key[:160]}"
            for event in events[:NUM_KERNELS]
        ],
    }
