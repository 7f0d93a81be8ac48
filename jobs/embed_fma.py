"""Embed the Free Music Archive data set (FMA) with the checkpoint trained on it."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.embedding import build_embed_parser, leave, run_embed_command
from pipeline.catalog.fma import load_fma_catalog


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(__doc__ or "", default_checkpoint="fma")
    parser.add_argument("--audio", required=True, metavar="ROOT", help="folder or bucket with NNN/NNNNNN.mp3")
    parser.add_argument("--metadata", metavar="URL", help="tracks.csv of fma_metadata")
    parser.add_argument("--subset", choices=("small", "medium", "large", "full"), help="needs the metadata")
    return run_embed_command(
        parser,
        lambda flags: load_fma_catalog(flags.audio, flags.metadata, flags.subset, dict(flags.audio_option)),
        arguments,
    )


if __name__ == "__main__":
    leave(main())
