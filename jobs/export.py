"""Copy one resolution of a store into WebDataset shards, or a folder that Hugging Face ``datasets`` loads."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import OneLineParser, add_storage_option, run_or_explain
from jobs.program import run_script
from pipeline.config import EXPORT_FORMATS, RESOLUTIONS


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when all is written, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(
        program, __doc__, "--store ~/features --format webdataset --resolution 8hz --out ~/shards"
    )
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--out", required=True, metavar="URL", help="new folder or bucket prefix")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS, help="form of the copy")
    parser.add_argument("--resolution", default="global", choices=tuple(RESOLUTIONS), help="which features")
    parser.add_argument("--recipe", metavar="ID", help="where the store has several recipes")
    add_storage_option(parser, "--storage-option", "the store")
    add_storage_option(parser, "--out-option", "the copy")
    flags = parser.parse_args(arguments)
    start_s = time.monotonic()

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.store.export import export_features

        store = StoreLocation(flags.store, dict(flags.storage_option))
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
    run_script(main)
