"""Memory: a model's actor over 1,000 windows, and a track of one hour through every stage.

    .venv/bin/python -m benchmarks.memory [--windows 1000] [--embed-dim 256]

Each part runs in a process of its own, so that its peak is its own, that of the libraries it imports in it. The
windows are 30 s long and the model small (random weights). The hour is a 44.1 kHz stereo mp3; its model has one
layer and the asked width, one thread, and all five resolutions are kept. What goes from stage to stage lies in
mapped files, as Ray's object store is mapped memory, and is told apart from the heap, as is the libraries' code.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from musicfm_model.config import ModelConfig
from pipeline.config import DEFAULT_RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.schema import DECODED, PLAN

if TYPE_CHECKING:  # each part's process imports what its task does, and no more
    from pipeline.embed.embedder import Embedder

TINY = ModelConfig(embed_dim=64, num_layers=2, num_heads=4, ffn_dim=128, conv_dim=4)
BAR_GIB = 1.0  # of every task
CLIP_S = 30.0
RECIPE = "musicfm-l1-benchmark"
WANTED = [f"{RECIPE}/{name}" for name in DEFAULT_RESOLUTIONS]
HOUR_S, HOUR_RATE_HZ = 3600, 44_100
STAGES = ("decode", "embed", "write")


def main() -> None:
    """Print peaks in GiB, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--embed-dim", type=int, default=256, help="width of the hour's features")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part is not None:
        torch.set_num_threads(1)
        print(
            json.dumps(
                PARTS[flags.part](flags.folder, flags.windows if flags.part == "windows" else flags.embed_dim)
            )
        )
        return
    report = measure(flags.windows, flags.embed_dim)
    print_report(report)
    print(json.dumps(report))


def measure(num_windows: int, embed_dim: int) -> dict[str, Any]:
    """Run each part in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        windows = _run_part("windows", folder, num_windows, embed_dim)
        _run_part("encode", folder, num_windows, embed_dim)
        hour = {stage: _run_part(stage, folder, num_windows, embed_dim) for stage in STAGES}
    machine = platform.processor() or platform.machine()
    return {"machine": machine, "windows": windows, "embed_dim": embed_dim, "one_hour_track": hour}


def print_report(report: Mapping[str, Any]) -> None:
    """Print it for people."""
    for num_windows, num_bytes in report["windows"].items():
        print(f"model's process after {num_windows:>5} windows: peak {num_bytes / 2**30:.2f} GiB")
    for stage, peaks in report["one_hour_track"].items():
        heap, resident = peaks["heap_bytes"] / 2**30, peaks["resident_bytes"] / 2**30
        with_files = f"with what it maps, code and input, {resident:.2f}"
        print(f"one hour, {stage:<6}: peak heap {heap:.2f} GiB (bar {BAR_GIB:g}); {with_files}")


def embed_windows(folder: Path, num_windows: int) -> dict[str, int]:
    """Embed windows of 30 s, eight tracks at a time; return the peak after a tenth, half and all."""
    from benchmarks.clips import cut_clip

    embedder = _build_embedder(folder, TINY)
    clip = cut_clip(0, CLIP_S, SAMPLE_RATE_HZ)
    marks = [num_windows // 10, num_windows // 2, num_windows]
    peaks: dict[str, int] = {}
    for done in range(0, num_windows, 8):
        rows = [_build_decoded(f"track{done + k}", np.roll(clip, 997 * (done + k))) for k in range(8)]
        for _ in embedder.embed_rows(pa.concat_tables(rows)):
            pass
        peaks |= {
            str(mark): _read_status("VmHWM") for mark in marks if str(mark) not in peaks and done + 8 >= mark
        }
    return peaks


def encode_hour(folder: Path, _: int) -> None:
    """Write the hour: half a minute of the demo's music over and over, packet by packet."""
    from benchmarks.clips import cut_clip, encode_packets

    clip = np.stack([cut_clip(number, CLIP_S, HOUR_RATE_HZ) for number in (0, 1)], axis=1)
    packets = encode_packets(clip, HOUR_RATE_HZ, 128_000)
    (folder / "hour.mp3").write_bytes(b"".join(packets) * int(HOUR_S / CLIP_S))


def decode_hour(folder: Path, _: int) -> dict[str, int]:
    """Decode the file as a task does."""
    from pipeline.decode.tracks import decode_tracks

    watch = HeapWatch()
    row = {"track_id": "hour", "uri": str(folder / "hour.mp3"), "wanted": WANTED, "held": []}
    decoded = next(decode_tracks(pa.Table.from_pylist([row], schema=PLAN)))
    peaks = watch.read_peaks()
    _save(decoded, folder / "decoded.arrow")
    return peaks


def embed_hour(folder: Path, embed_dim: int) -> dict[str, int]:
    """Embed the decoded row as the model's actor does."""
    watch = HeapWatch()
    decoded = _map(folder / "decoded.arrow")
    embedder = _build_embedder(folder, ModelConfig(embed_dim=embed_dim, num_layers=1, conv_dim=8))
    embedded = next(embedder.embed_rows(decoded))
    peaks = watch.read_peaks()
    assert embedded.column("stage")[0].as_py() is None, embedded.column("error_message")[0].as_py()
    _save(embedded, folder / "embedded.arrow")
    return peaks


def write_hour(folder: Path, _: int) -> dict[str, int]:
    """Write the parts as a task does."""
    from pipeline.store.write import WriteSettings, write_parts

    watch = HeapWatch()
    embedded = _map(folder / "embedded.arrow")
    write_parts(embedded, WriteSettings(str(folder / "frames"), {RECIPE: 10}, "benchmark"))
    return watch.read_peaks()


PARTS: dict[str, Callable[[Path, int], Any]] = {
    "windows": embed_windows,
    "encode": encode_hour,
    "decode": decode_hour,
    "embed": embed_hour,
    "write": write_hour,
}


def _run_part(part: str, folder: str, num_windows: int, embed_dim: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.memory", "--part", part, "--folder", folder]
    command += ["--windows", str(num_windows), "--embed-dim", str(embed_dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{part} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _build_embedder(folder: Path, config: ModelConfig) -> Embedder:
    from musicfm_model.checkpoint import load_checkpoint
    from pipeline.embed.embedder import Embedder, EmbedderSettings
    from tests.checkpoints import write_random_checkpoint

    checkpoint = folder / f"{config.embed_dim}.pt"
    write_random_checkpoint(checkpoint, config, seed=0)
    return Embedder(load_checkpoint(str(checkpoint)), EmbedderSettings({RECIPE: config.num_layers}))


def _build_decoded(track_id: str, waveform: np.ndarray) -> pa.Table:
    known: dict[str, Any] = {"track_id": track_id, "wanted": WANTED, "held": [], "waveform": waveform}
    known |= {"duration_s": len(waveform) / SAMPLE_RATE_HZ}
    return pa.table(
        {field.name: pa.array([known.get(field.name)], field.type) for field in DECODED}, schema=DECODED
    )


def _save(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class HeapWatch:
    """The largest heap of this process since the watch began, looked at fifty times a second.

    Heap is anonymous memory. What the process maps beside it, its input and the libraries' code, is the file
    system's cache: tasks on one machine share it.
    """

    def __init__(self) -> None:
        self._heap_bytes = 0
        threading.Thread(target=self._look, daemon=True).start()

    def read_peaks(self) -> dict[str, int]:
        """Return the peaks of the heap and of all that is resident."""
        self._heap_bytes = max(self._heap_bytes, _read_status("RssAnon"))
        return {"heap_bytes": self._heap_bytes, "resident_bytes": _read_status("VmHWM")}

    def _look(self) -> None:
        while True:
            self._heap_bytes = max(self._heap_bytes, _read_status("RssAnon"))
            time.sleep(0.02)


def _read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    main()
