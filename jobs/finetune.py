"""Fine-tune a checkpoint on labelled tracks, and say what that is worth beside a head on its features as they are.

The same command goes on where it was killed. What comes out is a checkpoint of the published form with a recipe of
its own, and a head for features of that recipe. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
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
from jobs.probe import TASKS
from jobs.program import run_script

if TYPE_CHECKING:
    from pipeline.probing.annotations import Annotations
    from pipeline.training.finetune import FinetuneReport
    from pipeline.training.tuning_recipe import TuningRecipe

NUM_NAMED = 5  # of what is left out, a reason


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("PyTorch and Ray"):
            from pipeline.catalog.load import load_catalog
            from pipeline.probing.reading import read_annotations
            from pipeline.storage import absolute_url
            from pipeline.training.course import Intervals
            from pipeline.training.finetune import FinetuneSettings, finetune
            from pipeline.training.labels import match_labels
            from pipeline.training.worker import choose_device

        options = dict(flags.audio_option)
        annotations = read_annotations(flags.annotations, flags.task, dict(flags.annotations_option))
        labels, catalog = match_labels(annotations, load_catalog(flags.audio, options), flags.seed)
        settings = FinetuneSettings(
            folder=Path(flags.out).absolute(),  # workers have working directories of their own
            name=flags.name,
            checkpoint=name_checkpoint(flags.checkpoint),
            stats=flags.stats and absolute_url(flags.stats),
            labels=labels,
            recipe=read_recipe(flags, labels.sha256),
            intervals=Intervals(flags.report_every, flags.measure_every, flags.save_every),
            num_workers=flags.num_workers,
            use_gpu=choose_device().type == "cuda",
            events=flags.tensorboard,
        )
        print_report(finetune(catalog, settings, options), annotations)
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None) -> OneLineParser:
    """Build the command's parser."""
    example = (
        "--audio ~/Music --annotations genres.csv --task classification --checkpoint msd --out ~/tuned --name a"
    )
    parser = OneLineParser(program, __doc__, example)
    parser.add_argument("--audio", required=True, metavar="URL_OR_MANIFEST", help="the tracks")
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="URL",
        help="as of musicfm probe: CSV of track_id, label[, split]",
    )
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--checkpoint", required=True, metavar="NAME_OR_URL", help="msd, fma, or a file")
    parser.add_argument("--stats", metavar="URL", help="its statistics, where they do not lie beside it")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="log-mels, states, checkpoint: every node sees it"
    )
    parser.add_argument("--name", required=True, help="of the run: the same name goes on where it ended")
    course = parser.add_group("the course")
    course.add_argument("--layer", type=int, default=-1, metavar="N", help="that the head gets: the last")
    course.add_argument("--head", choices=("linear", "mlp"), default="linear")
    course.add_argument("--encoder-lr", type=positive_number, default=1e-5, metavar="X", help="peak learning rate")
    course.add_argument("--head-lr", type=positive_number, default=1e-4, metavar="X", help="that of the head")
    course.add_argument("--num-steps", type=whole_number(1), default=2000, metavar="N", help="at most")
    course.add_argument("--num-warmup-steps", type=whole_number(1), default=100, metavar="N", help="to the peak")
    course.add_argument("--patience", type=whole_number(1), default=5, metavar="N", help="without a better")
    course.add_argument("--window-s", type=positive_number, default=30.0, metavar="S", help="length of a crop")
    course.add_argument("--num-crops", type=whole_number(1), default=8, metavar="N", help="of a micro-batch")
    course.add_argument("--num-slots", type=whole_number(1), default=2, metavar="N", help="of a step")
    course.add_argument("--precision", choices=("float32", "bfloat16"), help="by default the GPU's: bfloat16")
    course.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of head, crops and splits")
    run = parser.add_group("the run")
    run.add_argument("--num-workers", type=whole_number(0), default=0, metavar="N", help="0: in this process")
    run.add_argument("--report-every", type=whole_number(1), default=10, metavar="STEPS", help="a line")
    run.add_argument("--measure-every", type=whole_number(1), default=100, metavar="STEPS", help="a validation")
    run.add_argument("--save-every", type=whole_number(1), default=100, metavar="STEPS", help="the state")
    add_switch(run, "--tensorboard", "write the curve as events, into DIR/NAME/events")
    add_storage_option(parser, "--audio-option", "the audio")
    add_storage_option(parser, "--annotations-option", "--annotations")
    return parser


def name_checkpoint(checkpoint: str) -> str:
    """Return a published name as it is, anything else as what it is from every working directory."""
    from musicfm_model.checkpoint_files import PUBLISHED
    from pipeline.storage import absolute_url

    return checkpoint if checkpoint in PUBLISHED else absolute_url(checkpoint)


def read_recipe(flags: argparse.Namespace, labels_sha256: str) -> TuningRecipe:
    """Turn parsed flags into a recipe.

    Raises:
        UsageError: The checkpoint cannot be read, or has no such layer.
    """
    from musicfm_model.config import resolve_layer
    from pipeline.embed.checkpoint import load_checkpoint
    from pipeline.errors import UsageError
    from pipeline.training.tuning_recipe import TuningRecipe
    from pipeline.training.worker import choose_device

    checkpoint = load_checkpoint(flags.checkpoint, flags.stats)
    try:
        layer = resolve_layer(flags.layer, checkpoint.config.num_layers)
    except ValueError as error:
        raise UsageError(f"--layer: {error}") from error
    by_device = "bfloat16" if choose_device().type == "cuda" else "float32"
    names = ("head_lr", "num_steps", "num_warmup_steps", "patience", "window_s", "num_crops", "num_slots", "seed")
    return replace(
        TuningRecipe(checkpoint.sha256, labels_sha256, layer, flags.head),
        peak_lr=flags.encoder_lr,
        precision=flags.precision or by_device,
        **{name: getattr(flags, name) for name in names},
    )


def print_report(report: FinetuneReport, annotations: Annotations) -> None:
    """Print what became of the tracks and what the run has reached, then one line of JSON for programs."""
    for reason, names in annotations.left_out.items():
        more = ", …" if len(names) > NUM_NAMED else ""
        print(f"  left out: {len(names)} {reason}: {', '.join(names[:NUM_NAMED])}{more}")
    for failure in report.corpus.failures:
        print(f"  failed: {failure['track_id']}: {failure['error_message']}")
    result = report.result
    for who, metrics in {**result["baselines"], "fine-tuned": result["metrics"]}.items():
        for metric, figures in metrics.items():
            said = {name: "undefined" if value is None else f"{value:.3f}" for name, value in figures.items()}
            print(f"  {metric} {who}: {said['value']} [{said['low']}, {said['high']}]")
    line = {
        **result,
        "left_out": {reason: len(names) for reason, names in annotations.left_out.items()},
        "planned": report.corpus.num_planned,
        "prepared": report.corpus.num_prepared,
        "failed": len(report.corpus.failures),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
