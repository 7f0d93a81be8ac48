"""Embed the Million Song Dataset, in any of its usual layouts, with the checkpoint trained on it."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.embedding import build_embed_parser, leave, run_embed_command
from pipeline.catalog.msd import load_msd_catalog


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_embed_parser(__doc__ or "", default_checkpoint="msd")
    parser.add_argument("--audio", required=True, metavar="ROOT", help="folder, bucket or manifest of the clips")
    parser.add_argument("--tracks", metavar="URL", help="unique_tracks.txt: artist and title of each track")
    parser.add_argument("--split", metavar="URL", help="list of ids that selects tracks: MSD50, CALS, ECALS")
    return run_embed_command(
        parser,
        lambda flags: load_msd_catalog(flags.audio, flags.tracks, flags.split, dict(flags.audio_option)),
        arguments,
    )


if __name__ == "__main__":
    leave(main())
