"""What reduced precision does to embeddings, to retrieval and to a linear probe, against float32 on real music.

    .venv/bin/python -m benchmarks.precision [--checkpoint FILE --layer N] [--windows 12] [--excerpts FILE.npz]

Windows of 30 s from the demo's music, pooled to each resolution: the mean cosine of frames with those of float32,
and the relative error over all of them. With the excerpts that ``python -m training.evaluate prepare`` makes, also
recall@1 of another excerpt of the same held-out track (centred and whitened by tracks trained on) and the R² of a
ridge regression of onset strength from single frames. On a processor TensorFloat-32 is emulated
(``benchmarks.tf32``).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.clips import CLIP_S, cut_clip
from benchmarks.tf32 import EmulatedTF32
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.model import MusicFM25Hz
from pipeline.config import DEFAULT_RESOLUTIONS, PRECISIONS, RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.embed.pool import pool_frames
from pipeline.training.gates import find_hits, fit_whitening
from training.scores import fit_and_score, measure_onsets

NANO = Path(__file__).parents[1] / "demo" / "musicfm_nano.pt"
BATCH = 16
Excerpts = Mapping[str, NDArray[np.int16]]


def main() -> None:
    """Print one line per precision and resolution, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(NANO), help="as musicfm embed takes it")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--excerpts", type=Path)
    flags = parser.parse_args()
    excerpts = dict(np.load(flags.excerpts)) if flags.excerpts else None
    report = measure(load_checkpoint(flags.checkpoint), flags.layer, flags.windows, excerpts)
    report["checkpoint"] = Path(flags.checkpoint).name
    print_report(report)
    print(json.dumps(report))


def measure(checkpoint: Checkpoint, layer: int, num_windows: int, excerpts: Excerpts | None) -> dict[str, Any]:
    """Embed the same music in each precision and compare.

    Args:
        checkpoint: The model.
        layer: Which hidden state.
        num_windows: Windows of the demo's music.
        excerpts: From ``training.excerpts.read_excerpts``; None leaves out retrieval and the probe.

    Returns:
        For each of ``PRECISIONS``: seconds a window, figures by resolution, and what excerpts gave.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    windows = [torch.from_numpy(cut_clip(number, CLIP_S, SAMPLE_RATE_HZ)) for number in range(num_windows)]
    exact = None
    rows: dict[str, Any] = {}
    for precision in PRECISIONS:
        with Embedding(checkpoint, layer, precision, device) as embed:
            start_s = time.perf_counter()
            frames = [embed(window[None])[0] for window in windows]
            rows[precision] = {"seconds_a_window": (time.perf_counter() - start_s) / num_windows}
            exact = frames if exact is None else exact
            rows[precision]["resolutions"] = compare(frames, exact)
            if excerpts is not None:
                rows[precision]["excerpts"] = score_excerpts(embed, excerpts)
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "machine": machine,
        "num_windows": num_windows,
        "layer": layer,
        "is_tf32_emulated": device == "cpu",
        "num_tracks": 0 if excerpts is None else len(excerpts["clean"]),
        "precisions": rows,
    }


class Embedding:
    """A model in one precision, on a processor with TensorFloat-32 emulated; a context to call it in."""

    def __init__(self, checkpoint: Checkpoint, layer: int, precision: str, device: str) -> None:
        is_emulated = precision == "tf32" and device == "cpu"
        self.layer, self.device = layer, device
        if is_emulated:  # the model for processors packs its weights for oneDNN, where no operand can be rounded
            self.model = MusicFM25Hz.from_checkpoint(checkpoint).eval()
        else:
            self.model = MusicFM25Hz.for_inference(checkpoint, device, precision=precision)
        self.arithmetic = EmulatedTF32() if is_emulated else nullcontext()

    def __enter__(self) -> Embedding:
        self.arithmetic.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.arithmetic.__exit__(*error)

    @torch.inference_mode()
    def __call__(self, wav: Tensor) -> Tensor:
        """Map (B, S) samples to (B, T, embed_dim) float32 frames on the processor."""
        return self.model.get_latent(wav.to(self.device), self.layer).float().cpu()


def compare(frames: list[Tensor], exact: list[Tensor]) -> dict[str, dict[str, float]]:
    """Return mean cosine, least cosine and relative error of pooled features, by resolution."""
    figures = {}
    for name in DEFAULT_RESOLUTIONS:
        ours = torch.cat([pool_frames(each, RESOLUTIONS[name]) for each in frames]).double()
        true = torch.cat([pool_frames(each, RESOLUTIONS[name]) for each in exact]).double()
        cosine = F.cosine_similarity(ours, true, dim=1)
        error = (ours - true).norm() / true.norm()
        figures[name] = {
            "mean_cosine": float(cosine.mean()),
            "least_cosine": float(cosine.min()),
            "relative_error": float(error),
        }
    return figures


def score_excerpts(embed: Embedding, excerpts: Excerpts) -> dict[str, float]:
    """Return recall@1 of another excerpt of a track, centred and whitened, and the onset probe's mean R²."""
    frames = {part: embed_all(embed, excerpts[part]) for part in ("reference", "clean", "background")}
    means = {part: torch.from_numpy(each.mean(axis=1)) for part, each in frames.items()}
    middle = means["background"].mean(dim=0)
    figures = {}
    for name, matrix in (("centred", torch.eye(len(middle))), ("whitened", fit_whitening(means["background"]))):
        query, reference = ((means[part] - middle) @ matrix for part in ("clean", "reference"))
        figures[f"recall_{name}"] = float(find_hits(query, reference).float().mean())
    targets = {part: [measure_onsets(wav) for wav in excerpts[part]] for part in ("background", "clean")}
    r2 = fit_and_score(frames["background"], targets["background"], frames["clean"], targets["clean"])
    figures["onset_r2"] = float(r2.mean())
    return figures


def embed_all(embed: Embedding, excerpts: NDArray[np.int16]) -> NDArray[np.float32]:
    """Map (N, S) int16 waveforms to (N, T, embed_dim) frames."""
    parts = []
    for start in range(0, len(excerpts), BATCH):
        wav = torch.from_numpy(excerpts[start : start + BATCH].astype(np.float32) / 32767)
        parts.append(embed(wav).numpy())
    return np.concatenate(parts)


def print_report(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    emulated = "; tf32 emulated" if report["is_tf32_emulated"] else ""
    print(
        f"{report['machine']}, {report['checkpoint']}, layer {report['layer']}, {report['num_windows']} windows "
        f"of real music, against float32{emulated}"
    )
    print(f"{'':<9} {'':<7} {'mean cosine':>12} {'least cosine':>13} {'rel. error':>11}")
    for precision, row in report["precisions"].items():
        for name, figures in row["resolutions"].items() if precision != "float32" else ():
            print(
                f"{precision:<9} {name:<7} {figures['mean_cosine']:>12.6f} {figures['least_cosine']:>13.6f} "
                f"{figures['relative_error']:>11.1e}"
            )
    if report["num_tracks"]:
        print(f"{report['num_tracks']} held-out tracks: recall@1 centred, whitened; onset R²")
        for precision, row in report["precisions"].items():
            print(f"{precision:<9} " + " ".join(f"{score:.3f}" for score in row["excerpts"].values()))


if __name__ == "__main__":
    main()
