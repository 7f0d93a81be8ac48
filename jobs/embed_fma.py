"""Embed the Free Music Archive data set (FMA) with the checkpoint trained on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.embedding import build_embed_parser, run_embed_command
from jobs.program import run_script

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLE = "--audio s3://bucket/fma_large --metadata fma_metadata/tracks.csv --store s3://bucket/features"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(program, __doc__, EXAMPLE, default_checkpoint="fma")
    parser.add_argument("--audio", required=True, metavar="ROOT", help="folder or bucket with NNN/NNNNNN.mp3")
    parser.add_argument("--metadata", metavar="URL", help="tracks.csv of fma_metadata")
    parser.add_argument("--subset", choices=("small", "medium", "large", "full"), help="needs the metadata")
    return run_embed_command(parser, load, arguments)


def load(flags: argparse.Namespace) -> pa.Table:
    """Return the catalog that the flags name."""
    from pipeline.catalog.fma import load_fma_catalog

    return load_fma_catalog(flags.audio, flags.metadata, flags.subset, dict(flags.audio_option))


if __name__ == "__main__":
    run_script(main)
