"""What the features know of music with known answers; and what fine-tuning adds.

    .venv/bin/python -m benchmarks.probes [--charts 100] [--songs 60] [--tasks key] [--dbn] [--audio DIR]
    .venv/bin/python -m benchmarks.probes --tasks beat real [--audio DIR]
    .venv/bin/python -m benchmarks.probes --finetune DIR [--charts 100] [--audio DIR] [--num-workers 2]

Charts (``benchmarks.charts``; for sections ``benchmarks.songs``) are played through one soundfont to train on and
through another to test on, and no style of one side is on the other. ``real`` is the beats of recordings whose
score is known (``benchmarks.real_music``; 120 MB of Debian's packages are downloaded). The same linear heads are
fitted to the model in the box, to the same model before training, and to log-mels with their surroundings; chance
is what can be said without listening. Intervals are 95 %, bootstrapped over the test charts, or over the pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import soundfile

from benchmarks.chart_tuning import NUM_STEPS, TASK, tune_on_charts
from benchmarks.charts import SAMPLE_RATE_HZ, Chart, draw_charts, find_programs, play
from benchmarks.probe_features import NANO, RATE_HZ, Matrix, average, embed_all
from benchmarks.probe_rows import TASKS, Rows, describe, describe_tuning, print_real, print_rows
from benchmarks.real_beats import measure_real
from benchmarks.real_music import fetch_pieces
from benchmarks.songs import draw_songs
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.features import from_arrays
from pipeline.probing.heads import Head
from pipeline.probing.probe import ProbeResult, ProbeSettings, probe_features

TUNED_LAYER = 2
# Frames of a row of features, and what a store calls them: two seconds, and an eighth (8.3 Hz).
POOLED = {"key": (50, "0.5hz"), "structure": (3, "8hz")}
SHARES = {"train": 0.55, "valid": 0.15}
TRAIN_FONT, TEST_FONT = "FluidR3_GM", "TimGM6mb"
REAL = "real"


def main() -> int:
    """Play the charts, embed them, fit the heads and print the tables, or fine-tune on them."""
    flags = read_flags()
    needs_charts = flags.finetune is not None or flags.tasks != [REAL]
    if needs_charts and (missing := find_programs()) is not None:
        print(f"expected MMA, FluidSynth and two soundfonts of Debian, missing: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        audio = flags.audio or (flags.finetune or Path(folder)) / "audio"
        try:
            rows = measure_all(flags, audio) if flags.finetune is None else tune(flags, audio)
        except UsageError as error:
            print(f"probes: {error}", file=sys.stderr)
            return 2
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def read_flags() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--charts", type=int, default=100, metavar="N", help="of 24 s each")
    parser.add_argument("--songs", type=int, default=60, metavar="N", help="of about a minute, for structure")
    parser.add_argument(
        "--audio", type=Path, metavar="DIR", help="where audio is kept, played or downloaded, to be found again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--tasks", nargs="+", choices=(*TASKS, REAL), default=list(TASKS), help=f"by default all but {REAL}"
    )
    parser.add_argument("--dbn", action="store_true", help="read beats by a dynamic Bayesian network, too")
    parser.add_argument("--finetune", type=Path, metavar="DIR", help="fine-tune on the chords, in this folder")
    parser.add_argument("--layer", type=int, default=TUNED_LAYER, metavar="N", help="that is fine-tuned")
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS, metavar="N", help="of a fine-tuning")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="that share a fine-tuning")
    return parser.parse_args()


def measure_all(flags: argparse.Namespace, audio: Path) -> Rows:
    """Measure the tasks that were asked for, and print their tables."""
    rows: Rows = []
    chart_heads: dict[str, Head] = {}
    chart_tasks = [task for task in flags.tasks if task not in ("structure", REAL)]
    if chart_tasks:
        rows += measure_charts(chart_tasks, draw_charts(flags.charts), audio, flags.dbn, chart_heads)
    if "structure" in flags.tasks:
        rows += measure_charts(["structure"], draw_songs(flags.songs), audio)
    if REAL in flags.tasks:
        rows += measure_recordings(audio, chart_heads, flags.dbn)
    return rows


def measure_charts(
    tasks: Sequence[str],
    charts: list[Chart],
    audio: Path,
    dbn: bool = False,
    beat_heads: dict[str, Head] | None = None,
) -> Rows:
    """Play charts, fit heads for some tasks to all features of them, and print a table a task.

    Args:
        tasks: That the charts know the answers to.
        charts: The pieces.
        audio: Folder for what is played.
        dbn: Whether beats are read by a dynamic Bayesian network, too.
        beat_heads: Takes the heads for beats, by the features' name.
    """
    splits = split_by_style(charts)
    play_all(charts, splits, audio)
    start_s = time.monotonic()
    paths = [audio / name_file(chart, splits) for chart in charts]
    features = embed_all(soundfile.read(path, dtype="float32")[0] for path in paths)
    print(f"embedded in {time.monotonic() - start_s:.0f} s", flush=True)
    rows: Rows = []
    for task in tasks:
        task_rows: Rows = []
        for name, matrices in features.items():
            result = measure(task, name, charts, splits, matrices, dbn)
            if task == "beat" and beat_heads is not None:
                beat_heads[name] = result.head
            task_rows += describe(task, name, result)
        print_rows(task_rows)
        rows += task_rows
    return rows


def measure_recordings(audio: Path, chart_heads: dict[str, Head], dbn: bool) -> Rows:
    """Fetch recordings whose beats are known, measure those that are aligned for sure, and print tables.

    Args:
        audio: Folder under which Debian's packages are kept.
        chart_heads: Heads that were fitted to charts, by the features' name; may be empty.
        dbn: Whether beats are read by a dynamic Bayesian network, too.
    """
    pieces = []
    for piece in fetch_pieces(audio / "debian"):
        own = piece.alignment
        found = f"{1e3 * own.offset_s:.0f} ms, {own.agreement:.0%} of {own.num_stretches} stretches agree"
        print(f"{piece.name}: {found}{'' if own.is_sure else ': left out'}", flush=True)
        if own.is_sure:
            pieces.append(piece)
    rows = measure_real(pieces, embed_all(piece.waveform for piece in pieces), chart_heads, dbn)
    print_real(rows)
    return rows


def tune(flags: argparse.Namespace, audio: Path) -> Rows:
    """Fine-tune on the charts' chords, and print what came of it."""
    charts = draw_charts(flags.charts)
    splits = split_by_style(charts)
    play_all(charts, splits, audio)
    said = {name_file(chart, splits): annotate(TASK, chart, splits[chart.style]) for chart in charts}
    course = (flags.layer, flags.num_steps, flags.num_workers)
    result = tune_on_charts(audio, said, flags.finetune, NANO, *course)
    rows = describe_tuning(result, flags.layer)
    print_rows(rows)
    print(f"{result['steps']} steps, the best after {result['best_step']}")
    return rows


def name_file(chart: Chart, splits: dict[str, str]) -> str:
    """Return the name of a chart's audio, as its split's soundfont plays it."""
    return f"{chart.name}-{TEST_FONT if splits[chart.style] == 'test' else TRAIN_FONT}.flac"


def play_all(charts: list[Chart], splits: dict[str, str], audio: Path) -> None:
    """Play every chart into a folder, but those that are there."""
    start_s = time.monotonic()
    audio.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for chart in charts:
            path = audio / name_file(chart, splits)
            if not path.exists():
                font = TEST_FONT if splits[chart.style] == "test" else TRAIN_FONT
                part = path.with_suffix(".part")
                soundfile.write(part, play(chart, font, Path(folder)), SAMPLE_RATE_HZ, format="FLAC")
                part.replace(path)
    print(f"{len(charts)} charts played in {time.monotonic() - start_s:.0f} s", flush=True)


def split_by_style(charts: list[Chart]) -> dict[str, str]:
    """Return the split of each style; styles stand in the random order in which charts were drawn."""
    styles = list(dict.fromkeys(chart.style for chart in charts))
    first, second = (round(len(styles) * share) for share in (SHARES["train"], sum(SHARES.values())))
    return {
        style: "train" if place < first else "valid" if place < second else "test"
        for place, style in enumerate(styles)
    }


def measure(
    task: str,
    name: str,
    charts: list[Chart],
    splits: dict[str, str],
    matrices: list[Matrix],
    dbn: bool = False,
) -> ProbeResult:
    """Fit a head for a task to some features, and measure it."""
    said = {chart.name: annotate(task, chart, splits[chart.style]) for chart in charts}
    num_frames, resolution = POOLED.get(task, (1, "25hz"))
    pooled = [average(matrix, num_frames) for matrix in matrices]
    names = [chart.name for chart in charts]
    features = from_arrays(names, pooled, RATE_HZ / num_frames, name, resolution)
    tracks = pa.table({"track_id": names, "artist": [chart.style for chart in charts], "album": names})
    settings = ProbeSettings(StoreLocation(""), Annotations(task, tracks=said), resolution, dbn=dbn)
    return probe_features(features, said, tracks, settings)


def annotate(task: str, chart: Chart, split: str) -> Annotation:
    """Return what is known of a chart."""
    if task == "beat":
        return Annotation(beats=chart.list_beats(), split=split)
    if task == "chord":
        return Annotation(spans=chart.list_chords(), split=split)
    if task == "structure":
        return Annotation(spans=chart.list_sections(), split=split)
    return Annotation(labels=(chart.key,), split=split)


if __name__ == "__main__":
    sys.exit(main())
