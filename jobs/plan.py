"""Plan a run before paying for it: what it would read, write, take and cost, and where it would be held up.

Some of the files are tried on this machine, or on the cluster that Ray joins. The plan is kept in the store as
``reports/plan.json``, so that the run's report can put prediction beside fact; nothing else is written.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from jobs.arguments import EXIT_OPEN_BOOKS, positive_number, run_or_explain
from jobs.configuration import describe_flags
from jobs.embedding import build_embed_parser, print_report, read_settings
from pipeline.catalog.load import load_catalog
from pipeline.report.plan_file import save_plan
from pipeline.run.estimate import GPU_TFLOPS, Prices
from pipeline.run.start import start_preview

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 for a plan, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_embed_parser(__doc__ or "")
    parser.add_argument(
        "--audio", required=True, metavar="URL_OR_MANIFEST", help="folder, bucket, manifest or mirdata:NAME"
    )
    plan = parser.add_argument_group("the plan")
    plan.add_argument("--gpu", choices=tuple(GPU_TFLOPS), help="reckon with one of these, not with what is here")
    plan.add_argument("--price-gpu-hour", type=positive_number, metavar="X", help="of one GPU")
    plan.add_argument("--price-core-hour", type=positive_number, metavar="X", help="of one CPU core")
    plan.add_argument("--price-gb-month", type=positive_number, metavar="X", help="of storage")
    flags = parser.parse_args(arguments)

    def run() -> int:
        settings = read_settings(flags, describe_flags(parser, flags))

        def load() -> pa.Table:
            return load_catalog(flags.audio, dict(flags.audio_option)).slice(0, flags.limit)

        prices = Prices(flags.price_gpu_hour, flags.price_core_hour, flags.price_gb_month)
        report = start_preview(load, settings, prices, flags.gpu)
        if report.estimate is not None and report.estimate.num_tracks and flags.gpu is None:
            save_plan(settings.store, list(report.recipes), report.store_version, asdict(report.estimate))
        print_report(report, flags.store, dry_run=True)
        return 0 if report.closed else EXIT_OPEN_BOOKS

    return run_or_explain(parser, run, flags.log_format)


if __name__ == "__main__":
    sys.exit(main())
