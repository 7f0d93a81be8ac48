"""Turn packs of audio into a corpus of log-mels, without Ray: for a machine that has torch and soundfile alone.

    python -m training.prepare_pack --pack DIR --corpus DIR

A pack is a folder with ``manifest.csv`` (columns ``file``, ``track_id``, ``artist``, ``split``) and the files that
it names. All processors decode; the log-mels are computed on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from musicfm_model.constants import SAMPLE_RATE
from musicfm_model.log_mel import LogMel
from pipeline.training.corpus import HELD_OUT, TRAIN, CorpusWriter, compute_log_mel


def main() -> int:
    """Read a pack, write its corpus, and print how much it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--corpus", type=Path, required=True, help="folder to write")
    flags = parser.parse_args()
    start_s = time.monotonic()
    rows = read_manifest(flags.pack)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = LogMel().to(device)
    writer = CorpusWriter(flags.corpus)
    num_samples = num_failed = 0
    # Spawned: a process that is forked while torch's threads run may wait for them for ever.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for row, waveform in zip(rows, pool.map(decode, (row["path"] for row in rows)), strict=True):
            if isinstance(waveform, str):
                num_failed += 1
                print(f"{row['path']}: {waveform}", file=sys.stderr)
                continue
            num_samples += len(waveform)
            wav = torch.from_numpy(waveform).to(device).float() / 32768
            log_mel = compute_log_mel(transform, wav).cpu().numpy()
            writer.add(row["track_id"], log_mel, row["group"], row["part"])
    writer.close()
    hours = num_samples / SAMPLE_RATE / 3600
    elapsed_s = time.monotonic() - start_s
    print(
        f"{flags.corpus}: {len(rows) - num_failed} tracks, {hours:.2f} h, {num_failed} failed, {elapsed_s:.1f} s"
    )
    return 0 if num_failed < len(rows) else 1


def read_manifest(pack: Path) -> list[dict[str, str]]:
    """Return path, track_id, group and part of every file of a pack."""
    with (pack / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "path": str(pack / row["file"]),
            "track_id": row["track_id"],
            "group": row["artist"],
            "part": TRAIN if row["split"] == "train" else HELD_OUT,
        }
        for row in rows
    ]


def decode(path: str) -> np.ndarray | str:
    """Return mono int16 samples at 24 kHz, or what is wrong with a file."""
    torch.set_num_threads(1)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    mono = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        mono = torchaudio.functional.resample(mono, rate // common, SAMPLE_RATE // common)
    return (mono.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()


if __name__ == "__main__":
    sys.exit(main())
