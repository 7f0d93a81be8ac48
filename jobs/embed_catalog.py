"""Embed any catalog: a folder or bucket of music, or a Parquet or CSV manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.embedding import build_embed_parser, run_embed_command
from jobs.program import run_script

if TYPE_CHECKING:
    import pyarrow as pa


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(program, __doc__, "--audio ~/Music --store ~/features --checkpoint msd")
    parser.add_argument(
        "--audio",
        required=True,
        metavar="URL_OR_MANIFEST",
        help="folder, bucket or file; a Parquet, CSV or TSV manifest; tar, zip or Parquet shards; inventory:URL; "
        "mirdata:NAME",
    )
    return run_embed_command(parser, load, arguments)


def load(flags: argparse.Namespace) -> pa.Table:
    """Return the catalog that the flags name."""
    from pipeline.catalog.load import load_catalog

    return load_catalog(flags.audio, dict(flags.audio_option))


if __name__ == "__main__":
    run_script(main)
