"""What the stages around the model cost for a 30 s clip, in core-milliseconds, each beside the naive way.

    .venv/bin/python -m benchmarks.stages [--rounds 15]

Core-milliseconds are the processor time of the process with all its threads, so that other work on the machine
hardly moves them; the median of some rounds is shown. Decoding: 22.05 kHz mono mp3 at 64 kbit/s, cut from the
demo's music, against ``librosa.load(sr=24000)`` where librosa is installed, else libsndfile and torchaudio
called plainly. Writing: five resolutions of 1024 dimensions against plain float32 Parquet of the same rows. The
embeddings are those of an untrained model of the published width (two layers, 16 channels) on the demo's music:
correlated in time and layer-normed as a trained model's are, which neither noise nor zeros are; how well they
compress is no promise for trained ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import torchaudio

from benchmarks.clips import CLIP_S, cut_clip, write_clips
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.model import MusicFM25Hz
from pipeline.config import DEFAULT_RESOLUTIONS, FRAME_RATE_HZ, RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.pool import pool_frames
from pipeline.embed.rows import Features, as_column
from pipeline.schema import EMBEDDED, PLAN
from pipeline.store.write import WriteSettings, write_parts
from tests.checkpoints import write_random_checkpoint

NUM_CLIPS = 8
WIDE = ModelConfig(num_layers=2, conv_dim=16)  # of the published width
MANTISSA_BITS = 10
RECIPE = "musicfm-l7-benchmark"
BARS_MS = {"decode + resample": 25.0, "pool + encode + write": 35.0}


def main() -> None:
    """Print one line per stage and way, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    report = measure(parser.parse_args().rounds)
    print_report(report)
    print(json.dumps(report))


def measure(num_rounds: int) -> dict[str, Any]:
    """Measure both stages and their naive ways in turn."""
    num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "audio", NUM_CLIPS)
        frames = embed_clips(folder)
        torch.set_num_threads(1)  # a decode or write task has one core
        try:
            stages = measure_decode(folder / "audio", num_rounds) | measure_write(frames, folder, num_rounds)
        finally:
            torch.set_num_threads(num_threads)
    return {"machine": platform.processor() or platform.machine(), "bars_core_ms": BARS_MS, "stages": stages}


def measure_decode(audio: Path, num_rounds: int) -> dict[str, dict[str, Any]]:
    """Decode the clips as a task does, and plainly."""
    paths = sorted(audio.iterdir())
    plan = pa.Table.from_pylist(
        [{"track_id": path.stem, "uri": str(path), "wanted": [RECIPE], "held": []} for path in paths], schema=PLAN
    )
    naive_name, load = _find_naive_decoder()
    core_ms, naive_ms = _take_turns(
        num_rounds,
        lambda: pa.concat_tables(decode_tracks(plan)),
        lambda: [load(path) for path in paths],
    )
    row = {"core_ms": core_ms / len(paths), "naive_core_ms": naive_ms / len(paths), "naive": naive_name}
    return {"decode + resample": row}


def measure_write(frames: torch.Tensor, folder: Path, num_rounds: int) -> dict[str, dict[str, Any]]:
    """Pool, encode and write the clips' frames as a run does, and as plain float32 Parquet."""
    own, naive = folder / "own", folder / "naive.parquet"

    def write_ours() -> None:
        embedded = pa.concat_tables(build_row(f"clip{index}", clip) for index, clip in enumerate(frames))
        write_parts(embedded, WriteSettings(str(own), {RECIPE: MANTISSA_BITS}, "benchmark"))

    def write_naively() -> None:
        rows = [
            {"track_id": f"clip{index}", "resolution": name, "embeddings": features.numpy()}
            for index, clip in enumerate(frames)
            for name, features in pool_all(clip).items()
        ]
        columns = {name: [row[name] for row in rows] for name in ("track_id", "resolution")}
        lists = [list(row["embeddings"]) for row in rows]
        pq.write_table(pa.table({**columns, "embeddings": lists}), naive)

    core_ms, naive_ms = _take_turns(num_rounds, write_ours, write_naively)
    num_runs = num_rounds + 1
    num_bytes = sum(path.stat().st_size for path in own.rglob("*.parquet")) / num_runs
    row = {
        "core_ms": core_ms / len(frames),
        "naive_core_ms": naive_ms / len(frames),
        "naive": "plain float32 Parquet, one file, a row a track and resolution",
        "bytes": num_bytes / len(frames),
        "naive_bytes": naive.stat().st_size / len(frames),
    }
    return {"pool + encode + write": row}


def pool_all(frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pool a clip's frames to the five resolutions."""
    return {name: pool_frames(frames, RESOLUTIONS[name]) for name in DEFAULT_RESOLUTIONS}


def build_row(track_id: str, frames: torch.Tensor) -> pa.Table:
    """Return a clip's frames as a row of ``schema.EMBEDDED``, as the model's actor hands it on."""
    wanted = [f"{RECIPE}/{name}" for name in DEFAULT_RESOLUTIONS]
    known = {"track_id": track_id, "wanted": wanted, "held": [], "content_hash": track_id}
    row = pa.Table.from_pylist([known], schema=EMBEDDED)
    features = as_column([Features(wanted, FRAME_RATE_HZ, frames.numpy())])
    return row.set_column(row.schema.get_field_index("features"), EMBEDDED.field("features"), features)


def embed_clips(folder: Path) -> torch.Tensor:
    """Return frames of the clips, (num_clips, num_frames, 1024), of an untrained model of published width."""
    checkpoint = folder / "wide.pt"
    write_random_checkpoint(checkpoint, WIDE, seed=0)
    model = MusicFM25Hz.for_inference(load_checkpoint(str(checkpoint)))
    clips = [torch.from_numpy(cut_clip(number, CLIP_S, SAMPLE_RATE_HZ)) for number in range(NUM_CLIPS)]
    with torch.inference_mode():
        frames = [model.get_latent(clip[None], WIDE.num_layers)[0] for clip in clips]
    return torch.stack(frames).clone()


def print_report(report: Mapping[str, Any]) -> None:
    """Print a line per stage."""
    print(f"{report['machine']}, core-milliseconds for a clip of {CLIP_S:g} s")
    for name, row in report["stages"].items():
        sizes = f"; {row['bytes'] / 1e6:.2f} MB, naive {row['naive_bytes'] / 1e6:.2f} MB" if "bytes" in row else ""
        bar = report["bars_core_ms"][name]
        print(f"{name:<22} {row['core_ms']:6.1f} (bar {bar:g}); naive {row['naive_core_ms']:.1f}{sizes}")
        print(f"{'':<22} naive: {row['naive']}")


def _find_naive_decoder() -> tuple[str, Callable[[Path], Any]]:
    if importlib.util.find_spec("librosa") is not None:
        librosa: Any = importlib.import_module("librosa")
        return "librosa.load(path, sr=24000)", lambda path: librosa.load(path, sr=SAMPLE_RATE_HZ)

    def load(path: Path) -> torch.Tensor:
        samples, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples).mean(dim=1)
        resampled: torch.Tensor = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE_HZ)
        return resampled

    return "soundfile.read and torchaudio.functional.resample (librosa is not installed)", load


def _take_turns(num_rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Call each in turn, once unmeasured; return the median core-milliseconds of each."""
    taken_ms: list[list[float]] = [[] for _ in calls]
    for number in range(num_rounds + 1):
        for call, taken in zip(calls, taken_ms, strict=True):
            start_s = time.process_time()
            call()
            if number:
                taken.append(1e3 * (time.process_time() - start_s))
    return [float(np.median(taken)) for taken in taken_ms]


if __name__ == "__main__":
    main()
