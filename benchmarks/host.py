"""What the host pays to feed a GPU: the whole way of a clip, with a model that returns zeros at once.

    .venv/bin/python -m benchmarks.host [--clips 64] [--rounds 5] [--cores 16] [--before CHECKOUT]

Clips of 30 s of the demo's music are decoded, embedded in blocks as on a GPU and written, each stage on one core;
core-milliseconds are the processor time of the process, the median of some rounds. In the embedder everything is
real but the model's log-mel, convolutions and Conformer, which give zeros of the right shapes: what is left is
what an actor costs its host. With a checkout of another version its embedder takes turns in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.clips import CLIP_S, write_clips
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from pipeline.config import DEFAULT_RESOLUTIONS
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.schema import PLAN
from pipeline.store.write import WriteSettings, write_parts
from tests.checkpoints import write_random_checkpoint

WIDE = ModelConfig(num_layers=1, ffn_dim=64, conv_dim=4, codebook_size=16)  # of the published width
RECIPE = "musicfm-l1-benchmark"
BATCH_SIZE = 8
NUM_FILES = 8


def main() -> None:
    """Print core-milliseconds a clip of each stage, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64, help="in a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=16, help="for which a ceiling is reckoned")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another version of this project")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(flags.clips, flags.rounds)
    if flags.before is not None:
        report["embed before"] = measure_before(flags.before, flags.clips, flags.rounds)["embed"]
    print_report(report, flags.cores)
    print(json.dumps(report))


def measure(num_clips: int, num_rounds: int) -> dict[str, float]:
    """Return core-milliseconds a clip of each stage; few are decoded and written, for each round costs seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "audio", NUM_FILES)
        wanted = [f"{RECIPE}/{resolution}" for resolution in DEFAULT_RESOLUTIONS]
        rows = [
            {"track_id": path.stem, "uri": str(path), "wanted": wanted, "held": []}
            for path in sorted((folder / "audio").iterdir())
        ]
        plan = pa.Table.from_pylist(rows, schema=PLAN)
        embedder = build_null_embedder(folder / "wide.pt")
        write = WriteSettings(str(folder / "store"), {RECIPE: 10}, "benchmark")
        taken: dict[str, list[float]] = {"decode": [], "embed": [], "write": []}
        for _ in range(num_rounds + 1):
            decoded = clock(taken["decode"], NUM_FILES, lambda: pa.concat_tables(decode_tracks(plan)))
            block = copy_block(pa.concat_tables([decoded] * (num_clips // NUM_FILES)))
            embedded = clock(taken["embed"], num_clips, lambda block=block: embed(embedder, block))  # type: ignore[misc]
            few = embedded.slice(0, NUM_FILES)
            clock(taken["write"], NUM_FILES, lambda few=few: write_parts(few, write))  # type: ignore[misc]
    return {stage: statistics.median(core_ms[1:]) for stage, core_ms in taken.items()}


def embed(embedder: Embedder, block: pa.Table) -> pa.Table:
    """Embed a block; nothing may fail."""
    embedded = pa.concat_tables(embedder.embed_rows(block))
    assert embedded.column("stage").null_count == embedded.num_rows, embedded.column("error_message")
    return embedded


def copy_block(block: pa.Table) -> pa.Table:
    """Return a block as it comes out of the object store: one chunk, read-only."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block.combine_chunks())
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def build_null_embedder(path: Path) -> Embedder:
    """Return an embedder whose model costs nothing."""
    write_random_checkpoint(path, WIDE, seed=0)
    settings = EmbedderSettings({RECIPE: 1}, batch_size=BATCH_SIZE)
    embedder = Embedder(load_checkpoint(str(path)), settings)
    zeros: dict[tuple[int, ...], Tensor] = {}

    def give(*shape: int) -> Tensor:
        return zeros.setdefault(shape, torch.zeros(shape))

    model: Any = embedder.model
    model.preprocessor_melspec_2048.forward = lambda wav: give(len(wav), WIDE.n_mels, wav.shape[1] // 240)
    model.conv.forward = lambda mel: give(len(mel), -(-mel.shape[2] // 4), WIDE.embed_dim)
    model.conformer.forward = lambda x, wanted: dict.fromkeys(wanted, x)
    return embedder


def clock(taken_ms: list[float], num_clips: int, call: Callable[[], Any]) -> Any:
    """Call, and note the processor milliseconds a clip."""
    start_s = time.process_time()
    found = call()
    taken_ms.append(1e3 * (time.process_time() - start_s) / num_clips)
    return found


def measure_before(checkout: Path, num_clips: int, num_rounds: int) -> Any:
    """Run this file with the packages of another checkout."""
    command = [sys.executable, __file__, "--clips", str(num_clips), "--rounds", str(num_rounds)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_report(report: dict[str, float], num_cores: int) -> None:
    """Print a line a stage, and what so many cores come to."""
    print(f"core-milliseconds for a clip of {CLIP_S:g} s, the model giving zeros")
    for stage, core_ms in report.items():
        print(f"{stage:<14} {core_ms:7.2f}")
    total = report["decode"] + report["embed"] + report["write"]
    print(f"{'in all':<14} {total:7.2f}: {num_cores} cores feed {1e3 * num_cores / total:.0f} clips/s")


if __name__ == "__main__":
    main()
