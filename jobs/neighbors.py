"""Write every track's nearest neighbours as a Delta Lake table beside the store's own: ``neighbors``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import EXIT_OPEN_BOOKS, EXIT_USAGE, OneLineParser, add_storage_option
from pipeline.errors import FeatureStoreError, UsageError
from pipeline.neighbors import TABLE_NAME, write_neighbors
from pipeline.store_location import StoreLocation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done, 1 when nothing could be committed, 2 for a mistake in the call."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = OneLineParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--store", required=True, metavar="URL", help="feature store with an index of global vectors"
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="neighbours of a track")
    parser.add_argument("--recipe", metavar="ID", help="where the store has indexes of several recipes")
    parser.add_argument("--ray", action="store_true", help="spread the work over a Ray cluster")
    parser.add_argument("--cache", metavar="DIR", help="copies of an index that lies in object storage")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)
    if flags.k < 1:
        parser.error(f"-k: expected 1 or more, found {flags.k}")
    store = StoreLocation(flags.store, dict(flags.storage_option))
    start_s = time.monotonic()
    try:
        if flags.ray:
            from pipeline.index_dataflow import map_over_ray  # Ray takes seconds to import

            report = write_neighbors(store, flags.k, flags.recipe, flags.cache, map_over_ray)
        else:
            report = write_neighbors(store, flags.k, flags.recipe, flags.cache)
    except UsageError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FeatureStoreError as error:
        print(f"{parser.prog}: nothing was committed: {error}", file=sys.stderr)
        return EXIT_OPEN_BOOKS
    seconds = time.monotonic() - start_s
    print(
        f"{report.num_rows} neighbours of {report.num_tracks} tracks in snapshot {report.store_version}, in "
        f"{seconds:.1f} s"
    )
    line = {**asdict(report), "k": flags.k, "table": store.table_url(TABLE_NAME), "seconds": round(seconds, 3)}
    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
