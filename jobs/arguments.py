"""What the embedding commands have in common: their flags, and one run from flags to the last line."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NoReturn

import pyarrow as pa

from musicfm_model.checkpoint import CheckpointError
from pipeline.config import DEFAULT_RESOLUTIONS, PRECISIONS, RESOLUTIONS, RunSettings
from pipeline.errors import FeatureStoreError, UsageError
from pipeline.estimate import RunEstimate
from pipeline.run import RunReport, embed_catalog, preview_catalog
from pipeline.store_location import StoreLocation

EXIT_OPEN_BOOKS = 1
EXIT_USAGE = 2


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line: the flags are in ``--help``."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with 2; a flag that is not known may carry a secret, which is left out."""
        if message.startswith("unrecognized arguments"):
            message = re.sub(r"=\S+", "=…", message)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_embed_parser(description: str, default_checkpoint: str | None = None) -> OneLineParser:
    """Build a parser with the flags that all embedding commands share.

    Args:
        description: What the command does, for ``--help``.
        default_checkpoint: Name or URL; None makes the flag required.
    """
    parser = OneLineParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--store", required=True, metavar="URL", help="feature store: a folder or bucket prefix")
    add_model_arguments(parser, default_checkpoint)
    parser.add_argument(
        "--resolutions",
        type=parse_resolutions,
        default=",".join(DEFAULT_RESOLUTIONS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(RESOLUTIONS)}",
    )
    parser.add_argument("--mantissa-bits", type=_integer(1, 23), default=10, help="kept of each stored float32")
    run = parser.add_argument_group("the run")
    run.add_argument("--limit", type=_integer(1), metavar="N", help="only the catalog's first N tracks, by id")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    run.add_argument("--prune", action="store_true", help="take tracks out that left the catalog")
    run.add_argument("--retry-failures", action="store_true", help="try known-bad files again")
    run.add_argument("--max-duration-s", type=_positive, default=7200.0, help="longer tracks fail")
    run.add_argument("--commit-interval-s", type=_positive, default=60.0, help="between commits of a run")
    run.add_argument("--stall-timeout-s", type=_positive, default=3600.0, help="give up after such a silence")
    storage = parser.add_argument_group("storage (credentials come from the standard places, such as AWS_*)")
    add_storage_option(storage, "--storage-option", "the store")
    add_storage_option(storage, "--audio-option", "the audio")
    return parser


def add_storage_option(parser: argparse._ActionsContainer, name: str, what: str) -> None:
    """Add a repeatable KEY=VALUE flag for a file system's options."""
    parser.add_argument(
        name,
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"file system option for {what}; repeatable",
    )


def add_model_arguments(parser: argparse.ArgumentParser, default_checkpoint: str | None) -> None:
    """Add the flags that say which model runs, and how."""
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--checkpoint",
        default=default_checkpoint,
        required=default_checkpoint is None,
        metavar="NAME_OR_URL",
        help="msd, fma (the published ones), or any .pt or .safetensors",
    )
    model.add_argument("--stats", metavar="URL", help="normalisation file, where it is not beside the checkpoint")
    model.add_argument(
        "--layers", "--layer", type=parse_layers, default="7", help="comma-separated; each gives a recipe"
    )
    model.add_argument("--windows", choices=("shared", "task"), default="shared", help="window policy")
    model.add_argument("--precision", choices=PRECISIONS, default="float32", help="arithmetic of the model")
    model.add_argument("--attention", choices=("sdpa", "eager", "flash"), default="sdpa", help="back end")
    model.add_argument("--device", choices=("cuda", "cpu"), help="by default what the cluster has")
    model.add_argument("--batch-size", type=_integer(1), metavar="N", help="windows in one call of the model")


def run_embed_command(
    parser: OneLineParser,
    load_catalog: Callable[[argparse.Namespace], pa.Table],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, load the catalog, run, and print the report.

    Args:
        parser: From ``build_embed_parser``, with the command's own flags added.
        load_catalog: Makes rows of ``schema.CATALOG`` from the parsed flags.
        arguments: Command line; by default the process's own.

    Returns:
        The exit code: 0 when the books closed, 1 when they could not, 2 for a mistake in the call.
    """
    flags = parser.parse_args(arguments)
    if flags.prune and flags.limit:
        parser.error("--prune with --limit would delete every track past the limit; give one of them")

    def run() -> int:
        settings = _read_settings(flags)
        catalog = load_catalog(flags)
        if flags.limit:
            catalog = catalog.slice(0, flags.limit)
        report = (preview_catalog if flags.dry_run else embed_catalog)(catalog, settings)
        print_report(report, flags.store, flags.dry_run)
        return 0 if report.closed else EXIT_OPEN_BOOKS

    return run_or_explain(parser, run)


def run_or_explain(parser: OneLineParser, run: Callable[[], int]) -> int:
    """Do a command's work; what goes wrong in it becomes one line on standard error and an exit code.

    Args:
        parser: The command's parser, for its name.
        run: The work; returns the exit code.

    Returns:
        What ``run`` returns, 2 for a mistake in the call, or 1 for work that broke off.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run()
    except (UsageError, CheckpointError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FeatureStoreError as error:
        print(f"{parser.prog}: broke off: {error}", file=sys.stderr)
        return EXIT_OPEN_BOOKS


def print_report(report: RunReport, store: str, dry_run: bool) -> None:
    """Print a table of outcomes and failures for people, then one line of JSON for programs."""
    counts = report.counts
    verb = "to look at" if dry_run else "embedded"
    print(
        f"\n{counts.planned} tracks: {counts.embedded} {verb}, {counts.unchanged} unchanged, "
        f"{counts.failed} failed, {counts.deleted} deleted in {report.seconds:.1f} s, "
        f"{report.bytes_written / 1e6:.3f} MB written"
    )
    if report.estimate is not None:
        print_estimate(report.estimate)
    for reason, number in sorted(counts.failures_by_reason.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {number:>8}  {reason}")
    if not report.closed:
        lost = counts.planned - counts.embedded - counts.unchanged - counts.failed
        print(f"the books do not close: {lost} tracks have no outcome; run the same command again")
    recipe_ids = list(report.recipes)
    line = {
        "planned": counts.planned,
        "embedded": counts.embedded,
        "unchanged": counts.unchanged,
        "failed": counts.failed,
        "deleted": counts.deleted,
        "recipe": recipe_ids[0],
        "recipes": report.recipes,
        "store": store,
        "store_version": report.store_version,
        "seconds": round(report.seconds, 3),
        "failures": counts.failures_by_reason,
        "bytes_written": report.bytes_written,
        "run_id": report.run_id,
        "dry_run": dry_run,
        "closed": report.closed,
        **({"estimate": asdict(report.estimate)} if report.estimate is not None else {}),
    }
    print(json.dumps(line), flush=True)


def print_estimate(estimate: RunEstimate) -> None:
    """Print what a run would come to."""
    if estimate.audio_s:
        print(
            f"about {estimate.audio_s / 3600:.2f} hours of audio, {estimate.bytes_read / 1e6:.1f} MB to read, "
            f"{estimate.bytes_written / 1e6:.1f} MB to write; on this machine about {estimate.seconds:.0f} s "
            f"(decoding {estimate.decode_s:.0f} core-seconds, the model {estimate.model_s:.0f} s), from "
            f"{estimate.num_probed} files tried"
        )


def parse_resolutions(text: str) -> tuple[str, ...]:
    """Read comma-separated names of resolutions."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in RESOLUTIONS]
    if unknown or not names:
        found = ", ".join(unknown) or "none"
        raise argparse.ArgumentTypeError(f"expected names of {', '.join(RESOLUTIONS)}; found {found}")
    return names


def parse_layers(text: str) -> tuple[int, ...]:
    """Read comma-separated layer numbers."""
    try:
        layers = tuple(dict.fromkeys(int(item) for item in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 7 or 4,7,12; found {text!r}") from None
    return layers


def _read_settings(flags: argparse.Namespace) -> RunSettings:
    return RunSettings(
        store=StoreLocation(flags.store, dict(flags.storage_option)),
        checkpoint=flags.checkpoint,
        stats=flags.stats,
        layers=flags.layers,
        resolutions=flags.resolutions,
        windows=flags.windows,
        precision=flags.precision,
        mantissa_bits=flags.mantissa_bits,
        attention=flags.attention,
        audio_options=dict(flags.audio_option),
        device=flags.device,
        batch_size=flags.batch_size,
        max_duration_s=flags.max_duration_s,
        commit_interval_s=flags.commit_interval_s,
        stall_timeout_s=flags.stall_timeout_s,
        retry_failures=flags.retry_failures,
        prune=flags.prune,
    )


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
        if value < least or (most is not None and value > most):
            span = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"expected {span}, found {value}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number over 0, found {text}")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError("expected KEY=VALUE")  # the text may hold a secret: not repeated
    return key, value
