"""``musicfm``: all commands under one name.

A command is a file of this folder and a line of ``COMMANDS``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from jobs.program import EXIT_USAGE, run_program

PROGRAM = "musicfm"
COMMANDS = {
    "embed": ("embed_catalog", "embed a folder, bucket or manifest of music"),
    "embed-msd": ("embed_msd", "embed the Million Song Dataset"),
    "embed-fma": ("embed_fma", "embed the Free Music Archive data set"),
    "plan": ("plan", "say what embedding would read, write, take and cost"),
    "index": ("build_index", "make the similarity index, or bring it up to date"),
    "search": ("search", "find what sounds like a track, a moment of one, or a file"),
    "serve": ("serve", "serve searches over HTTP, with a page"),
    "neighbors": ("neighbors", "write every track's nearest neighbours as a table"),
    "evaluate": ("evaluate_retrieval", "score the index against what is known to be similar"),
    "probe": ("probe", "say what the features know: train a head on annotations, and measure it"),
    "predict": ("predict", "apply a head to the whole store, as a table of predictions"),
    "export": ("export", "copy features for WebDataset or Hugging Face"),
    "failures": ("failures", "list the files that could not be embedded, and what to do"),
    "check": ("check_store", "say whether a store is sound"),
    "maintain": ("maintain_store", "weigh, compact and vacuum a store, drop a recipe"),
    "delete": ("delete_tracks", "take tracks down"),
    "pretrain": ("pretrain", "train a model on your own music"),
    "finetune": ("finetune", "fine-tune a checkpoint on labelled tracks"),
    "convert": ("convert_checkpoint", "turn a .pt checkpoint into .safetensors"),
}
"""The file and the purpose of each command."""

HELP = f"""usage: {PROGRAM} COMMAND [flags]

A music catalog in, MusicFM features in Delta Lake out, and what sounds like what.

commands:
{{commands}}

options:
  --help       show this, or with a command its flags
  --version    show the version

Every command takes --config FILE.toml, with its flags by name.

example:
  {PROGRAM} embed --audio ~/Music --store ~/features --checkpoint msd
"""


def main() -> NoReturn:
    """Run the process's command line and end the process."""
    run_program(PROGRAM, lambda: run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line without its first word, ``musicfm``, and return the exit code."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(
            HELP.format(commands="\n".join(f"  {key:<12} {what}" for key, (_, what) in COMMANDS.items())), end=""
        )
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"{PROGRAM} {version('music-feature-store')}")
        return 0
    if name not in COMMANDS:
        from difflib import get_close_matches

        nearest = get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1, cutoff=0.0)[0]
        print(
            f"{PROGRAM}: error: expected a command, found {name!r}; the nearest is {nearest!r} "
            f"(see {PROGRAM} --help)",
            file=sys.stderr,
        )
        return EXIT_USAGE
    code: int = import_module(f"jobs.{COMMANDS[name][0]}").main(rest, f"{PROGRAM} {name}")
    return code


if __name__ == "__main__":
    main()
