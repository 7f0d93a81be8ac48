"""Pretrain a MusicFM on your own music: masked prediction of random-projection tokens, and more if you like.

The same command goes on where it was killed. What comes out has the published form: the embedding job loads it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import (
    OneLineParser,
    add_storage_option,
    add_switch,
    positive_number,
    run_or_explain,
    whole_number,
)
from jobs.program import run_script
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from musicfm_model.config import ModelConfig
    from pipeline.training.pretrain import PretrainReport, PretrainSettings

SIZES = {"embed_dim": 8, "num_layers": 1, "num_heads": 1, "ffn_dim": 1, "conv_dim": 1, "codebook_size": 2}
"""The sizes that can be chosen, and the least of each."""


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("PyTorch and Ray"):
            from pipeline.catalog.load import load_catalog
            from pipeline.training.prepare import split_catalog
            from pipeline.training.pretrain import pretrain

        settings = read_settings(flags)
        options = dict(flags.audio_option)
        catalog = load_catalog(flags.audio, options)
        if flags.held_out is None:
            train, held_out = split_catalog(catalog, flags.held_out_share)
        else:
            train, held_out = catalog, load_catalog(flags.held_out, options)
        print_report(pretrain(train, held_out, settings, options))
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None) -> OneLineParser:
    """Build the command's parser."""
    example = "--audio ~/Music --out ~/pretraining --name first --preset nano"
    parser = OneLineParser(program, __doc__, example)
    parser.add_argument("--audio", required=True, metavar="URL_OR_MANIFEST", help="what to train on")
    parser.add_argument("--held-out", metavar="URL_OR_MANIFEST", help="what to measure on, none of it trained on")
    parser.add_argument(
        "--held-out-share",
        type=positive_number,
        default=0.05,
        metavar="X",
        help="without --held-out: of the artists that the catalog names, and of tracks without one",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="corpus, states, checkpoint: every node sees it"
    )
    parser.add_argument("--name", required=True, help="of the run: the same name goes on where it ended")
    parser.add_argument(
        "--preset", choices=("nano", "small", "published"), default="nano", help="sizes and recipe"
    )
    sizes = parser.add_group("sizes (by default the preset's)")
    for name, least in SIZES.items():
        sizes.add_argument(f"--{name.replace('_', '-')}", type=whole_number(least), metavar="N")
    course = parser.add_group("the course (by default the preset's)")
    course.add_argument("--num-steps", type=whole_number(1), metavar="N", help="steps of the optimiser")
    course.add_argument("--num-warmup-steps", type=whole_number(1), metavar="N", help="until the peak")
    course.add_argument("--peak-lr", type=positive_number, metavar="X", help="learning rate")
    course.add_argument("--masked-s", type=positive_number, metavar="S", help="masked audio of a micro-batch")
    course.add_argument("--contrast-s", type=float, metavar="S", help="audio in pairs of one track; 0 for none")
    course.add_argument("--crop-lengths-s", type=parse_lengths, metavar="S,…", help="one a step in turn")
    course.add_argument("--num-slots", type=whole_number(1), metavar="N", help="micro-batches of a step")
    course.add_argument("--precision", choices=("float32", "bfloat16"), help="by default the GPU's: bfloat16")
    course.add_argument("--seed", type=whole_number(0), metavar="N", help="of weights, crops and masks")
    run = parser.add_group("the run")
    run.add_argument("--num-workers", type=whole_number(0), default=0, metavar="N", help="0: in this process")
    run.add_argument(
        "--report-every", type=whole_number(1), default=50, metavar="STEPS", help="a line of the curve"
    )
    run.add_argument("--measure-every", type=whole_number(0), default=500, metavar="STEPS", help="0 for never")
    run.add_argument("--save-every", type=whole_number(1), default=500, metavar="STEPS", help="the state")
    add_switch(run, "--tensorboard", "write the curve as events, into DIR/NAME/events")
    add_storage_option(parser, "--audio-option", "the audio")
    return parser


def read_settings(flags: argparse.Namespace) -> PretrainSettings:
    """Turn parsed flags into settings.

    Raises:
        UsageError: They contradict each other.
    """
    from pipeline.training.course import Intervals
    from pipeline.training.pretrain import PretrainSettings
    from pipeline.training.recipe import PRESETS
    from pipeline.training.worker import choose_device

    config, recipe = PRESETS[flags.preset]
    config = replace(config, **{name: value for name in SIZES if (value := getattr(flags, name)) is not None})
    check_heads(config)
    asked = {
        field.name: value for field in fields(recipe) if (value := getattr(flags, field.name, None)) is not None
    }
    use_gpu = choose_device().type == "cuda"
    by_device = {"precision": "bfloat16" if use_gpu else "float32"}
    recipe = replace(recipe, **{**by_device, **asked})
    layers = tuple(layer for layer in recipe.contrast_layers if layer <= config.num_layers)
    recipe = replace(recipe, contrast_layers=layers or (config.num_layers,))
    return PretrainSettings(
        folder=Path(flags.out).absolute(),  # workers have working directories of their own
        name=flags.name,
        config=config,
        recipe=recipe,
        intervals=Intervals(flags.report_every, flags.measure_every, flags.save_every),
        num_workers=flags.num_workers,
        use_gpu=use_gpu,
        events=flags.tensorboard,
    )


def check_heads(config: ModelConfig) -> None:
    """Check that the width can be shared out among the heads.

    Raises:
        UsageError: It cannot.
    """
    if config.embed_dim % (2 * config.num_heads):
        raise UsageError(
            f"expected --embed-dim to be a multiple of twice --num-heads, found {config.embed_dim} and "
            f"{config.num_heads}"
        )


def print_report(report: PretrainReport) -> None:
    """Print what became of the tracks and of the run, then one line of JSON for programs."""
    corpus, progress = report.corpus, report.progress
    for failure in corpus.failures:
        print(f"  failed: {failure['track_id']}: {failure['error_message']}")
    measured = [line for line in progress.curve if "held_out.cross_entropy" in line]
    print(f"{progress.next_step} steps, {progress.num_skipped} skipped; checkpoint: {report.checkpoint}")
    print(f"page: {report.page}")
    line = {
        "planned": corpus.num_planned,
        "prepared": corpus.num_prepared,
        "failed": len(corpus.failures),
        "steps": progress.next_step,
        "skipped": progress.num_skipped,
        "checkpoint": str(report.checkpoint),
        "page": str(report.page),
        "held_out": measured[-1] if measured else None,
    }
    print(json.dumps(line), flush=True)


def parse_lengths(text: str) -> tuple[float, ...]:
    """Read comma-separated seconds."""
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds such as 4 or 4,10,30; found {text!r}") from None


if __name__ == "__main__":
    run_script(main)
