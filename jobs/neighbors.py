"""Write every track's nearest neighbours as a Delta Lake table beside the store's own: ``neighbors``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import run_script


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when nothing could be committed, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features -k 10")
    parser.add_argument(
        "--store", required=True, metavar="URL", help="feature store with an index of global vectors"
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="neighbours of a track")
    parser.add_argument("--recipe", metavar="ID", help="where the store has indexes of several recipes")
    add_switch(parser, "--ray", "spread the work over a Ray cluster")
    parser.add_argument("--cache", metavar="DIR", help="copies of an index that lies in object storage")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)
    if flags.k < 1:
        parser.error(f"-k: expected 1 or more, found {flags.k}")
    start_s = time.monotonic()

    def run() -> int:
        with parser.loading("the index library"):
            from pipeline.location import StoreLocation
            from pipeline.search.neighbors import TABLE_NAME, write_neighbors

        store = StoreLocation(flags.store, dict(flags.storage_option))
        if flags.ray:
            with parser.loading("Ray"):  # few calls need it
                from pipeline.index.dataflow import map_over_ray

            report = write_neighbors(store, flags.k, flags.recipe, flags.cache, map_over_ray)
        else:
            report = write_neighbors(store, flags.k, flags.recipe, flags.cache)
        seconds = time.monotonic() - start_s
        print(
            f"{report.num_rows} neighbours of {report.num_tracks} tracks in snapshot {report.store_version}, in "
            f"{seconds:.1f} s"
        )
        line = {**asdict(report), "k": flags.k, "table": store.table_url(TABLE_NAME), "seconds": round(seconds, 3)}
        print(json.dumps(line), flush=True)
        return 0

    return run_or_explain(parser, run)


if __name__ == "__main__":
    run_script(main)
