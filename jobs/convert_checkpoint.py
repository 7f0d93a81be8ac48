"""Convert a checkpoint to one safetensors file with its statistics embedded.

    python jobs/convert_checkpoint.py SOURCE [--stats URL] TARGET.safetensors

The file holds the tensors that the model uses and nothing else; it loads without unpickling anything, and gives
the same recipe as its source. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jobs.arguments import OneLineParser
from musicfm_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for a mistake in the call."""
    options = _parse_arguments(arguments)
    try:
        checkpoint = load_checkpoint(options.source, options.stats)
        save_checkpoint(checkpoint, options.target)
    except CheckpointError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    report = {
        "target": options.target,
        "sha256": checkpoint.sha256,
        "num_tensors": len(checkpoint.state_dict),
        "num_parameters": sum(tensor.numel() for tensor in checkpoint.state_dict.values()),
        "num_layers": checkpoint.config.num_layers,
        "embed_dim": checkpoint.config.embed_dim,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
    }
    print(json.dumps(report))
    return 0


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="convert_checkpoint", description="Convert a MusicFM checkpoint to safetensors.")
    parser.add_argument("source", metavar="SOURCE", help="msd, fma, or the URL of a .pt or .safetensors file")
    parser.add_argument(
        "--stats", metavar="URL", help="statistics file; by default the one beside SOURCE or embedded in it"
    )
    parser.add_argument("target", metavar="TARGET", help="URL to write, ending in .safetensors")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
