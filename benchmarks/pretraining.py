"""What a step of pretraining costs, part by part: forward and backward of each, and the optimiser.

    .venv/bin/python -m benchmarks.pretraining [--preset nano] [--masked-s 40] [--contrast-s 40] [--crop-s 10]

The parts are the job's own, run one after the other with the graph cut between them, which changes no operation:
data (crops drawn, read, moved, masked), targets, front end, Conformer, heads and losses, clipping and AdamW.
Times are medians; on a processor they are processor time, so that what else the machine does counts little. The
corpus is noise of a music's level. ``whole`` is a step as the job takes it, for comparison with the sum.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicfm_model.config import ModelConfig
from musicfm_model.cost import WINDOW_S, count_window_tflop
from pipeline.training.corpus import Corpus
from pipeline.training.crops import Batch, make_batch
from pipeline.training.draws import draw_batch
from pipeline.training.loop import build_model
from pipeline.training.masking import make_noise_bank
from pipeline.training.objectives import Pretraining
from pipeline.training.recipe import PRESETS, Recipe
from pipeline.training.step import autocast, make_optimizer, take_step
from pipeline.training.worker import choose_device

NUM_TRACKS, TRACK_FRAMES = 40, 4000
STATS = (-10.0, 18.0)  # dB

Times = dict[str, float]


class Clock:
    """Seconds of each part: of the processor, or on a GPU of the clock once it is idle."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.times_s = device, Times()

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        """Do some work, and add its time to a part's."""
        start_s = self.now()
        result = work()
        self.times_s[part] = self.times_s.get(part, 0.0) + self.now() - start_s
        return result

    def now(self) -> float:
        """Return the seconds so far."""
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


def main() -> None:
    """Print a line for each part, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--masked-s", type=float, metavar="S", help="masked audio of a step; else the preset's")
    parser.add_argument("--contrast-s", type=float, metavar="S", help="audio in pairs; by default the preset's")
    parser.add_argument("--crop-s", type=float, default=10.0, metavar="S", help="length of the crops")
    parser.add_argument("--rounds", type=int, default=3, help="steps, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    config, recipe = PRESETS[flags.preset]
    recipe = replace(
        recipe,
        crop_lengths_s=(flags.crop_s,),
        masked_s=recipe.masked_s if flags.masked_s is None else flags.masked_s,
        contrast_s=recipe.contrast_s if flags.contrast_s is None else flags.contrast_s,
        precision="bfloat16" if choose_device().type == "cuda" else "float32",
    )
    report = measure(config, recipe, flags.rounds, choose_device())
    print_report(flags.preset, report)


def measure(config: ModelConfig, recipe: Recipe, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time steps by part, and as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(config, recipe, STATS, Path(folder)).to(device).train()
    optimizer = make_optimizer([(model, 1.0)], recipe)
    corpus = make_corpus(config.n_mels).to(device)
    noise_bank = make_noise_bank(model.musicfm.preprocessor_melspec_2048)

    def make(step: int) -> Batch:
        return make_batch(corpus, draw_batch(corpus, recipe, step, 0), noise_bank)

    clocks, wholes_s = [], []
    for step in range(rounds + 1):
        clock = Clock(device)
        batch = clock.time("data", partial(make, step))
        step_by_part(model, optimizer, batch, recipe, clock)
        start_s = clock.now()
        take_step(model, optimizer, [partial(make, step)], recipe, recipe.peak_lr)
        wholes_s.append(clock.now() - start_s)
        clocks.append(clock.times_s)
    parts_s = {part: statistics.median(times[part] for times in clocks[1:]) for part in clocks[0]}
    audio_s = recipe.masked_s + recipe.contrast_s
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "num_parameters": sum(parameter.numel() for parameter in model.musicfm.parameters()),
        "precision": recipe.precision,
        "audio_s": audio_s,
        "parts_s": parts_s,
        "sum_s": sum(parts_s.values()),
        "whole_s": statistics.median(wholes_s[1:]),
        "tflop": 3 * count_window_tflop(config, config.num_layers) * audio_s / WINDOW_S,
        "peak_gb": (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9,
    }


def step_by_part(
    model: Pretraining, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe, clock: Clock
) -> None:
    """Take a step, each part's forward and backward pass for itself."""
    musicfm, device = model.musicfm, batch.masked.device
    optimizer.zero_grad(set_to_none=True)
    clock.time("targets", lambda: model.tokenize(batch.clean))
    with autocast(device, recipe.precision):
        crops = model.normalize(torch.cat([batch.masked, batch.contrast])).transpose(1, 2)
        front = clock.time("front end", lambda: musicfm.conv(crops))
        front_leaf = front.detach().requires_grad_()
        states = clock.time("Conformer", lambda: musicfm.conformer(front_leaf, model.layers()))
        leaves = {layer: state.detach().requires_grad_() for layer, state in states.items()}
        loss, _ = clock.time("heads", lambda: model.score(leaves, batch))
    clock.time("heads", loss.backward)
    reached: dict[int, Tensor] = {layer: leaf.grad for layer, leaf in leaves.items() if leaf.grad is not None}
    wanted = [states[layer] for layer in reached]
    clock.time("Conformer", lambda: torch.autograd.backward(wanted, list(reached.values())))
    clock.time("front end", lambda: front.backward(front_leaf.grad))

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()

    clock.time("optimiser", optimize)
    clock.times_s["heads"] -= clock.times_s["targets"]  # the loss makes the targets, too


def make_corpus(n_mels: int) -> Corpus:
    """Return noise of a music's level and spread."""
    mean, deviation = STATS
    generator = torch.Generator().manual_seed(0)
    log_mels = mean + deviation * torch.randn(NUM_TRACKS * TRACK_FRAMES, n_mels, generator=generator)
    names = [str(number) for number in range(NUM_TRACKS)]
    first_rows = torch.arange(NUM_TRACKS) * TRACK_FRAMES
    return Corpus(log_mels.half(), names, names, first_rows, torch.full((NUM_TRACKS,), TRACK_FRAMES))


def print_report(preset: str, report: dict[str, Any]) -> None:
    """Print what was measured: a table for people, a line for programs."""
    print(
        f"{preset}, {report['num_parameters'] / 1e6:.1f} M parameters, {report['audio_s']:g} s of audio a step, "
        f"{report['device']}, {report['precision']}"
    )
    for part, seconds in report["parts_s"].items():
        print(f"  {part:<10} {1e3 * seconds:9.1f} ms  {seconds / report['sum_s']:6.1%}")
    print(f"  {'sum':<10} {1e3 * report['sum_s']:9.1f} ms")
    print(f"  {'whole':<10} {1e3 * report['whole_s']:9.1f} ms")
    print(
        f"{report['audio_s'] / report['whole_s']:.1f} s of audio a second; {report['tflop']:.3g} TFLOP at "
        f"{report['tflop'] / report['whole_s']:.3g} TFLOP/s; peak {report['peak_gb']:.2f} GB"
    )
    print(json.dumps({"preset": preset, **report}))


if __name__ == "__main__":
    main()
