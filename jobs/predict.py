"""Apply a trained head to a feature store: a Delta Lake table ``predictions``, brought up to date."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import OneLineParser, add_storage_option, run_or_explain
from jobs.program import run_script


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when the table is up to date, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --head genres.safetensors")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--head", required=True, metavar="URL", help="a head, from musicfm probe --save")
    parser.add_argument("--scratch", metavar="DIR", help="for copies of features where a head mixes recipes")
    add_storage_option(parser, "--storage-option", "the store")
    add_storage_option(parser, "--head-option", "--head")
    flags = parser.parse_args(arguments)
    start_s = time.monotonic()

    def run() -> int:
        with parser.loading("PyTorch"):
            from pipeline.location import StoreLocation
            from pipeline.probing.heads import load_head
            from pipeline.probing.predict import predict
            from pipeline.store.predictions import TABLE_NAME

        head = load_head(flags.head, dict(flags.head_option))
        store = StoreLocation(flags.store, dict(flags.storage_option))
        report = predict(store, head, flags.scratch)
        seconds = time.monotonic() - start_s
        spec = head.spec
        print(
            f"{report.predicted} tracks predicted, {report.unchanged} had been, {report.deleted} left, in "
            f"{seconds:.1f} s ({spec.task}, {spec.resolution} of {' + '.join(spec.recipes)})"
        )
        line = {
            **asdict(report),
            "task": spec.task,
            "recipe": "+".join(spec.recipes),
            "resolution": spec.resolution,
            "table": store.table_url(TABLE_NAME),
            "seconds": round(seconds, 3),
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return 0

    return run_or_explain(parser, run)


if __name__ == "__main__":
    run_script(main)
