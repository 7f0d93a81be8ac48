"""What the embedding commands have in common: their flags, and one run from flags to the last line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from jobs.arguments import (
    OneLineParser,
    add_storage_option,
    add_switch,
    parse_layers,
    parse_resolutions,
    positive_number,
    readable_by,
    run_or_explain,
    whole_number,
)
from jobs.configuration import describe_flags
from jobs.program import EXIT_NOT_PRUNED, EXIT_OPEN_BOOKS
from pipeline.config import (
    DEFAULT_RESOLUTIONS,
    PRECISIONS,
    RESOLUTIONS,
    PruneLimit,
    RunSettings,
    Shard,
    check_catalog_name,
)
from pipeline.run.start import start_preview, start_run

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.run.run import RunReport


def build_embed_parser(
    program: str | None, description: str | None, example: str, default_checkpoint: str | None = None
) -> OneLineParser:
    """Build a parser with the flags that all embedding commands share.

    Args:
        program: As ``OneLineParser`` takes it.
        description: What the command does, for ``--help``.
        example: As ``OneLineParser`` takes it.
        default_checkpoint: Name or URL; None makes the flag required.
    """
    parser = OneLineParser(program, description, example)
    parser.add_argument("--store", required=True, metavar="URL", help="feature store: a folder or bucket prefix")
    add_model_arguments(parser, default_checkpoint)
    parser.add_argument(
        "--resolutions",
        type=parse_resolutions,
        default=",".join(DEFAULT_RESOLUTIONS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(RESOLUTIONS)}",
    )
    parser.add_argument(
        "--mantissa-bits", type=whole_number(1, 23), default=10, help="kept of each stored float32"
    )
    _add_run_arguments(parser)
    storage = parser.add_group("storage (credentials come from the standard places, such as AWS_*)")
    add_storage_option(storage, "--storage-option", "the store")
    add_storage_option(storage, "--audio-option", "the audio")
    return parser


def add_model_arguments(parser: OneLineParser, default_checkpoint: str | None) -> None:
    """Add the flags that say which model runs, and how."""
    model = parser.add_group("the model")
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
    model.add_argument("--batch-size", type=whole_number(1), metavar="N", help="windows in one call of the model")


def _add_run_arguments(parser: OneLineParser) -> None:
    run = parser.add_group("the run")
    run.add_argument("--limit", type=whole_number(1), metavar="N", help="only the catalog's first N tracks, by id")
    add_switch(run, "--dry-run", "say what would be done, write nothing")
    run.add_argument(
        "--catalog",
        type=readable_by(check_catalog_name),
        metavar="NAME",
        help="goes before ids, for several folders in one store",
    )
    add_switch(run, "--prune", "take out what left the catalog: of the store's tracks, or of those of its NAME")
    run.add_argument(
        "--prune-limit",
        type=readable_by(PruneLimit.parse),
        default="10%",
        metavar="SHARE_OR_NUMBER",
        help="where more would leave, none does (the catalog may be the wrong one), and the exit code is "
        f"{EXIT_NOT_PRUNED}",
    )
    run.add_argument(
        "--shard",
        type=readable_by(Shard.parse),
        metavar="I/N",
        help="one of N drivers that share the run: each embeds its part of the catalog, wherever it runs",
    )
    add_switch(run, "--retry-failures", "try known-bad files again")
    run.add_argument(
        "--num-gpus",
        type=whole_number(1),
        metavar="N",
        help="GPUs to use, by default those that are there; with more, an autoscaler adds nodes",
    )
    run.add_argument("--max-duration-s", type=positive_number, default=7200.0, help="longer tracks fail")
    run.add_argument(
        "--commit-interval-s", type=positive_number, default=60.0, help="at least, between commits of a run"
    )
    run.add_argument(
        "--stall-timeout-s", type=positive_number, default=3600.0, help="give up after such a silence"
    )
    run.add_argument("--log-format", choices=("text", "json"), default="text", help="of standard error")


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
        The exit code: 0 when all is done, 1 when the books could not be closed, 2 for a mistake in the call, 3
        when all but the pruning is done, which the fence forbade.
    """
    flags = parser.parse_args(arguments)
    if flags.num_gpus and flags.device == "cpu":
        parser.error("--num-gpus with --device cpu: nothing would use them; give one of them")
    if flags.prune and flags.limit:
        parser.error("--prune with --limit would delete every track past the limit; give one of them")

    def run() -> int:
        settings = read_settings(flags, describe_flags(parser.table, flags))
        load = partial(load_limited, load_catalog, flags)
        report = (start_preview if flags.dry_run else start_run)(load, settings)
        print_report(report, flags.store, flags.dry_run)
        return choose_exit_code(report)

    return run_or_explain(parser, run, flags.log_format)


def choose_exit_code(report: RunReport) -> int:
    """Return the exit code of a run or a dry run; a refusal to prune has its own, for schedulers to hear of it."""
    if not report.closed:
        return EXIT_OPEN_BOOKS
    return EXIT_NOT_PRUNED if report.counts.not_pruned else 0


def load_limited(load_catalog: Callable[[argparse.Namespace], pa.Table], flags: argparse.Namespace) -> pa.Table:
    """Return the catalog, cut where ``--limit`` says."""
    return load_catalog(flags).slice(0, flags.limit)


def print_report(report: RunReport, store: str, dry_run: bool) -> None:
    """Print a table of outcomes and failures for people, then one line of JSON for programs."""
    counts = report.counts
    verb = "to embed" if dry_run else "embedded"
    withheld = f"{counts.withheld} withheld, " if counts.withheld else ""
    print(
        f"\n{counts.planned} tracks: {counts.embedded} {verb}, {counts.unchanged} unchanged, "
        f"{counts.failed} failed, {withheld}{counts.deleted} deleted in {report.seconds:.1f} s, "
        f"{report.bytes_written / 1e6:.3f} MB written"
    )
    if report.estimate is not None:
        from pipeline.run.estimate import describe_estimate

        print("\n".join(f"  {line}" for line in describe_estimate(report.estimate)))
    for reason, number in sorted(counts.failures_by_reason.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {number:>8}  {reason}")
    for failure in report.failures:
        print(f"            {failure['track_id']}: {failure['message']}")
    if 0 < len(report.failures) < counts.failed:
        print(f"            and {counts.failed - len(report.failures):,} more; musicfm failures --store {store}")
    if report.num_undecided:
        print(
            f"  {report.num_undecided:,} of those to embed were not looked into: only their bytes tell whether "
            "they are new, known to the store, or cannot be embedded"
        )
    if counts.moved or counts.copied:
        print(
            f"  of the unchanged, {counts.moved} moved and {counts.copied} copied: known content under another id"
        )
    if counts.prune_refusal is not None:
        print(f"  {counts.prune_refusal}")
    if not report.closed:
        print(f"the books do not close: {counts.num_lost} tracks have no outcome; run the same command again")
    if report.num_open_shards:
        print(
            f"{report.num_open_shards} of the run's shards have not closed: readers see its tracks once all have"
        )
    if report.page is not None:
        print(f"report: {report.page}")
    print(json.dumps(summarise_report(report, store, dry_run)), flush=True)


def summarise_report(report: RunReport, store: str, dry_run: bool) -> dict[str, object]:
    """Return what the last line on standard output says, ready for JSON."""
    counts = report.counts
    return {
        "planned": counts.planned,
        "embedded": counts.embedded,
        "unchanged": counts.unchanged,
        "failed": counts.failed,
        "withheld": counts.withheld,
        "moved": counts.moved,
        "copied": counts.copied,
        "deleted": counts.deleted,
        "not_pruned": counts.not_pruned,
        "undecided": report.num_undecided,
        "recipe": next(iter(report.recipes)),
        "recipes": report.recipes,
        "store": store,
        "store_version": report.store_version,
        "seconds": round(report.seconds, 3),
        "failures": counts.failures_by_reason,
        "bytes_written": report.bytes_written,
        "run_id": report.run_id,
        "dry_run": dry_run,
        "closed": report.closed,
        "report": report.page,
        **({"open_shards": report.num_open_shards} if report.num_open_shards is not None else {}),
        **({"estimate": asdict(report.estimate)} if report.estimate is not None else {}),
    }


def read_settings(flags: argparse.Namespace, configuration: Mapping[str, object] | None = None) -> RunSettings:
    """Turn parsed flags into settings.

    Args:
        flags: What the parser of ``build_embed_parser`` read.
        configuration: What the run keeps of them, from ``describe_flags``.
    """
    from pipeline.location import StoreLocation

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
        num_gpus=flags.num_gpus,
        batch_size=flags.batch_size,
        max_duration_s=flags.max_duration_s,
        commit_interval_s=flags.commit_interval_s,
        stall_timeout_s=flags.stall_timeout_s,
        retry_failures=flags.retry_failures,
        catalog=flags.catalog,
        prune=flags.prune,
        prune_limit=PruneLimit.parse(flags.prune_limit),
        shard=Shard.parse(flags.shard) if flags.shard else None,
        configuration=configuration or {},
    )
