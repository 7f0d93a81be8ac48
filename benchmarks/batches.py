"""How full the model's batches are on a GPU, for tracks of real lengths: nothing is computed, only counted.

    .venv/bin/python -m benchmarks.batches [--tracks 960] [--batch-size 8] [--audio FOLDER …]

A batch is full when it has the mel frames of ``--batch-size`` windows of 30 s. The mean is weighted by what goes
through each batch: it is the fill that a second of audio meets. Lengths: previews as MP3 encoders cut those of
the Million Song Dataset (frames of 1152 samples at 22.05 kHz: 29.99, 30.04 or 30.09 s), clips of the Free Music
Archive (1,321,967 or 1,323,119 samples at 44.1 kHz), and whole tracks: those of ``--audio``, or else lengths that
spread about four minutes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipeline.config import SAMPLE_RATE_HZ, WindowPolicy, list_window_lengths_s
from pipeline.embed.batch import FULL_WINDOW_MEL, Item, count_mel, form_batches
from pipeline.embed.device import WINDOWS_ON_CUDA
from pipeline.embed.embedder import WINDOWS_PER_GROUP_ON_CUDA
from pipeline.embed.track import ModelInput, Track, list_frontend_inputs, list_inputs
from pipeline.run.placement import TRACKS_PER_BLOCK_GPU

RESOLUTIONS = ("50hz", "16hz", "8hz", "0.5hz", "global")
BARS = 10


def main() -> None:
    """Print a histogram for each kind of track, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=960)
    parser.add_argument("--batch-size", type=int, default=WINDOWS_ON_CUDA)
    parser.add_argument("--audio", type=Path, nargs="*", default=[], metavar="FOLDER", help="of whole tracks")
    flags = parser.parse_args()
    generator = np.random.default_rng(0)
    kinds = {
        "MSD previews": generator.choice([574, 575, 576], flags.tracks) * 1152 / 22_050,
        "FMA clips": generator.choice([1_321_967, 1_323_119], flags.tracks, p=[0.7, 0.3]) / 44_100,
        "whole tracks": read_lengths(flags.audio, flags.tracks) or generator.lognormal(5.45, 0.35, flags.tracks),
    }
    report: dict[str, Any] = {}
    for kind, seconds in kinds.items():
        for windows in ("shared", "task"):
            report[f"{kind}, {windows}"] = measure(list(seconds), windows, flags.batch_size)
    print_report(report, flags.batch_size)
    print(json.dumps(report))


def read_lengths(folders: Sequence[Path], num_tracks: int) -> list[float]:
    """Return the lengths of audio files in seconds, of no more than so many."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    lengths = []
    for path in paths[:num_tracks]:
        try:
            lengths.append(float(soundfile.info(str(path)).duration))
        except soundfile.LibsndfileError:
            continue
    return [seconds for seconds in lengths if seconds > 1.0]


def measure(lengths_s: list[float], windows: WindowPolicy, batch_size: int) -> dict[str, Any]:
    """Form the batches of tracks in blocks and groups, as the embedder does, and count how full they are."""
    layers = {window_s: {7} for window_s in list_window_lengths_s(RESOLUTIONS, windows)}
    fills: list[tuple[float, int]] = []
    for first in range(0, len(lengths_s), TRACKS_PER_BLOCK_GPU):
        group: list[ModelInput] = []
        block = lengths_s[first : first + TRACKS_PER_BLOCK_GPU]
        for number, seconds in enumerate(block, start=1):
            silence = np.broadcast_to(np.float32(0), round(seconds * SAMPLE_RATE_HZ))
            group += list_inputs(Track(silence, []), layers)
            if sum(item.num_mel for item in group) >= WINDOWS_PER_GROUP_ON_CUDA * FULL_WINDOW_MEL or number == len(
                block
            ):
                fills += _count_fills(list_frontend_inputs(group), batch_size) + _count_fills(group, batch_size)
                group = []
    work = sum(mel for _, mel in fills)
    histogram = Counter[int]()
    for fill, mel in fills:
        histogram[min(BARS - 1, int(fill * BARS))] += mel
    return {
        "mean_fill": sum(fill * mel for fill, mel in fills) / work,
        "num_batches": len(fills),
        "histogram": [histogram[index] / work for index in range(BARS)],
    }


def _count_fills(items: Sequence[Item], batch_size: int) -> list[tuple[float, int]]:
    """Return how full each batch is, and the mel frames that go through it."""
    full = batch_size * FULL_WINDOW_MEL
    batches = form_batches(items, lambda: full)
    fills = []
    for batch in batches:
        size = max(1, full // count_mel(batch[0]))
        fills.append((len(batch) / size, sum(map(count_mel, batch))))
    return fills


def print_report(report: dict[str, Any], batch_size: int) -> None:
    """Print a line a kind: the mean, and shares of the audio by tenths of fill."""
    print(f"batches of {batch_size}, blocks of {TRACKS_PER_BLOCK_GPU} tracks; audio by tenths of fill, in percent")
    for name, row in report.items():
        bars = " ".join(f"{100 * share:3.0f}" for share in row["histogram"])
        print(f"{name:<22} mean fill {row['mean_fill']:.3f} in {row['num_batches']:>5} batches: {bars}")


if __name__ == "__main__":
    main()
