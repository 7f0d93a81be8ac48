"""Windows a second of the model at published size, beside the published code where a checkout of it is given.

    .venv/bin/python -m benchmarks.model [--reference FOLDER/musicfm] [--rounds 3] [--threads N]

Random weights in a checkpoint of the published form, 30 s windows, layer 7, float32. All take turns, so that what
else the machine does falls on each alike; ratios come first. A matrix product and the model's largest convolution
are timed in the same run: achieved TFLOP/s stand as shares of the latter. ``published.py`` says what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ledger import take_time
from benchmarks.published import load_published
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from musicfm_model.model import MusicFM25Hz
from tests.checkpoints import write_random_checkpoint

WINDOW_S, LAYER = 30, 7
WINDOW_TFLOP = count_window_tflop(ModelConfig(), LAYER)  # as published, by direct convolutions


def main() -> None:
    """Print one line per way, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    waveform = torch.randn(1, WINDOW_S * 24_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ways = build_ways(Path(folder), flags.reference)
        latents: dict[str, Tensor] = {}
        times_s: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(flags.rounds):
            for name, compute in ways.items():
                latents[name], seconds = take_time(partial(compute, waveform))
                times_s[name].append(seconds)
        report = summarise(times_s, latents, measure_floor(flags.rounds))
    print_report(report, flags.threads)


def build_ways(folder: Path, reference: Path | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Load one random checkpoint in all ways; the first is what others are compared with."""
    path = folder / "random.pt"
    write_random_checkpoint(path, ModelConfig(), seed=0)
    checkpoint = load_checkpoint(str(path))
    ways: dict[str, Callable[[Tensor], Tensor]] = {}
    if reference is not None:
        published = load_published(reference, path)
        ways["published code"] = lambda wav: published.get_latent(wav, layer_ix=LAYER)
    plain = MusicFM25Hz.from_checkpoint(checkpoint)
    ways["ours, as published"] = lambda wav: plain.get_latent(wav, LAYER)
    fast = MusicFM25Hz.for_inference(checkpoint)
    ways["ours, for inference"] = lambda wav: fast.get_latent(wav, LAYER)
    return ways


def measure_floor(rounds: int) -> dict[str, float]:
    """Time a matrix product and the largest convolution; TFLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    x = torch.randn(1, 512, 64, 1500).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3).contiguous(memory_format=torch.channels_last)
    calls: dict[str, tuple[Callable[[], Tensor], float]] = {
        "matrix product": (lambda: a @ b, 2 * 2048**3),
        "convolution": (lambda: F.conv2d(x, weight, padding=1), 2 * 64 * 1500 * 512 * 512 * 9),
    }
    return {
        name: flop / min(take_time(call)[1] for _ in range(rounds)) / 1e12 for name, (call, flop) in calls.items()
    }


def summarise(times_s: dict[str, list[float]], latents: dict[str, Tensor], floor: dict[str, float]) -> Any:
    """Return medians, ratios to the first way, and relative errors against it."""
    first = next(iter(times_s))
    base = float(np.median(times_s[first]))
    rows = []
    for name, seconds in times_s.items():
        median_s = float(np.median(seconds))
        difference = (latents[name] - latents[first]).norm() / latents[first].norm()
        rows.append(
            {
                "way": name,
                "times_as_fast": base / median_s,
                "seconds_a_window": median_s,
                "windows_per_s": 1 / median_s,
                "tflops": WINDOW_TFLOP / median_s,
                "share_of_convolution": WINDOW_TFLOP / median_s / floor["convolution"],
                "relative_error": float(difference),
            }
        )
    return {"machine": platform.processor() or platform.machine(), "floor_tflops": floor, "rows": rows}


def print_report(report: Any, num_threads: int) -> None:
    """Print the table for people and the JSON for programs."""
    floor = ", ".join(f"{name} {rate:.3f}" for name, rate in report["floor_tflops"].items())
    print(f"{report['machine']}, {num_threads} threads; TFLOP/s of this machine now: {floor}")
    print(f"{'':<20} {'x as fast':>9} {'s/window':>9} {'TFLOP/s':>8} {'of conv':>8} {'rel. error':>11}")
    for row in report["rows"]:
        print(
            f"{row['way']:<20} {row['times_as_fast']:>9.2f} {row['seconds_a_window']:>9.2f} {row['tflops']:>8.3f} "
            f"{row['share_of_convolution']:>8.0%} {row['relative_error']:>11.1e}"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
