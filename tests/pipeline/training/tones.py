"""Tones of two kinds: a small task that a model learns in seconds."""

from pathlib import Path

import numpy as np
import torch

from musicfm_model.log_mel import LogMel
from pipeline.probing.annotations import Annotation
from pipeline.training.corpus import TRAIN, CorpusWriter, compute_log_mel

RATE = 24_000
KINDS = ("rising", "falling")
SPLIT_SIZES = {"train": 40, "valid": 20, "test": 40}


def make_tone(number: int, kind: str, seconds: float = 1.2) -> torch.Tensor:
    """Return a train of short glides in noise, each an octave up or down: over time both sound the same."""
    random = np.random.default_rng(number)
    time_s = np.arange(round(seconds * RATE)) / RATE
    phase = (time_s / 0.4 + random.random()) % 1.0
    glide = phase if kind == "rising" else 1.0 - phase
    hertz = random.uniform(200.0, 800.0) * 2**glide
    tone = np.sin(2 * np.pi * np.cumsum(hertz) / RATE)
    return torch.from_numpy((0.3 * tone + 0.003 * random.standard_normal(len(time_s))).astype(np.float32))


def write_tones(folder: Path) -> dict[str, Annotation]:
    """Write a corpus of tones, and return what they are."""
    writer, transform, said = CorpusWriter(folder), LogMel(), {}
    number = 0
    for split, size in SPLIT_SIZES.items():
        for _ in range(size):
            kind = KINDS[number % 2]
            track_id = f"{number:03d}"
            writer.add(track_id, compute_log_mel(transform, make_tone(number, kind)).numpy(), track_id, TRAIN)
            said[track_id] = Annotation((kind,), split=split)
            number += 1
    writer.close()
    return said
