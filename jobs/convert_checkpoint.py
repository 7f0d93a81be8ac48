"""Convert a checkpoint to one safetensors file with its statistics embedded.

The file holds the tensors that the model uses and nothing else; it loads without unpickling anything, and gives
the same recipe as its source. The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from jobs.arguments import OneLineParser, run_or_explain
from jobs.program import run_script
from musicfm_model.errors import CheckpointError
from pipeline.errors import UsageError


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "pretrained_msd.pt pretrained_msd.safetensors")
    parser.add_argument("source", metavar="SOURCE", help="msd, fma, or the URL of a .pt or .safetensors file")
    parser.add_argument(
        "--stats", metavar="URL", help="statistics file; by default the one beside SOURCE or embedded in it"
    )
    parser.add_argument("target", metavar="TARGET", help="URL to write, ending in .safetensors")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("PyTorch"):
            from musicfm_model.checkpoint import load_checkpoint, save_checkpoint

        try:
            checkpoint = load_checkpoint(flags.source, flags.stats)
            save_checkpoint(checkpoint, flags.target)
        except CheckpointError as error:
            raise UsageError(str(error)) from error
        report = {
            "target": flags.target,
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

    return run_or_explain(parser, run)


if __name__ == "__main__":
    run_script(main)
