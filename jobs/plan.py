"""Plan a run before paying for it: what it would read, write, take and cost, and where it would be held up.

Some of the files are tried on this machine, or on the cluster that Ray joins. Without --gpu the plan is kept in
the store as reports/plan.json: where the run comes next, its report puts prediction beside fact. Nothing else is
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from jobs.arguments import positive_number, run_or_explain
from jobs.configuration import describe_flags
from jobs.embed_catalog import load as load_catalog
from jobs.embedding import build_embed_parser, choose_exit_code, load_limited, print_report, read_settings
from jobs.program import run_script
from pipeline.run.gpus import GPU_TFLOPS
from pipeline.run.start import start_preview


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command; the exit code is that of the run, 0 where all would be done."""
    example = "--audio ~/Music --store ~/features --checkpoint msd --price-core-hour 0.05"
    parser = build_embed_parser(program, __doc__, example)
    parser.add_argument(
        "--audio",
        required=True,
        metavar="URL_OR_MANIFEST",
        help="folder, bucket or file; a Parquet, CSV or TSV manifest; tar, zip or Parquet shards; inventory:URL; "
        "mirdata:NAME",
    )
    plan = parser.add_group("the plan")
    plan.add_argument("--gpu", choices=tuple(GPU_TFLOPS), help="reckon with one of these, not with what is here")
    plan.add_argument("--price-gpu-hour", type=positive_number, metavar="X", help="of one GPU")
    plan.add_argument("--price-core-hour", type=positive_number, metavar="X", help="of one CPU core")
    plan.add_argument("--price-gb-month", type=positive_number, metavar="X", help="of storage")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("PyTorch"):
            from pipeline.report.plan_file import save_plan
            from pipeline.run.estimate import Prices

        settings = read_settings(flags, describe_flags(parser.table, flags))
        load = partial(load_limited, load_catalog, flags)
        prices = Prices(flags.price_gpu_hour, flags.price_core_hour, flags.price_gb_month)
        report = start_preview(load, settings, prices, flags.gpu)
        if report.estimate is not None and report.estimate.num_tracks and flags.gpu is None:
            save_plan(settings.store, list(report.recipes), report.store_version, asdict(report.estimate))
        print_report(report, flags.store, dry_run=True)
        return choose_exit_code(report)

    return run_or_explain(parser, run, flags.log_format)


if __name__ == "__main__":
    run_script(main)
