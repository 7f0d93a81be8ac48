"""Embed any catalog: a folder or bucket of music, or a Parquet or CSV manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.embedding import build_embed_parser, leave, run_embed_command

if TYPE_CHECKING:
    import pyarrow as pa


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(__doc__ or "")
    parser.add_argument(
        "--audio", required=True, metavar="URL_OR_MANIFEST", help="folder, bucket, manifest or mirdata:NAME"
    )
    return run_embed_command(parser, load, arguments)


def load(flags: argparse.Namespace) -> pa.Table:
    """Return the catalog that the flags name."""
    from pipeline.catalog.load import load_catalog

    return load_catalog(flags.audio, dict(flags.audio_option))


if __name__ == "__main__":
    leave(main())
