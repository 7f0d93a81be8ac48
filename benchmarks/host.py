"""What the host pays to feed a GPU: the whole way of a clip, with a model that returns zeros at once.

    .venv/bin/python -m benchmarks.host [--clips 64] [--rounds 5] [--cores 16] [--before CHECKOUT]

Clips of 30 s of the demo's music are decoded, embedded in blocks as on a GPU and written, each stage on one core;
core-milliseconds are the processor time of the process, the median of some rounds. In the embedder everything is
real but the model's log-mel, convolutions and Conformer, which give zeros of the right shapes, and the copy to the
device, which goes to memory that stays, as pinned memory does: what is left is what an actor costs its host. It is
given clips of equal length, and clips that differ by up to 0.1 s. What Ray adds is to unpack a decoded block and
to pack an embedded one; to copy it into the object store is left out, for it takes a core no longer than memory
does. With a checkout of another version all is measured there too, in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.cloudpickle
import torch
from ray._private.arrow_serialization import _register_arrow_data_serializer
from torch import Tensor

from benchmarks.clips import CLIP_S, write_clips
from benchmarks.null_steps import build_null_embedder
from pipeline.config import DEFAULT_RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder
from pipeline.schema import DECODED, FEATURE_LIST, PLAN
from pipeline.store.write import WriteSettings, write_parts

RECIPE = "musicfm-l1-benchmark"
WANTED = [f"{RECIPE}/{resolution}" for resolution in DEFAULT_RESOLUTIONS]
BATCH_SIZE = 8
NUM_FILES = 8
PACKAGES = ("pipeline", "musicfm_model", "tests", "demo")
ACTOR = ("unpack", "embed", "embed, lengths differ", "pack")


def main() -> None:
    """Print core-milliseconds a clip of each stage, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64, help="in a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=16, help="for which a ceiling is reckoned")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another version of this project")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"now": measure(flags.clips, flags.rounds)}
    if flags.before is not None:
        report["before"] = measure_before(flags.before, flags.clips, flags.rounds)["now"]
    print_report(report, flags.cores)
    print(json.dumps(report))


def measure(num_clips: int, num_rounds: int) -> dict[str, float]:
    """Return core-milliseconds a clip of each stage; few are decoded and written, for each round costs seconds."""
    _register_arrow_data_serializer(_Registry())  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "audio", NUM_FILES)
        rows = [
            {"track_id": path.stem, "uri": str(path), "wanted": WANTED, "held": []}
            for path in sorted((folder / "audio").iterdir())
        ]
        plan = pa.Table.from_pylist(rows, schema=PLAN)
        embedder = build_null_embedder(folder / "wide.pt", RECIPE, BATCH_SIZE)
        keep_memory(embedder)
        write = WriteSettings(str(folder / "store"), {RECIPE: 10}, "benchmark")
        taken: dict[str, list[float]] = {stage: [] for stage in ("decode", *ACTOR, "write")}
        differing = build_block([round(CLIP_S * SAMPLE_RATE_HZ) - 37 * number for number in range(num_clips)])
        for _ in range(num_rounds + 1):
            decoded = clock(taken["decode"], NUM_FILES, lambda: join(decode_tracks(plan)))
            packed = pack(join([decoded] * (num_clips // NUM_FILES)))
            block = clock(taken["unpack"], num_clips, lambda packed=packed: unpack(packed))  # type: ignore[misc]
            embedded = clock(taken["embed"], num_clips, lambda block=block: embed(embedder, block))  # type: ignore[misc]
            clock(taken["embed, lengths differ"], num_clips, lambda: embed(embedder, differing))
            clock(taken["pack"], num_clips, lambda embedded=embedded: pack(embedded))  # type: ignore[misc]
            few = embedded.slice(0, NUM_FILES)
            clock(taken["write"], NUM_FILES, lambda few=few: write_parts(few, write))  # type: ignore[misc]
    return {stage: statistics.median(core_ms[1:]) for stage, core_ms in taken.items()}


def embed(embedder: Embedder, block: pa.Table) -> pa.Table:
    """Embed a block; nothing may fail."""
    embedded = join(embedder.embed_rows(block))
    assert embedded.column("stage").null_count == embedded.num_rows, embedded.column("error_message")
    return embedded


def join(tables: Any) -> pa.Table:
    """Join what a stage yields as its task does."""
    try:
        from pipeline.run.blocks import BLOCK_BYTES, join_tables
    except ImportError:  # an older version: Ray joined them
        return pa.concat_tables(tables)
    (joined,) = join_tables(tables, 2 * BLOCK_BYTES)
    return joined


def build_block(lengths: Sequence[int]) -> pa.Table:
    """Return decoded rows of noise, of so many samples each."""
    noise = np.random.default_rng(0).standard_normal(max(lengths), np.float32)
    rows = []
    for number, length in enumerate(lengths):
        known = {"track_id": f"{number:03d}", "wanted": WANTED, "held": [], "duration_s": length / SAMPLE_RATE_HZ}
        columns = {field.name: pa.array([known.get(field.name)], field.type) for field in DECODED}
        columns["waveform"] = pa.array([noise[:length]], FEATURE_LIST)
        rows.append(pa.table(columns, schema=DECODED))
    return join(rows)


def pack(block: pa.Table) -> tuple[bytes, list[memoryview]]:
    """Pack a block as Ray does; its buffers stay where they are."""
    buffers: list[Any] = []
    packed = ray.cloudpickle.dumps(block, protocol=5, buffer_callback=buffers.append)  # type: ignore[no-untyped-call]
    return packed, [buffer.raw() for buffer in buffers]


def unpack(packed: tuple[bytes, list[memoryview]]) -> pa.Table:
    """Unpack a block as Ray does."""
    return ray.cloudpickle.loads(packed[0], buffers=packed[1])


class _Registry:
    """Takes Ray's ways to pack tables, which it registers as a worker starts."""

    def _register_cloudpickle_reducer(self, kind: type, reducer: Callable[..., Any]) -> None:
        ray.cloudpickle.CloudPickler.dispatch[kind] = reducer


def keep_memory(embedder: Any) -> None:
    """Let a batch's samples go to memory that stays, as pinned memory does; older versions have no such place."""
    if hasattr(embedder, "_inference") and hasattr(embedder._inference, "transfer"):
        kept = torch.empty(BATCH_SIZE * round(CLIP_S * SAMPLE_RATE_HZ))

        def copy_in(waveforms: Sequence[np.ndarray]) -> Tensor:
            place = kept[: sum(map(len, waveforms))]
            np.concatenate(waveforms, out=place.numpy())
            return place

        embedder._inference.transfer._copy_in = copy_in


def clock(taken_ms: list[float], num_clips: int, call: Callable[[], Any]) -> Any:
    """Call, and note the processor milliseconds a clip."""
    start_s = time.process_time()
    found = call()
    taken_ms.append(1e3 * (time.process_time() - start_s) / num_clips)
    return found


def measure_before(checkout: Path, num_clips: int, num_rounds: int) -> Any:
    """Run this benchmark, as it is here, with the packages of another checkout."""
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            (Path(folder) / package).symlink_to(checkout.resolve() / package)
        (Path(folder) / "benchmarks").symlink_to(Path(__file__).resolve().parent)
        command = [sys.executable, "-m", "benchmarks.host", "--clips", str(num_clips), "--rounds", str(num_rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"the version in {checkout} cannot be measured: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_report(report: dict[str, dict[str, float]], num_cores: int) -> None:
    """Print a line a stage, and what so many cores come to."""
    print(f"core-milliseconds for a clip of {CLIP_S:g} s, the model giving zeros")
    print(" " * 22 + "".join(f"{version:>9}" for version in report))
    for stage in report["now"]:
        print(f"{stage:<22}" + "".join(f"{core_ms[stage]:9.2f}" for core_ms in report.values()))
    actors = [core_ms["unpack"] + core_ms["embed"] + core_ms["pack"] for core_ms in report.values()]
    print(f"{'actor in all':<22}" + "".join(f"{core_ms:9.2f}" for core_ms in actors))
    total = report["now"]["decode"] + actors[0] + report["now"]["write"]
    print(f"{'in all':<22}{total:9.2f}: {num_cores} cores feed {1e3 * num_cores / total:.0f} clips/s")


if __name__ == "__main__":
    main()
