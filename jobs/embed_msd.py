"""Embed the Million Song Dataset, in any of its usual layouts, with the checkpoint trained on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.embedding import build_embed_parser, run_embed_command
from jobs.program import run_script

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLE = "--audio s3://bucket/msd --tracks unique_tracks.txt --store s3://bucket/features"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(program, __doc__, EXAMPLE, default_checkpoint="msd")
    parser.add_argument("--audio", required=True, metavar="ROOT", help="folder, bucket or manifest of the clips")
    parser.add_argument(
        "--tracks",
        metavar="URL",
        help="unique_tracks.txt: artist and title of each track. Without --split its ids join the catalog, and "
        "fail where they have no audio. If left out, one in or beside ROOT only describes",
    )
    parser.add_argument("--split", metavar="URL", help="list of ids that selects tracks: MSD50, CALS, ECALS")
    return run_embed_command(parser, load, arguments)


def load(flags: argparse.Namespace) -> pa.Table:
    """Return the catalog that the flags name."""
    from pipeline.catalog.msd import load_msd_catalog

    return load_msd_catalog(flags.audio, flags.tracks, flags.split, dict(flags.audio_option))


if __name__ == "__main__":
    run_script(main)
