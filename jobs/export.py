"""Copy one resolution of a store into WebDataset shards, or a folder that Hugging Face ``datasets`` loads."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import OneLineParser, add_storage_option, run_or_explain
from pipeline.config import RESOLUTIONS
from pipeline.location import StoreLocation
from pipeline.store.export import FORMATS, export_features


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all is written, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--out", required=True, metavar="URL", help="new folder or bucket prefix")
    parser.add_argument("--format", required=True, choices=FORMATS, help="form of the copy")
    parser.add_argument("--resolution", default="global", choices=tuple(RESOLUTIONS), help="which features")
    parser.add_argument("--recipe", metavar="ID", help="where the store has several recipes")
    add_storage_option(parser, "--storage-option", "the store")
    add_storage_option(parser, "--out-option", "the copy")
    flags = parser.parse_args(arguments)
    store = StoreLocation(flags.store, dict(flags.storage_option))
    start_s = time.monotonic()

    def run() -> int:
        report = export_features(
            store, flags.resolution, flags.format, flags.out, flags.recipe, dict(flags.out_option)
        )
        seconds = time.monotonic() - start_s
        print(
            f"{report.num_tracks} tracks, {report.num_vectors} vectors of {report.embed_dim} values in "
            f"{len(report.shards)} shards, in {seconds:.1f} s"
        )
        line = {**asdict(report), "format": flags.format, "resolution": flags.resolution, "out": flags.out}
        print(json.dumps({**line, "seconds": round(seconds, 3)}), flush=True)
        return 0

    return run_or_explain(parser, run)


if __name__ == "__main__":
    sys.exit(main())
