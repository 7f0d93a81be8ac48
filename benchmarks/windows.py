"""What `--windows task` costs in model time, beside the `shared` policy and beside each window on its own.

    .venv/bin/python -m benchmarks.windows [--seconds 30 95 240] [--rounds 1] [--threads 1] [--device cpu]

Random weights in a checkpoint of the published form, layer 7, float32, all resolutions. The time is that of the
model alone, from waveforms to frames of each window length; on a processor it is processor time, so that what else
the machine does counts little. "Each window on its own" calls the model once a window, as its users do. The error
is the largest difference from that, over the largest magnitude.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.model import MusicFM25Hz
from pipeline.config import DEFAULT_RESOLUTIONS, SAMPLE_RATE_HZ, WindowPolicy, list_window_lengths_s
from pipeline.embed.infer import Inference
from pipeline.embed.track import Track, list_inputs
from pipeline.embed.window import plan_windows
from tests.checkpoints import write_random_checkpoint

LAYER = 7

Frames = dict[float, Tensor]
Row = dict[str, float | str]


def main() -> None:
    """Print a line for each track length and way, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 95.0], help="lengths of the tracks")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest of so many counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1, help="30 s windows in one call of the model")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        write_random_checkpoint(path, ModelConfig(), seed=0)
        model = MusicFM25Hz.for_inference(load_checkpoint(str(path)), flags.device)
    run(model, make_waveform(6.5), "task", flags.batch_size)  # warm up
    rows: list[Row] = []
    for seconds in flags.seconds:
        rows += measure(model, make_waveform(seconds), flags.rounds, flags.batch_size)
    print_report(rows, flags.threads)


def make_waveform(seconds: float) -> np.ndarray:
    """Return a swelling tone over noise."""
    generator = np.random.default_rng(0)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    tone = np.sin(np.arange(num_samples) * 0.03) * np.linspace(0.1, 0.9, num_samples)
    waveform: np.ndarray = (0.3 * tone + 0.1 * generator.normal(size=num_samples)).astype(np.float32)
    return waveform


def measure(model: MusicFM25Hz, waveform: np.ndarray, rounds: int, batch_size: int) -> list[Row]:
    """Time all ways of one track in turn."""
    ways: dict[str, Callable[[], Frames]] = {
        "shared": lambda: run(model, waveform, "shared", batch_size),
        "task": lambda: run(model, waveform, "task", batch_size),
        "task, each window on its own": lambda: run_alone(model, waveform, "task"),
    }
    frames: dict[str, Frames] = {}
    times_s: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, compute in ways.items():
            start_s = read_clock(model)
            frames[way] = compute()
            times_s[way].append(read_clock(model) - start_s)
    expected = frames["task, each window on its own"]
    error = max(compare(latent, expected[window_s]) for window_s, latent in frames["task"].items())
    shared_s = min(times_s["shared"])
    return [
        {
            "track_s": len(waveform) / SAMPLE_RATE_HZ,
            "way": way,
            "seconds": min(seconds),
            "times_the_shared_policy": min(seconds) / shared_s,
            "relative_error": error if way == "task" else 0.0,
        }
        for way, seconds in times_s.items()
    ]


def run(model: MusicFM25Hz, waveform: np.ndarray, policy: WindowPolicy, batch_size: int) -> Frames:
    """Compute frames of each window length as the pipeline does."""
    track = Track(waveform, [])
    inputs = list_inputs(track, {window_s: {LAYER} for window_s in list_lengths_s(policy)})
    for _ in Inference(model, batch_size).run(inputs):
        pass
    if track.error is not None:
        raise track.error
    return {window_s: frames for (window_s, _), frames in track.frames.items()}


@torch.inference_mode()
def run_alone(model: MusicFM25Hz, waveform: np.ndarray, policy: WindowPolicy) -> Frames:
    """Compute frames of each window length with one call of the model for each window."""
    samples = torch.from_numpy(waveform).to(model.linear.weight.device)
    frames = {}
    for window_s in list_lengths_s(policy):
        kept = []
        for window in plan_windows(len(waveform), window_s):
            excerpt = samples[None, window.start_sample : window.start_sample + window.num_samples]
            found = model.get_latent(excerpt, LAYER)[0]
            kept.append(found[window.first_kept_frame : window.first_kept_frame + window.num_kept_frames])
        frames[window_s] = torch.cat(kept)
    return frames


def list_lengths_s(policy: WindowPolicy) -> Sequence[float]:
    """Return the different window lengths of the default resolutions."""
    return sorted(list_window_lengths_s(DEFAULT_RESOLUTIONS, policy))


def read_clock(model: MusicFM25Hz) -> float:
    """Return processor seconds, or where the model is on a GPU seconds once it has nothing left to do."""
    device = model.linear.weight.device
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def compare(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


def print_report(rows: Sequence[Row], num_threads: int) -> None:
    """Print the table for people and the JSON for programs."""
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {num_threads} threads; model time of one track, layer {LAYER}, float32")
    print(f"{'track':>7} {'windows':<30} {'seconds':>8} {'x shared':>9} {'rel. error':>11}")
    for row in rows:
        print(
            f"{row['track_s']:>5.0f} s {row['way']:<30} {row['seconds']:>8.2f} "
            f"{row['times_the_shared_policy']:>9.2f} {row['relative_error']:>11.1e}"
        )
    print(json.dumps({"machine": machine, "threads": num_threads, "rows": rows}))


if __name__ == "__main__":
    main()
