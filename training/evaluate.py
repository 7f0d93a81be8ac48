"""Measure models on held-out tracks: what the model card says of nano, of untrained weights and of log-mels.

    python -m training.evaluate prepare --corpus FOLDER --excerpts FILE.npz
    python -m training.evaluate measure --excerpts FILE.npz --out FILE.json NAME=CHECKPOINT [NAME=CHECKPOINT …]

``prepare`` reads two excerpts of 10 s of every held-out track and one of every other track trained on, from the
files as they were published, and makes the queries: clean, a semitone up or down, through a telephone's band, and
through MP3 at 64 kbit/s. ``measure`` pools hidden states of those and scores retrieval and regression by frames of
onset strength and chroma (see ``scores``). Features are kept beside the excerpts: only new models cost time.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from musicfm_model import MusicFM25Hz, load_checkpoint
from musicfm_model.log_mel import LogMel
from training.excerpts import QUERIES, read_excerpts
from training.scores import score_probes, score_retrieval

BATCH = 16
Array = NDArray[np.float32]


def main() -> int:
    """Prepare excerpts, or measure models on them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare")
    prepare.add_argument("--corpus", type=Path, required=True, help="folder that training.corpus has filled")
    prepare.add_argument("--excerpts", type=Path, required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("--excerpts", type=Path, required=True)
    measure.add_argument("--out", type=Path, required=True)
    measure.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    flags = parser.parse_args()
    if flags.command == "prepare":
        with (flags.corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
            tracks = list(csv.DictReader(file))
        np.savez(flags.excerpts, **read_excerpts(flags.corpus, tracks))  # type: ignore[arg-type]
        return 0
    excerpts = dict(np.load(flags.excerpts))
    features = {"log-mel": embed(flags.excerpts, "log-mel", None, excerpts)}
    for text in flags.models:
        name, _, checkpoint = text.partition("=")
        features[name] = embed(flags.excerpts, name, checkpoint, excerpts)
    result = {
        "num_held_out": len(excerpts["clean"]),
        "retrieval": score_retrieval(features),
        "probes": score_probes(features, excerpts),
    }
    flags.out.write_text(json.dumps(result, indent=1))
    return 0


def embed(excerpts_path: Path, name: str, checkpoint: str | None, excerpts: dict[str, Array]) -> dict[str, Array]:
    """Return a model's features by "<layer>.<part>", from the file beside the excerpts if it is newer than both.

    Parts are ``reference``, ``background`` and the queries: (N, 2 * width) mean and deviation over time; and
    ``frames_train`` and ``frames_held_out``: (N, T, width) float16 at 25 Hz.
    """
    cache = excerpts_path.with_name(f"{excerpts_path.stem}.{name}.npz")
    made_from = [excerpts_path, *([] if checkpoint is None else [Path(checkpoint)])]
    if cache.exists() and cache.stat().st_mtime > max(path.stat().st_mtime for path in made_from):
        return dict(np.load(cache))
    frames_of = open_log_mel() if checkpoint is None else open_model(checkpoint)  # type: ignore[no-untyped-call]
    features: dict[str, list[Array]] = {}
    for part in ("reference", "background", *QUERIES):
        for start in range(0, len(excerpts[part]), BATCH):
            wav = torch.from_numpy(excerpts[part][start : start + BATCH].astype(np.float32) / 32767)
            for layer, (pooled, frames) in frames_of(wav).items():
                features.setdefault(f"{layer}.{part}", []).append(pooled)
                kept = {"background": "frames_train", "clean": "frames_held_out"}.get(part)
                if kept:
                    features.setdefault(f"{layer}.{kept}", []).append(frames.astype(np.float16))
    joined = {key: np.concatenate(parts) for key, parts in features.items()}
    np.savez(cache, **joined)  # type: ignore[arg-type]
    return joined


def open_log_mel():  # type: ignore[no-untyped-def]
    """Return what gives log-mels: pooled over 100 Hz frames, and four of those as one frame at 25 Hz."""
    transform = LogMel()

    def frames_of(wav: torch.Tensor) -> dict[str, tuple[Array, Array]]:
        mel = transform(wav).transpose(1, 2)
        return {"-": (pool(mel), mel.reshape(len(mel), mel.shape[1] // 4, -1).numpy())}

    return frames_of


def open_model(checkpoint: str):  # type: ignore[no-untyped-def]
    """Return what gives every hidden state of a checkpoint."""
    model = MusicFM25Hz.for_inference(load_checkpoint(checkpoint))

    @torch.inference_mode()
    def frames_of(wav: torch.Tensor) -> dict[str, tuple[Array, Array]]:
        states = model.get_hidden_states(wav, range(model.num_layers + 1))
        return {str(layer): (pool(frames), frames.numpy()) for layer, frames in states.items()}

    return frames_of


def pool(frames: torch.Tensor) -> Array:
    """Return mean and standard deviation over time: (B, T, D) to (B, 2 * D)."""
    pooled: Array = torch.cat([frames.mean(dim=1), frames.std(dim=1)], dim=1).numpy()
    return pooled


if __name__ == "__main__":
    sys.exit(main())
