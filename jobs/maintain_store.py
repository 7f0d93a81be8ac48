"""Look after a feature store: what it weighs, compaction, vacuum, recipes that are no longer wanted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain, whole_number
from jobs.program import run_script
from pipeline.config import DEFAULT_DEAD_SHARE

if TYPE_CHECKING:
    from pipeline.location import StoreLocation
    from pipeline.store.parts import Part
    from pipeline.store.read import FeatureStore
    from pipeline.store.rewrite import Rewrite
    from pipeline.store.usage import PartitionReport
    from pipeline.store.writer import StoreWriter

WEEK_HOURS = 168
MIN_SHARED_BYTES = 2**30  # of parts that are rewritten by tasks: fewer are rewritten sooner than Ray starts


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --report")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    add_switch(parser, "--report", "only print what the store weighs")
    add_switch(parser, "--recipes", "only list the recipes")
    parser.add_argument("--drop-recipe", metavar="ID", help="take all that is stored under a recipe out first")
    parser.add_argument(
        "--dead-share", type=float, default=DEFAULT_DEAD_SHARE, help="rewrite parts of which more is dead"
    )
    parser.add_argument(
        "--vacuum",
        nargs="?",
        type=whole_number(0),
        const=WEEK_HOURS,
        metavar="HOURS",
        help=f"remove files that left the tables so long ago (default {WEEK_HOURS}), and older versions with them",
    )
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.store.read import FeatureStore
            from pipeline.store.upgrade import upgrade_store
            from pipeline.store.writer import StoreWriter

        store = StoreLocation(flags.store, dict(flags.storage_option))
        if flags.recipes:
            print_recipes(FeatureStore(store.url, "latest", store.options))
        else:
            run_id = f"maintain-{uuid.uuid4().hex[:12]}"
            num_upgraded = 0 if flags.report else upgrade_store(store, run_id)
            if num_upgraded:
                print("the store was brought up to date; bring its indexes up to date with musicfm index")
            writer = None if flags.report else StoreWriter(store, run_id)
            line = maintain(store, writer, flags.drop_recipe, flags.dead_share, flags.vacuum)
            print(json.dumps({**line, "parts_upgraded": num_upgraded}))
        return 0

    return run_or_explain(parser, run)


def maintain(
    store: StoreLocation,
    writer: StoreWriter | None,
    recipe: str | None,
    dead_share: float,
    vacuum_hours: int | None,
) -> dict[str, object]:
    """Do what the flags ask for (nothing without a writer), print the report, and return the last line."""
    from pipeline.store.maintain import compact_store, drop_recipe, vacuum_store
    from pipeline.store.prediction_writer import merge_predictions
    from pipeline.store.usage import report_store

    line: dict[str, object] = {"store": store.url}
    if writer is not None:
        if recipe is not None:
            line["files_dropped"] = drop_recipe(writer, recipe)
            line["indexes_removed"] = remove_indexes(store, recipe)
        line["parts_replaced"] = compact_store(writer, dead_share, rewrite_all)
        line["prediction_files_replaced"] = merge_predictions(store, vacuum_hours)
        line["store_version"] = writer.store_version
        line["bytes_written"] = writer.bytes_written
        if vacuum_hours is not None:
            line["files_removed"] = vacuum_store(writer, vacuum_hours)
    reports = report_store(store)
    print_reports(reports)
    line["partitions"] = [
        {**asdict(report), "bytes_per_value": round(report.bytes_per_value, 3)} for report in reports
    ]
    return line


def rewrite_all(rewrite: Callable[[Rewrite], Part | None], rewrites: Sequence[Rewrite]) -> Iterable[Part | None]:
    """Rewrite parts: little of them here, much in tasks on all CPUs of the cluster that the environment names."""
    if sum(each.size_bytes for each in rewrites) < MIN_SHARED_BYTES:
        return map(rewrite, rewrites)
    from pipeline.run.cluster import start_ray
    from pipeline.run.tasks import map_on_cluster

    start_ray()
    return map_on_cluster(rewrite, rewrites)


def remove_indexes(store: StoreLocation, recipe: str) -> list[str]:
    """Remove a recipe's indexes, which would go on to find its tracks; return their resolutions."""
    from pipeline.index.manifest import list_indexes, remove_index

    locations = [location for location in list_indexes(store) if location.recipe == recipe]
    for location in locations:
        remove_index(location)
    return [location.resolution for location in locations]


def print_reports(reports: Sequence[PartitionReport]) -> None:
    """Print one line per recipe and resolution."""
    print(f"{'recipe':<28} {'resolution':<10} {'parts':>6} {'rows':>9} {'dead':>6} {'MB':>10} {'bytes/value':>12}")
    for report in reports:
        dead_share = report.num_dead_rows / max(1, report.num_rows)
        print(
            f"{report.recipe:<28} {report.resolution:<10} {report.num_parts:>6} {report.num_rows:>9} "
            f"{dead_share:>6.1%} {report.size_bytes / 1e6:>10.2f} {report.bytes_per_value:>12.3f}"
        )


def print_recipes(store: FeatureStore) -> None:
    """Print one line per recipe, then all as JSON."""
    rows = store.recipes().to_pylist()
    for row in rows:
        print(f"{row['recipe']:<28} {row['num_tracks']:>9} tracks  {row['checkpoint']}")
    print(json.dumps([{**row, "created_time": str(row["created_time"])} for row in rows]))


if __name__ == "__main__":
    run_script(main)
