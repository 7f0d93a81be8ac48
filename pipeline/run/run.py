"""A run from the driver's side: settings in, the books closed, a report out."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.decode.known_content import KnownContent
from pipeline.errors import FeatureStoreError, RunError, StorageError
from pipeline.logs import RUN_ID
from pipeline.report.failures import list_failures
from pipeline.report.publish import RunFacts, publish_report
from pipeline.run.dataflow import choose_placement, process_tracks
from pipeline.run.estimate import RunEstimate
from pipeline.run.plan import Plan
from pipeline.run.prepare import build_recipes, list_first_ids, list_layers, load_model, plan_run
from pipeline.run.prune import check_fence
from pipeline.run.recognise import settle_recognised
from pipeline.run.watch import RunWatch
from pipeline.store.books import RunCounts
from pipeline.store.commit import RunCommitter
from pipeline.store.recipes import record_recipes
from pipeline.store.tables import create_tables, open_table

logger = logging.getLogger(__name__)

NUM_NAMED_FAILURES = 10


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Args:
        run_id: Its identifier.
        counts: Tracks by outcome.
        recipes: Layer of each recipe id.
        store_version: The ledger's version that the run closed with; None after a dry run on a new store.
        seconds: Wall time.
        bytes_written: Bytes of the files that the run added.
        closed: Whether the books closed and the run was published.
        estimate: After a dry run, what the run would come to.
        page: URL of the run's report, where one was written.
        failures: Some of the tracks that fail, as ``failures.list_failures`` gives them, the run's own first.
        num_open_shards: Of a run that several drivers share, how many have not closed: until none is left, readers
            see what they saw before. None of another run.
        num_undecided: After a dry run, those of the ``embedded`` that it did not look into: their bytes tell
            whether they are new, known or fail.
    """

    run_id: str
    counts: RunCounts
    recipes: Mapping[str, int]
    store_version: int | None
    seconds: float
    bytes_written: int
    closed: bool
    estimate: RunEstimate | None = None
    page: str | None = None
    failures: Sequence[Mapping[str, Any]] = ()
    num_undecided: int = 0
    num_open_shards: int | None = None


def embed_catalog(
    catalog: pa.Table, settings: RunSettings, checkpoint: Checkpoint | None = None, watch: RunWatch | None = None
) -> RunReport:
    """Bring a store up to date with a catalog.

    Args:
        catalog: Rows of ``schema.CATALOG``, unique track ids; where settings name it, they stand behind its name.
        settings: What to compute.
        checkpoint: The settings' checkpoint, where it is loaded already.
        watch: Knows of what was done before; by default the run begins here.

    Returns:
        What was done.

    Raises:
        UsageError: The run cannot start: checkpoint, store or settings are not usable.
        CheckpointError: The checkpoint is not one, or not whole.
        RunError: The run broke off, for instance because the store can no longer be written.
    """
    watch = watch or RunWatch()
    if checkpoint is None:
        watch.enter("loading the checkpoint", f"loading the checkpoint {settings.checkpoint}")
        checkpoint = load_model(settings)
    recipes = build_recipes(checkpoint, settings)
    if settings.device is not None:
        watch.enter("starting Ray")
        choose_placement(settings, checkpoint.config)  # before anything is made: there may be none
    watch.enter("planning", f"comparing {catalog.num_rows:,} tracks with the store at {settings.store.url}")
    committer = open_run(settings, recipes, catalog)
    base_version = committer.store_version
    plan = plan_run(catalog, settings, recipes, ids=committer.ids, version=base_version)
    enter_plan(committer, plan)
    ledger = open_table(settings.store, "tracks", base_version)
    try:
        rows = plan.to_process
        known: KnownContent | None = plan.known_content
        while rows.num_rows:
            process_tracks(rows, checkpoint, recipes, settings, committer, watch, known)
            watch.enter("committing")
            rows, known = settle_recognised(committer, plan, ledger), None
        watch.enter("committing")
        closed = close_run(committer, plan, settings)
    except (RunError, KeyboardInterrupt) as error:
        with suppress(FeatureStoreError):
            committer.commit()  # results that were accepted since the last commit
            reason = str(error) or "it was interrupted"
            publish_report(gather_run(committer, settings, watch, base_version, broke_off=reason))
        raise
    except StorageError as error:
        raise RunError(f"{error}; what was committed before is kept: run the same command again") from error
    page = publish_report(gather_run(committer, settings, watch, base_version, closed))
    logger.info("run ended", extra={"seconds": watch.age_s(), "store_version": committer.store_version})
    layers, failures = list_layers(recipes), name_failures(committer)
    done = committer.run_id, committer.counts, layers, committer.store_version
    ended = watch.age_s(), committer.bytes_written, closed
    num_open = committer.num_open_shards
    return RunReport(*done, *ended, page=page, failures=failures, num_open_shards=num_open)


def name_failures(committer: RunCommitter) -> list[dict[str, Any]]:
    """Return the first of a run's failures, which are then easily looked at; none where they cannot be read."""
    if not committer.counts.failed:
        return []
    try:
        return list_failures(committer.store, committer.recipes, committer.run_id, NUM_NAMED_FAILURES)
    except StorageError as error:
        logger.warning("failures are not named: %s", error)
        return []


def open_run(settings: RunSettings, recipes: Mapping[str, Recipe], catalog: pa.Table) -> RunCommitter:
    """Claim the store for a run of a catalog, or for one of its shards; it is made where there is none.

    Raises:
        UsageError: Another run is writing to it.
        StorageError: It cannot be written.
    """
    create_tables(settings.store)  # says so where there is no bucket; some servers make one for whoever writes
    settings.store.check_writable()
    run_id = uuid.uuid4().hex[:12]
    RUN_ID.set(run_id)
    first_ids = list_first_ids(catalog, settings.shard.of) if settings.shard else []
    committer = RunCommitter(settings.store, run_id, recipes, settings.shard, first_ids)
    record_recipes(committer.store, committer.run_id, committer.recipes, settings.checkpoint)
    return committer


def enter_plan(committer: RunCommitter, plan: Plan) -> None:
    """Enter in a run's books what its plan settles, before anything is processed."""
    logger.info("planned", extra={"tracks": plan.num_tracks, "to_process": plan.to_process.num_rows})
    counts = committer.counts
    counts.planned = plan.num_tracks
    counts.unchanged = plan.num_unchanged
    counts.failed = plan.num_known_failures
    counts.withheld = plan.num_withheld
    counts.failures_by_reason = dict(plan.known_failures_by_reason)
    if plan.relabeled.num_rows:
        committer.relabel(plan.relabeled)


def close_run(committer: RunCommitter, plan: Plan, settings: RunSettings) -> bool:
    """Close a run's books where they close, else keep what has an outcome; return whether they closed."""
    closed = committer.counts.closes
    logger.info("all results are in", extra={"counts": vars(committer.counts), "closed": closed})
    if closed:
        may_prune = settings.prune and check_fence(committer, plan, settings.prune_limit)
        committer.close(plan.departed if may_prune else None)
    else:
        committer.commit()  # the next run goes on from there
    return closed


def gather_run(
    committer: RunCommitter,
    settings: RunSettings,
    watch: RunWatch,
    base_version: int,
    closed: bool = False,
    broke_off: str | None = None,
) -> RunFacts:
    """Collect what the driver knows of a run, for its report."""
    phases = watch.measure_phases()
    return RunFacts(
        store=settings.store,
        run_id=committer.run_id,
        recipes=list_layers(committer.recipes),
        counts=vars(committer.counts),
        version=committer.store_version,
        base_version=base_version,
        closed=closed,
        seconds=sum(phases.values()),
        bytes_written=committer.bytes_written,
        broke_off=broke_off,
        throughput=watch.throughput.read(),
        books=watch.books,
        phases=phases,
        configuration=settings.configuration,
    )
