"""What the features know of beats, chords and keys, on music with known answers; and what fine-tuning adds.

    .venv/bin/python -m benchmarks.probes [--charts 100] [--tasks key] [--audio DIR] [--json FILE]
    .venv/bin/python -m benchmarks.probes --finetune DIR [--charts 100] [--audio DIR] [--num-workers 2]

Charts (``benchmarks.charts``) are played through one soundfont to train on and through another to test on, and no
style of one side is on the other. The same linear heads are fitted to the model in the box, to the same model
before training, and to log-mels with their surroundings; chance is what can be said without listening. Intervals
are 95 %, bootstrapped over the test charts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile
import torch

from benchmarks.chart_tuning import NUM_STEPS, TASK, tune_on_charts
from benchmarks.charts import SAMPLE_RATE_HZ, Chart, draw_charts, find_programs, play
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.log_mel import LogMel
from musicfm_model.model import MusicFM25Hz
from pipeline.location import StoreLocation
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.features import from_arrays
from pipeline.probing.metrics import Estimate
from pipeline.probing.probe import ProbeSettings, probe_features

Matrix = npt.NDArray[np.float32]
Embed = Callable[[torch.Tensor], dict[str, Matrix]]

NANO = Path(__file__).parents[1] / "demo" / "musicfm_nano.pt"
NANO_LAYERS = (0, 2, 5)
TUNED_LAYER = 2
RATE_HZ = 25.0
CONTEXT_FRAMES = 4  # 160 ms on either side of a log-mel frame
KEY_FRAMES = 50  # a row of the key's features: two seconds, as the store's 0.5 Hz
SHARES = {"train": 0.55, "valid": 0.15}
TRAIN_FONT, TEST_FONT = "FluidR3_GM", "TimGM6mb"
TASKS = {"beat": ("beat_f", "downbeat_f"), "chord": ("root", "majmin"), "key": ("weighted_score",)}


def main() -> int:
    """Play the charts, embed them, fit the heads and print the table, or fine-tune on them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--charts", type=int, default=100, metavar="N", help="of 24 s each")
    parser.add_argument(
        "--audio", type=Path, metavar="DIR", help="where played charts are kept, to be found again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="by default all")
    parser.add_argument("--finetune", type=Path, metavar="DIR", help="fine-tune on the chords, in this folder")
    parser.add_argument("--layer", type=int, default=TUNED_LAYER, metavar="N", help="that is fine-tuned")
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS, metavar="N", help="of a fine-tuning")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="that share a fine-tuning")
    flags = parser.parse_args()
    if (missing := find_programs()) is not None:
        print(f"expected MMA, FluidSynth and two soundfonts of Debian, missing: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        audio = flags.audio or (flags.finetune or Path(folder)) / "audio"
        charts = draw_charts(flags.charts)
        splits = split_by_style(charts)
        start_s = time.monotonic()
        play_all(charts, splits, audio)
        print(f"{len(charts)} charts played in {time.monotonic() - start_s:.0f} s", flush=True)
        if flags.finetune is None:
            rows = measure_all(flags.tasks, charts, splits, audio)
        else:
            said = {name_file(chart, splits): annotate(TASK, chart, splits[chart.style]) for chart in charts}
            course = (flags.layer, flags.num_steps, flags.num_workers)
            result = tune_on_charts(audio, said, flags.finetune, NANO, *course)
            rows = describe_tuning(result, flags.layer)
            print_rows(rows)
            print(f"{result['steps']} steps, the best after {result['best_step']}")
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def name_file(chart: Chart, splits: dict[str, str]) -> str:
    """Return the name of a chart's audio, as its split's soundfont plays it."""
    return f"{chart.name}-{TEST_FONT if splits[chart.style] == 'test' else TRAIN_FONT}.flac"


def play_all(charts: list[Chart], splits: dict[str, str], audio: Path) -> None:
    """Play every chart into a folder, but those that are there."""
    audio.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for chart in charts:
            path = audio / name_file(chart, splits)
            if not path.exists():
                font = TEST_FONT if splits[chart.style] == "test" else TRAIN_FONT
                part = path.with_suffix(".part")
                soundfile.write(part, play(chart, font, Path(folder)), SAMPLE_RATE_HZ, format="FLAC")
                part.replace(path)


def measure_all(
    tasks: list[str], charts: list[Chart], splits: dict[str, str], audio: Path
) -> list[dict[str, object]]:
    """Fit heads for some tasks to all features, and print a table a task."""
    start_s = time.monotonic()
    features = embed_charts([audio / name_file(chart, splits) for chart in charts])
    print(f"embedded in {time.monotonic() - start_s:.0f} s", flush=True)
    rows: list[dict[str, object]] = []
    for task in tasks:
        task_rows = [
            row for name, matrices in features.items() for row in measure(task, name, charts, splits, matrices)
        ]
        print_rows(task_rows)
        rows += task_rows
    return rows


def describe_tuning(result: dict[str, Any], layer: int) -> list[dict[str, object]]:
    """Return rows of a fine-tuning's figures, as those of a probe."""
    figures = {
        f"frozen, layer {layer}": result["baselines"]["frozen"],
        "chance": result["baselines"]["chance"],
        f"fine-tuned, layer {layer}": result["metrics"],
    }
    return [{"task": TASK, "features": name, **own} for name, own in figures.items()]


def split_by_style(charts: list[Chart]) -> dict[str, str]:
    """Return the split of each style; styles stand in the random order in which charts were drawn."""
    styles = list(dict.fromkeys(chart.style for chart in charts))
    first, second = (round(len(styles) * share) for share in (SHARES["train"], sum(SHARES.values())))
    return {
        style: "train" if place < first else "valid" if place < second else "test"
        for place, style in enumerate(styles)
    }


def embed_charts(paths: list[Path]) -> dict[str, list[Matrix]]:
    """Return the charts' features by name, each float32 of shape (num_frames, width) at 25 Hz."""
    trained = load_checkpoint(str(NANO))
    models: dict[str, Embed] = {
        "nano": use_model(trained, NANO_LAYERS),
        "untrained": use_model(draw_weights(trained), NANO_LAYERS[:2]),
        "log-mel": use_log_mel(),
    }
    features: dict[str, list[Matrix]] = {}
    with torch.inference_mode():
        for path in paths:
            samples, _ = soundfile.read(path, dtype="float32")
            for name, embed in models.items():
                for part, matrix in embed(torch.from_numpy(samples)[None]).items():
                    features.setdefault(f"{name}{part}", []).append(matrix)
    return features


def use_model(checkpoint: Checkpoint, layers: tuple[int, ...]) -> Embed:
    """Return what gives hidden states."""
    model = MusicFM25Hz.for_inference(checkpoint)

    def embed(wav: torch.Tensor) -> dict[str, Matrix]:
        states = model.get_hidden_states(wav, layers)
        return {f", layer {layer}": frames[0].numpy() for layer, frames in states.items()}

    return embed


def draw_weights(trained: Checkpoint, seed: int = 0) -> Checkpoint:
    """Return a model of the same sizes with the weights of its start; statistics stay the trained one's."""
    config = trained.config
    torch.manual_seed(seed)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as stats:
        json.dump({"melspec_2048_mean": trained.mean, "melspec_2048_std": trained.std}, stats)
        stats.flush()
        model = MusicFM25Hz(
            codebook_dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            conv_dim=config.conv_dim,
            encoder_dim=config.embed_dim,
            encoder_depth=config.num_layers,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            stat_path=stats.name,
            model_path=None,
        )
    return Checkpoint(model.state_dict(), config, trained.mean, trained.std, "untrained")


def use_log_mel() -> Embed:
    """Return what gives log-mels at 25 Hz (the mean of four frames), each beside those around it."""
    transform = LogMel()

    def embed(wav: torch.Tensor) -> dict[str, Matrix]:
        mel = transform(wav)[0].T
        frames = mel[: len(mel) // 4 * 4].reshape(-1, 4, mel.shape[1]).mean(dim=1).numpy()
        padded = np.pad(frames, ((CONTEXT_FRAMES, CONTEXT_FRAMES), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT_FRAMES + 1, axis=0)
        return {", ±0.16 s": windows.reshape(len(frames), -1).astype(np.float32)}

    return embed


def measure(
    task: str, name: str, charts: list[Chart], splits: dict[str, str], matrices: list[Matrix]
) -> list[dict[str, object]]:
    """Fit a head for a task to some features; return a row for it, and one for chance."""
    said = {chart.name: annotate(task, chart, splits[chart.style]) for chart in charts}
    rate_hz, resolution = RATE_HZ, "25hz"
    if task == "key":
        rate_hz, resolution = RATE_HZ / KEY_FRAMES, "0.5hz"
        matrices = [average(matrix, KEY_FRAMES) for matrix in matrices]
    features = from_arrays([chart.name for chart in charts], matrices, rate_hz, name, resolution)
    names = [chart.name for chart in charts]
    tracks = pa.table({"track_id": names, "artist": [chart.style for chart in charts], "album": names})
    settings = ProbeSettings(StoreLocation(""), Annotations(task, tracks=said), resolution)
    result = probe_features(features, said, tracks, settings)
    chance = {"task": task, "features": "chance", **describe(task, result.baselines["chance"])}
    return [{"task": task, "features": name, **describe(task, result.metrics)}, chance]


def annotate(task: str, chart: Chart, split: str) -> Annotation:
    """Return what is known of a chart."""
    if task == "beat":
        return Annotation(beats=chart.list_beats(), split=split)
    if task == "chord":
        return Annotation(spans=chart.list_chords(), split=split)
    return Annotation(labels=(chart.key,), split=split)


def average(matrix: Matrix, num_frames: int) -> Matrix:
    """Return means of so many rows each, without a rest."""
    kept = matrix[: max(1, len(matrix) // num_frames) * num_frames]
    return np.asarray(kept.reshape(-1, min(num_frames, len(kept)), matrix.shape[1]).mean(axis=1), np.float32)


def describe(task: str, estimates: dict[str, Estimate]) -> dict[str, object]:
    """Return the figures that the table shows, as value, low and high."""
    return {name: estimates[name].as_row() for name in TASKS[task] if name in estimates}


def print_rows(rows: list[dict[str, object]]) -> None:
    """Print the rows of one task as a table, chance once."""
    task = str(rows[0]["task"])
    print(f"\n| {task} | " + " | ".join(TASKS[task]) + " |\n|---|" + "---|" * len(TASKS[task]))
    shown = [row for row in rows if row["features"] != "chance"] + rows[1:2]
    for row in shown:
        cells = []
        for name in TASKS[task]:
            figure = row.get(name)
            cells.append(
                f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
                if isinstance(figure, dict)
                else "-"
            )
        print(f"| {row['features']} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
