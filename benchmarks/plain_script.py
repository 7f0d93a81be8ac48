"""The script that a user of the published model writes first, for the benchmark of whole runs to race against.

    .venv/bin/python -m benchmarks.plain_script AUDIO_FOLDER OUT_FOLDER CHECKPOINT [--reference CHECKOUT]

A DataLoader with a worker a core decodes (libsndfile) and resamples (torchaudio); the model takes a file's
windows of 30 s one by one, ``get_latent(layer_ix=7)``; frames are pooled by ``adaptive_avg_pool1d`` and saved as
float32, one ``.npz`` a track. No retries, no checks, no index, no transaction. The model is the published code
where a checkout of it is given, else this project's modules as published, with all their layers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.published import load_published
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.model import MusicFM25Hz

SAMPLE_RATE_HZ, WINDOW_S, LAYER = 24_000, 30, 7
RATES_HZ = {"50hz": 50, "16hz": 16, "8hz": 8, "0.5hz": 0.5}


class Tracks(Dataset[tuple[str, Tensor]]):
    """Files of a folder as (name, mono waveform at 24 kHz)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        """Decode and resample one file."""
        samples, rate = soundfile.read(self.paths[index], dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples).mean(dim=1)
        return self.paths[index].stem, torchaudio.functional.resample(waveform, rate, SAMPLE_RATE_HZ)


def main() -> None:
    """Embed a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="a checkout of minzwon/musicfm")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True)
    get_latent = load_model(flags.checkpoint, flags.reference)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        for name, waveform in DataLoader(Tracks(flags.audio), batch_size=None, num_workers=os.cpu_count() or 1):
            windows = waveform.to(device).split(WINDOW_S * SAMPLE_RATE_HZ)
            frames = torch.cat([get_latent(window[None])[0] for window in windows])
            save: Any = pool(frames, len(waveform) / SAMPLE_RATE_HZ)
            np.savez(flags.out / f"{name}.npz", **save)


def load_model(checkpoint: Path, reference: Path | None) -> Callable[[Tensor], Tensor]:
    """Return a call of the model that gives one window's latents."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if reference is not None:
        published = load_published(reference, checkpoint).to(device)
        return lambda waveform: published.get_latent(waveform, layer_ix=LAYER)
    model = MusicFM25Hz.from_checkpoint(load_checkpoint(str(checkpoint))).to(device)
    return lambda waveform: model.get_predictions(waveform)[1][LAYER]


def pool(frames: Tensor, duration_s: float) -> dict[str, np.ndarray]:
    """Pool (num_frames, embed_dim) to all five resolutions."""
    columns = frames.T[None]
    pooled = {
        name: F.adaptive_avg_pool1d(columns, max(1, round(duration_s * rate)))[0].T
        for name, rate in RATES_HZ.items()
    }
    pooled["global"] = frames.mean(dim=0)
    return {name: features.cpu().numpy() for name, features in pooled.items()}


if __name__ == "__main__":
    main()
