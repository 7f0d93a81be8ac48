"""Probe a feature store: train a small head on stored features of annotated tracks, and measure what they know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain, whole_number
from jobs.program import run_script
from pipeline.config import RESOLUTIONS

if TYPE_CHECKING:
    from pipeline.probing.probe import ProbeResult

TASKS = ("beat", "chord", "structure", "key", "tagging", "classification", "regression")
HEADS = ("linear", "mlp")
MAX_NAMED = 5


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when it measured, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("PyTorch and the metrics"):
            from pipeline.location import StoreLocation
            from pipeline.probing.heads import save_head
            from pipeline.probing.probe import ProbeSettings, run_probe
            from pipeline.probing.reading import read_annotations
            from pipeline.storage import absolute_url

        annotations = read_annotations(flags.annotations, flags.task, dict(flags.annotations_option))
        settings = ProbeSettings(
            StoreLocation(flags.store, dict(flags.storage_option)),
            annotations,
            flags.resolution,
            tuple(flags.recipe),
            flags.head,
            flags.seed,
            flags.scratch and absolute_url(flags.scratch),  # workers have working directories of their own
            flags.dbn,
        )
        if flags.num_workers:
            with parser.loading("Ray"):
                from pipeline.training.shared_probe import run_shared_probe

            result = run_shared_probe(settings, flags.num_workers)
        else:
            result = run_probe(settings)
        line = result.as_line()
        if flags.save is not None:
            save_head(result.head, flags.save, dict(flags.annotations_option))
            line["head_file"] = flags.save
        tell(result, line)
        print(json.dumps(line, ensure_ascii=False, allow_nan=False), flush=True)
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None = None) -> OneLineParser:
    """Build the command's parser."""
    parser = OneLineParser(
        program,
        __doc__,
        "--store ~/features --task classification --annotations genres.csv --save genres.safetensors",
    )
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--task", required=True, choices=TASKS, help="what is asked of a track")
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="URL",
        help="CSV of track_id (or uri) with label, start_s,end_s,label or time_s,beat, and split where given; "
        "a JAMS file or a folder of them; mirdata:NAME[:FOLDER]",
    )
    parser.add_argument("--resolution", choices=tuple(RESOLUTIONS), help="of the features; by default the task's")
    parser.add_argument(
        "--recipe",
        metavar="ID",
        action="append",
        default=[],
        help="whose features; given several times, their mix with learned weights",
    )
    parser.add_argument("--head", choices=HEADS, default="linear", help="mlp: one hidden layer of 512")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="of every draw")
    add_switch(parser, "--dbn", "of the task beat: measure by a dynamic Bayesian network, too (extra dbn; slow)")
    parser.add_argument("--save", metavar="URL", help="write the head there, for musicfm predict")
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="for a copy of the features while they are trained on; with --num-workers one that every node sees",
    )
    parser.add_argument(
        "--num-workers", type=whole_number(0), default=0, metavar="N", help="of Ray Train; 0: in this process"
    )
    add_storage_option(parser, "--storage-option", "the store")
    add_storage_option(parser, "--annotations-option", "--annotations and --save")
    return parser


def tell(result: ProbeResult, line: dict[str, object]) -> None:
    """Say for people what could not be used, and what was found."""
    for reason, names in result.left_out.items():
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        print(f"left out, {len(names)} {reason}: {', '.join(names[:MAX_NAMED])}{more}")
    numbers = ", ".join(f"{number} to {name}" for name, number in result.num_tracks.items())
    print(f"{numbers}; splits {result.split_by}; {line['protocol']}")
    print(f"{'metric':<16} {'value':>7}  {'95 %':<15} {'chance':>7}  {'95 %':<15}")
    for name, value in result.metrics.items():
        chance = result.baselines["chance"][name]
        columns = (f"{own.value:>7.3f}  {own.low:.3f}–{own.high:.3f}  " for own in (value, chance))
        print(f"{name:<16} " + " ".join(f"{column:<24}" for column in columns).rstrip())
    for name, value in (result.dbn_metrics or {}).items():
        print(f"{name + ', DBN':<16} {value.value:>7.3f}  {value.low:.3f}–{value.high:.3f}")


if __name__ == "__main__":
    run_script(main)
