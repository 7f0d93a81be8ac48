"""The model on a GPU at published size: windows a second and TFLOP/s by precision, as shares of a matrix product.

    .venv/bin/python -m benchmarks.gpu [--reference FOLDER/musicfm] [--batch-size 16] [--rounds 5]

Random weights, 30 s windows, layer 7. The matrix product (8192 × 8192) and the published code, where a checkout
of it is given, run in the same precision and the same run. Without a GPU it says so, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.published import load_published
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import compute_dtype, float32_arithmetic
from pipeline.config import PRECISIONS
from tests.checkpoints import write_random_checkpoint

LAYER, WINDOW_SAMPLES = 7, 720_000
WINDOW_TFLOP = count_window_tflop(ModelConfig(), LAYER)
MATRIX_SIZE = 8192
COMMAND = "python -m benchmarks.gpu --reference CHECKOUT"
BUSY_COMMAND = "python -m benchmarks.end_to_end --published-size --tracks 2000 --rounds 1"


def main() -> None:
    """Print one line per precision, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    report = measure(flags.reference, flags.batch_size, flags.rounds)
    print_report(report)
    print(json.dumps(report))


def measure(reference: Path | None, batch_size: int, num_rounds: int) -> dict[str, Any]:
    """Measure every precision, or nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return {"machine": None, "command": COMMAND, "busy_command": BUSY_COMMAND}
    waveforms = torch.randn(batch_size, WINDOW_SAMPLES, device="cuda") * 0.1
    rows = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "random.pt"
        write_random_checkpoint(path, ModelConfig(), seed=0)
        checkpoint = load_checkpoint(str(path))
        for precision in PRECISIONS:
            model = MusicFM25Hz.for_inference(checkpoint, "cuda", precision=precision)
            seconds = _time(partial(model.get_latent, waveforms, LAYER), num_rounds)
            matrix_tflops = _measure_matrix(precision, num_rounds)
            row = {"windows_per_s": batch_size / seconds, "tflops": WINDOW_TFLOP * batch_size / seconds}
            row |= {"matrix_tflops": matrix_tflops, "share_of_matrix": row["tflops"] / matrix_tflops}
            if reference is not None:
                row["times_as_fast"] = _time_published(reference, path, precision, waveforms, num_rounds) / seconds
            rows[precision] = row
    return {"machine": torch.cuda.get_device_name(), "batch_size": batch_size, "precisions": rows}


def print_report(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    if report["machine"] is None:
        print(
            f"no GPU here: bf16, fp16, tf32 and float32 rows are not measured; {report['command']} measures them"
        )
        print(f"how busy a run keeps the model there is not measured; {report['busy_command']} measures it")
        return
    print(f"{report['machine']}, {report['batch_size']} windows at once")
    print(f"{'':<9} {'windows/s':>10} {'TFLOP/s':>8} {'of matrix':>10} {'x published':>12}")
    for name, row in report["precisions"].items():
        ratio = f"{row['times_as_fast']:.2f}" if "times_as_fast" in row else "no checkout"
        print(
            f"{name:<9} {row['windows_per_s']:>10.1f} {row['tflops']:>8.1f} {row['share_of_matrix']:>10.0%} "
            f"{ratio:>12}"
        )


def _time_published(
    reference: Path, path: Path, precision: str, waveforms: torch.Tensor, num_rounds: int
) -> float:
    """Return seconds of the published code: reduced precisions by autocast, as its users run it."""
    published = load_published(reference, path).cuda()
    dtype = compute_dtype(precision)

    def call() -> torch.Tensor:
        with (
            float32_arithmetic(waveforms.device, allow_tf32=precision == "tf32"),
            torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32),
        ):
            latents: torch.Tensor = published.get_latent(waveforms, layer_ix=LAYER)
            return latents

    return _time(call, num_rounds)


def _measure_matrix(precision: str, num_rounds: int) -> float:
    """Return TFLOP/s of a matrix product in a precision."""
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=compute_dtype(precision))
    with float32_arithmetic(a.device, allow_tf32=precision == "tf32"):
        return 2 * MATRIX_SIZE**3 / _time(lambda: a @ b, 4 * num_rounds) / 1e12


def _time(call: Callable[[], Any], num_rounds: int) -> float:
    """Return the least seconds of a call on the GPU, after two that warm it up."""
    for _ in range(2):
        call()
    taken_s = []
    for _ in range(num_rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        taken_s.append(float(start.elapsed_time(stop)) / 1e3)
    return min(taken_s)


if __name__ == "__main__":
    main()
