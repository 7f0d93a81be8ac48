"""Train several recipes of the nano model at once on one GPU, in a stated time, without Ray.

    python -m training.train_variants --corpus DIR [--corpus DIR] --out DIR --budget-s 300 [--variants a,b]

Each variant is a process of its own; they share the GPU, whose gaps between small kernels one alone cannot fill. A
variant first measures how fast steps are while the others do the same, and plans as many as fit. What is under
--out is whole at every moment: a checkpoint of the published form for each variant, statistics, and all curves.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from musicfm_model.config import ModelConfig
from pipeline.training.corpus import HELD_OUT, TRAIN, Corpus, join_corpora, open_corpus
from pipeline.training.course import Intervals
from pipeline.training.export import export_checkpoint
from pipeline.training.loop import TrainingRun, build_model
from pipeline.training.objectives import Pretraining
from pipeline.training.recipe import PRESETS, Augmentation, Recipe
from pipeline.training.worker import Worker

# The parent's, for all variants: the machine has one monotonic clock.
START_S = float(os.environ.get("TRAINING_START_S", time.monotonic()))
HEAVY = Augmentation(prob=0.7, max_semitones=2.5, max_gain_db=8.0, max_filter_db=3.0)
NANO, BASE = PRESETS["nano"]
VARIANTS = {
    "mixture": BASE,
    "contrast": replace(
        BASE,
        masked_s=240.0,
        contrast_s=800.0,
        contrast_layers=(2, 5),
        augmentation=HEAVY,
        contrast_weight=1.0,
        vector_weight=1.0,
    ),
    "masked": replace(
        BASE,
        masked_s=720.0,
        contrast_s=320.0,
        contrast_layers=(1,),
        peak_lr=5e-4,
        contrast_weight=0.3,
        vector_weight=0.3,
    ),
    "late": replace(BASE, contrast_layers=(4,), temperature=0.07, vector_weight=1.0),
}
WARMUP_SHARE = 0.12
TRIAL_S = 12.0
RESERVED_S = 14.0  # for the last gates, the last export, and leaving


def main() -> int:
    """Train, and say how each variant ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, action="append", required=True, help="repeatable")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/train_variants"), help="states and logs")
    parser.add_argument("--budget-s", type=float, default=300.0, help="wall time of the whole")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated names")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model, to try the whole on a processor")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    names = flags.variants.split(",")
    if flags.only:
        return train_variant(flags, flags.only, len(names))
    shutil.rmtree(flags.work, ignore_errors=True)
    flags.work.mkdir(parents=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    return watch_variants(flags, names)


def watch_variants(flags: argparse.Namespace, names: list[str]) -> int:
    """Start a process for each variant, and keep ``out`` up to date until all have ended."""
    processes = {}
    for name in names:
        command = [sys.executable, "-m", "training.train_variants", *sys.argv[1:], "--only", name]
        log = (flags.work / f"{name}.log").open("w")
        environment = os.environ | {"TRAINING_START_S": str(START_S), "PYTHONUNBUFFERED": "1"}
        processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    while any(process.poll() is None for process in processes.values()):
        time.sleep(2)
        gather(flags, names)
        if time.monotonic() - START_S > flags.budget_s + 10:
            for process in processes.values():
                process.kill()
    gather(flags, names)
    for name in names:
        print(f"== {name}: exit {processes[name].wait()}")
        print("\n".join((flags.work / f"{name}.log").read_text().splitlines()[-14:]))
    return 0 if all(process.returncode == 0 for process in processes.values()) else 1


def gather(flags: argparse.Namespace, names: list[str]) -> None:
    """Copy the newest checkpoints, and put curves and logs together."""
    curves, logs = {}, []
    for name in names:
        for suffix in (".pt", "_curve.json"):
            path = flags.work / f"{name}{suffix}"
            if not path.exists():
                continue
            if suffix == ".pt":
                shutil.copyfile(path, flags.out / f"{name}.pt.part")
                (flags.out / f"{name}.pt.part").replace(flags.out / f"{name}.pt")
                shutil.copyfile(flags.work / f"{name}_stats.json", flags.out / "stats.json")
            else:
                curves[name] = json.loads(path.read_text())
        if (flags.work / f"{name}.log").exists():
            logs.append(f"== {name}\n" + (flags.work / f"{name}.log").read_text())
    (flags.out / "curves.json").write_text(json.dumps(curves))
    (flags.out / "log.txt").write_text("\n".join(logs))


def train_variant(flags: argparse.Namespace, name: str, num_variants: int) -> int:
    """Train one variant within the budget."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    recipe, sizes = VARIANTS[name], NANO
    if flags.rehearse:
        recipe = replace(recipe, masked_s=8.0, contrast_s=16.0, crop_lengths_s=(4.0, 2.0))
        sizes = replace(NANO, embed_dim=32, ffn_dim=32, conv_dim=4)
    train = join_corpora(open_corpus(folder, TRAIN) for folder in flags.corpus).to(device)
    held_out = join_corpora(open_corpus(folder, HELD_OUT) for folder in flags.corpus)
    held_out = replace(held_out, log_mels=train.log_mels)  # both parts lie in the same rows
    shared = sorted(set(train.groups) & set(held_out.groups))
    if shared:
        print(f"groups in both parts: {shared}", flush=True)
    stats = train.measure_stats()
    print(
        f"{name} on {device}: {len(train.track_ids)} tracks of {train.duration_s / 3600:.2f} h to train on, "
        f"{len(held_out.track_ids)} of {held_out.duration_s / 3600:.2f} h held out; mean and std {stats}; "
        f"{time.monotonic() - START_S:.1f} s",
        flush=True,
    )
    wait_for_others(flags.work, name, num_variants)
    deadline_s = START_S + flags.budget_s - RESERVED_S
    seconds_per_step = time_steps(recipe, sizes, train, stats, flags.work / f"{name}_trial", device)
    num_steps = int((deadline_s - time.monotonic()) / seconds_per_step * 0.93)
    num_steps = max(10, num_steps)
    recipe = replace(recipe, num_steps=num_steps, num_warmup_steps=max(1, int(num_steps * WARMUP_SHARE)))
    print(f"{seconds_per_step * 1000:.1f} ms a step, so {num_steps} steps", flush=True)
    train_to_deadline(flags, name, recipe, sizes, train, held_out, stats, device, deadline_s)
    return 0


def wait_for_others(work: Path, name: str, num_variants: int) -> None:
    """Wait until all variants have loaded the corpus, half a minute at most."""
    (work / f"{name}.ready").touch()
    waited_s = 0.0
    while len(list(work.glob("*.ready"))) < num_variants and waited_s < 30:
        time.sleep(0.2)
        waited_s += 0.2


def time_steps(
    recipe: Recipe,
    sizes: ModelConfig,
    train: Corpus,
    stats: tuple[float, float],
    folder: Path,
    device: torch.device,
) -> float:
    """Return seconds a step takes, once every length of crop has been seen."""
    stop_at_s = [time.monotonic() + TRIAL_S]
    trial = replace(recipe, num_steps=100_000)
    model = build_model(sizes, trial, stats, folder).to(device)
    use_channels_last(model, device)
    times: list[float] = []

    def should_stop() -> bool:
        times.append(time.monotonic())
        return len(times) > 3 * len(recipe.crop_lengths_s) and times[-1] > stop_at_s[0]

    TrainingRun(
        model, train, train, folder, Intervals(report=0, gates=0, save=0), Worker(device), should_stop=should_stop
    ).run()
    cycle = len(recipe.crop_lengths_s)
    late = times[max(cycle, len(times) // 3) :]
    late = late[: (len(late) - 1) // cycle * cycle + 1]
    return (late[-1] - late[0]) / (len(late) - 1)


def train_to_deadline(
    flags: argparse.Namespace,
    name: str,
    recipe: Recipe,
    sizes: ModelConfig,
    train: Corpus,
    held_out: Corpus,
    stats: tuple[float, float],
    device: torch.device,
    deadline_s: float,
) -> None:
    """Train, writing checkpoint and curve at every measurement."""
    model = build_model(sizes, recipe, stats, flags.work / f"{name}_state").to(device)
    use_channels_last(model, device)
    curve: list[dict[str, float]] = []

    def on_report(line: dict[str, float]) -> None:
        curve.append(line)
        is_gate = "held_out.cross_entropy" in line
        print(describe(line), flush=True)
        if is_gate:
            export_checkpoint(model.musicfm, flags.work / f"{name}.pt")
            content = {"recipe": asdict(recipe), "curve": curve}
            part = flags.work / f"{name}_curve.part"
            part.write_text(json.dumps(content))
            part.replace(flags.work / f"{name}_curve.json")

    gates = max(1, recipe.num_steps // 12)
    run = TrainingRun(
        model,
        train,
        held_out,
        flags.work / f"{name}_state",
        Intervals(report=max(1, recipe.num_steps // 60), gates=gates, save=0),
        Worker(device),
        on_report=on_report,
        should_stop=lambda: time.monotonic() > deadline_s,
    )
    start_s = time.monotonic()
    progress = run.run()
    print(f"{progress.next_step} of {recipe.num_steps} steps in {time.monotonic() - start_s:.1f} s", flush=True)


def use_channels_last(model: Pretraining, device: torch.device) -> None:
    """Let the front end's convolutions run with channels last, which is faster in half precision on a GPU."""
    if device.type == "cuda":
        model.musicfm.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe(line: dict[str, float]) -> str:
    """Return a line of the curve for people: of the gates, recall of the middle layers alone."""
    shown = {
        key.removeprefix("held_out."): round(value, 4)
        for key, value in line.items()
        if not key.startswith("held_out.layer") or key.split(".", 2)[2] in ("mean.centred", "mean_std.whitened")
    }
    return " ".join(f"{key}={value:g}" for key, value in shown.items())


if __name__ == "__main__":
    sys.exit(main())
