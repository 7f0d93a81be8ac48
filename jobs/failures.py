"""List the files of a catalog that could not be embedded: which, why, and what to do about each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

from jobs.arguments import OneLineParser, add_storage_option, run_or_explain
from jobs.program import run_script

FORMATS = ("table", "csv", "json")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when it could be told, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --format csv")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--recipe", metavar="ID", help="only failures of this recipe; by default of all")
    parser.add_argument("--format", choices=FORMATS, default="table", help="csv and json for programs")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.report.failures import list_failures

        recipes = None if flags.recipe is None else [flags.recipe]
        failures = list_failures(StoreLocation(flags.store, dict(flags.storage_option)), recipes)
        {"table": print_table, "csv": print_csv, "json": print_json}[flags.format](failures)
        return 0

    return run_or_explain(parser, run)


def print_table(failures: Sequence[dict[str, Any]]) -> None:
    """Print the failures by reason, each reason with its advice."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        by_reason.setdefault(failure["reason"], []).append(failure)
    if not failures:
        print("no failures on record")
    for reason, rows in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"{len(rows)} {reason}: {rows[0]['advice']}")
        for row in rows:
            print(f"  {row['track_id']}  ({row['uri'] or 'no file'})")
            print(f"    {row['message']}")


def print_csv(failures: Sequence[dict[str, Any]]) -> None:
    """Print the failures as CSV with a header."""
    names = ("track_id", "uri", "stage", "reason", "message", "advice", "time", "run_id")
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(failures)


def print_json(failures: Sequence[dict[str, Any]]) -> None:
    """Print the failures as one line of JSON."""
    print(json.dumps({"num_failures": len(failures), "failures": list(failures)}), flush=True)


if __name__ == "__main__":
    run_script(main)
