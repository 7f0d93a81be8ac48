"""Check a feature store: every track whole, nothing twice, nothing missing, the last run's books closed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import EXIT_OPEN_BOOKS, run_script


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 for a sound store, 1 with problems, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --deep")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store to check")
    add_switch(parser, "--deep", "also read every vector")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.store.check import check_store

        report = check_store(StoreLocation(flags.store, dict(flags.storage_option)), flags.deep)
        for problem in report.problems:
            print(f"problem: {problem}")
        print(json.dumps({"ok": not report.problems, **asdict(report)}), flush=True)
        return EXIT_OPEN_BOOKS if report.problems else 0

    return run_or_explain(parser, run)


if __name__ == "__main__":
    run_script(main)
