"""What reduced precision does to the embeddings, by resolution, against float32 on real music.

    .venv/bin/python -m benchmarks.precision [--size published|small] [--windows 1]

Windows of 30 s from the demo's music, layer 7, pooled to each resolution: the mean cosine of frames with those
of float32, and the relative error over all of them. The weights are random: how far a trained model's
activations tolerate rounding is another question, and these figures are a check of the arithmetic, not a
promise. TensorFloat-32 is an arithmetic of GPUs; on a processor its row is not measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clips import CLIP_S, cut_clip
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.model import MusicFM25Hz
from pipeline.config import DEFAULT_RESOLUTIONS, PRECISIONS, RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.embed.pool import pool_frames
from tests.checkpoints import write_random_checkpoint

LAYER = 7
SIZES = {
    "published": ModelConfig(num_layers=LAYER),  # the later layers would not be computed
    "small": ModelConfig(embed_dim=256, num_layers=LAYER, num_heads=4, ffn_dim=512, conv_dim=16),
}


def main() -> None:
    """Print one line per precision and resolution, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="published")
    parser.add_argument("--windows", type=int, default=1)
    flags = parser.parse_args()
    report = measure(flags.size, flags.windows)
    print_report(report)
    print(json.dumps(report))


def measure(size: str, num_windows: int) -> dict[str, Any]:
    """Embed the same windows in each precision that the device has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        write_random_checkpoint(path, SIZES[size], seed=0)
        checkpoint = load_checkpoint(str(path))
    waveforms = [torch.from_numpy(cut_clip(number, CLIP_S, SAMPLE_RATE_HZ)) for number in range(num_windows)]
    exact, exact_s = embed(checkpoint, "float32", device, waveforms)
    rows: dict[str, Any] = {"float32": {"seconds_a_window": exact_s}}
    for precision in PRECISIONS:
        if precision == "float32":
            continue
        if precision == "tf32" and device == "cpu":
            rows[precision] = None
            continue
        frames, seconds = embed(checkpoint, precision, device, waveforms)
        rows[precision] = {"seconds_a_window": seconds, "resolutions": compare(frames, exact)}
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"machine": machine, "size": size, "num_windows": num_windows, "layer": LAYER, "precisions": rows}


def embed(
    checkpoint: Checkpoint, precision: str, device: str, waveforms: list[Tensor]
) -> tuple[list[Tensor], float]:
    """Return each waveform's frames as float32, and the seconds that one took."""
    model = MusicFM25Hz.for_inference(checkpoint, device, precision=precision)
    start_s = time.perf_counter()
    with torch.inference_mode():
        frames = [model.get_latent(each[None].to(device), LAYER)[0].float().cpu() for each in waveforms]
    return frames, (time.perf_counter() - start_s) / len(waveforms)


def compare(frames: list[Tensor], exact: list[Tensor]) -> dict[str, dict[str, float]]:
    """Return mean cosine, least cosine and relative error of pooled features, by resolution."""
    found = {}
    for name in DEFAULT_RESOLUTIONS:
        ours = torch.cat([pool_frames(each, RESOLUTIONS[name]) for each in frames]).double()
        true = torch.cat([pool_frames(each, RESOLUTIONS[name]) for each in exact]).double()
        cosine = F.cosine_similarity(ours, true, dim=1)
        error = (ours - true).norm() / true.norm()
        found[name] = {
            "mean_cosine": float(cosine.mean()),
            "least_cosine": float(cosine.min()),
            "relative_error": float(error),
        }
    return found


def print_report(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    print(
        f"{report['machine']}, {report['size']} size, random weights (a trained model's figures differ), layer "
        f"{report['layer']}, {report['num_windows']} window(s) of real music, against float32"
    )
    print(f"{'':<9} {'':<7} {'mean cosine':>12} {'least cosine':>13} {'rel. error':>11}")
    for precision, row in report["precisions"].items():
        if row is None:
            command = "python -m benchmarks.precision, on a GPU"
            print(f"{precision:<9} not measured: this device has no such arithmetic ({command})")
        for name, figures in (row or {}).get("resolutions", {}).items():
            print(
                f"{precision:<9} {name:<7} {figures['mean_cosine']:>12.6f} {figures['least_cosine']:>13.6f} "
                f"{figures['relative_error']:>11.1e}"
            )


if __name__ == "__main__":
    main()
