"""A run from the driver's side: settings in, the books closed, a report out."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from musicfm_model.attention import check_attention
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.errors import FeatureStoreError, RunError, StorageError, UsageError
from pipeline.location import StoreLocation
from pipeline.logs import RUN_ID
from pipeline.report.publish import RunFacts, publish_report
from pipeline.run.dataflow import choose_placement, process_tracks
from pipeline.run.estimate import Cluster, Prices, RunEstimate, estimate_run, transfer_trial
from pipeline.run.plan import FAILURE_COLUMNS, LEDGER_COLUMNS, Plan, add_stored_facts, plan_tracks
from pipeline.run.trial import size_pools
from pipeline.run.trial_dataflow import run_cluster_trial
from pipeline.run.watch import RunWatch
from pipeline.schema import TABLES
from pipeline.store.commit import RunCommitter, RunCounts
from pipeline.store.tables import create_tables, has_tables, open_table, read_columns

logger = logging.getLogger(__name__)

FACT_KEYS = ("track_id", "content_hash", "resolution")


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


def embed_catalog(catalog: pa.Table, settings: RunSettings) -> RunReport:
    """Bring a store up to date with a catalog.

    Args:
        catalog: Rows of ``schema.CATALOG``, unique track ids.
        settings: What to compute.

    Returns:
        What was done.

    Raises:
        UsageError: The run cannot start: checkpoint, store or settings are not usable.
        musicfm_model.checkpoint.CheckpointError: The checkpoint is not one, or not whole.
        RunError: The run broke off, for instance because the store can no longer be written.
    """
    start_s = time.monotonic()
    checkpoint = load_model(settings)
    recipes = build_recipes(checkpoint, settings)
    if settings.device is not None:
        choose_placement(settings, checkpoint.config)  # before anything is made: there may be none
    create_tables(settings.store)  # says so where there is no bucket; some servers make one for whoever writes
    settings.store.check_writable()
    run_id = uuid.uuid4().hex[:12]
    RUN_ID.set(run_id)
    watch = RunWatch(run_id, start_s)
    committer = RunCommitter(settings.store, run_id, recipes)
    base_version = committer.store_version
    committer.record_recipes(settings.checkpoint)
    plan = plan_run(catalog, settings, recipes)
    logger.info("planned", extra={"tracks": plan.num_tracks, "to_process": plan.to_process.num_rows})
    counts = committer.counts
    counts.planned = plan.num_tracks
    counts.unchanged = plan.num_unchanged
    counts.failed = plan.num_known_failures
    counts.failures_by_reason = dict(plan.known_failures_by_reason)
    if plan.relabeled.num_rows:
        committer.relabel(plan.relabeled)
    try:
        if plan.to_process.num_rows:
            process_tracks(plan.to_process, checkpoint, recipes, settings, committer, watch)
        closed = counts.closes
        logger.info("all results are in", extra={"counts": vars(counts), "closed": closed})
        if closed:
            committer.close(plan.departed if settings.prune else None)
        else:
            committer.commit()  # what has an outcome is kept; the next run goes on from there
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
    return RunReport(
        run_id,
        counts,
        {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()},
        committer.store_version,
        watch.age_s(),
        committer.bytes_written,
        closed,
        page=page,
    )


def gather_run(
    committer: RunCommitter,
    settings: RunSettings,
    watch: RunWatch,
    base_version: int,
    closed: bool = False,
    broke_off: str | None = None,
) -> RunFacts:
    """Collect what the driver knows of a run, for its report."""
    return RunFacts(
        store=settings.store,
        run_id=committer.run_id,
        recipes={recipe_id: recipe.layer for recipe_id, recipe in committer.recipes.items()},
        counts=vars(committer.counts),
        version=committer.store_version,
        base_version=base_version,
        closed=closed,
        seconds=watch.age_s(),
        bytes_written=committer.bytes_written,
        broke_off=broke_off,
        throughput=watch.throughput.read(),
        books=watch.books,
        phases={name: getattr(watch, name) for name in ("work_began_s", "first_result_s", "work_ended_s")},
        configuration=settings.configuration,
    )


def preview_catalog(
    catalog: pa.Table, settings: RunSettings, prices: Prices | None = None, gpu: str | None = None
) -> RunReport:
    """Say what ``embed_catalog`` would have to do, and what it would take, without writing anything.

    Args:
        catalog: Rows of ``schema.CATALOG``.
        settings: What would be computed.
        prices: For the costs.
        gpu: Key of ``estimate.GPU_TFLOPS``: reckon with one of these, rather than with what the cluster has.

    Returns:
        A report whose ``embedded`` counts the tracks that would be looked at.

    Raises:
        UsageError: As ``embed_catalog``.
        musicfm_model.checkpoint.CheckpointError: As ``embed_catalog``.
    """
    start_s = time.monotonic()
    checkpoint = load_model(settings)
    recipes = build_recipes(checkpoint, settings)
    exists = has_tables(settings.store)
    plan = plan_run(catalog, settings, recipes, exists)
    counts = RunCounts(
        planned=plan.num_tracks,
        embedded=plan.to_process.num_rows,
        unchanged=plan.num_unchanged,
        failed=plan.num_known_failures,
        deleted=plan.num_departed if settings.prune else 0,
        failures_by_reason=dict(plan.known_failures_by_reason),
    )
    version = open_table(settings.store, "tracks").version() if exists else None
    layers = {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()}
    estimate = RunEstimate()
    if plan.to_process.num_rows:
        setup_s = time.monotonic() - start_s
        estimate = _estimate(plan.to_process, checkpoint, recipes, settings, prices or Prices(), gpu, setup_s)
    return RunReport("dry-run", counts, layers, version, time.monotonic() - start_s, 0, counts.closes, estimate)


def _estimate(
    planned: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    prices: Prices,
    gpu: str | None,
    setup_s: float,
) -> RunEstimate:
    found = run_cluster_trial(planned, checkpoint, recipes, settings)
    start_s = setup_s + found.ray_start_s + found.pipeline_start_s
    trial, cluster = found.trial, Cluster(found.num_cpus, found.placement.num_actors, start_s)
    if gpu is not None and trial.model_s_per_audio_s:
        layer = max(recipe.layer for recipe in recipes.values())
        trial = transfer_trial(
            trial, gpu, checkpoint.config, layer, settings.windows, settings.precision, settings.resolutions
        )
        # One GPU, with as many cores as keep it busy.
        num_cpus = math.ceil(size_pools(trial, float("inf")).cores_per_actor)
        cluster = Cluster(max(1, num_cpus), 1, start_s)
    return estimate_run(planned, trial, cluster, checkpoint.config.embed_dim, len(recipes), prices)


def load_model(settings: RunSettings) -> Checkpoint:
    """Load the run's checkpoint, once it is clear that the model could compute as it is told to.

    Raises:
        UsageError: The attention back end cannot work, or not in this precision.
        musicfm_model.checkpoint.CheckpointError: The checkpoint is not one, or not whole.
    """
    try:
        check_attention(settings.attention, settings.precision)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return load_checkpoint(settings.checkpoint, settings.stats)


def build_recipes(checkpoint: Checkpoint, settings: RunSettings) -> dict[str, Recipe]:
    """Return the run's recipes by id, one a layer, in the order of the layers.

    Raises:
        UsageError: The checkpoint has no such layer.
    """
    recipes = {}
    for layer in settings.layers:
        if not 0 <= layer <= checkpoint.config.num_layers:
            raise UsageError(
                f"--layers: expected 0 to {checkpoint.config.num_layers}, the layers of the checkpoint "
                f"{settings.checkpoint}, found {layer}"
            )
        recipe = Recipe(
            checkpoint.sha256,
            layer,
            settings.windows,
            settings.precision,
            settings.mantissa_bits,
        )
        recipes[recipe.recipe_id] = recipe
    return recipes


def plan_run(catalog: pa.Table, settings: RunSettings, recipes: Mapping[str, Recipe], exists: bool = True) -> Plan:
    """Compare the catalog with what the store holds of the run's recipes, as settings say."""
    return plan_against_store(
        catalog, settings.store, list(recipes), settings.resolutions, settings.retry_failures, exists
    )


def plan_against_store(
    catalog: pa.Table,
    store: StoreLocation,
    recipes: Sequence[str],
    resolutions: Sequence[str],
    retry_failures: bool = False,
    exists: bool = True,
) -> Plan:
    """Read what a store holds and compare a catalog with it.

    Args:
        catalog: Rows of ``schema.CATALOG``.
        store: The store.
        recipes: Ids of the wanted recipes.
        resolutions: Wanted resolutions.
        retry_failures: Try known-bad files again.
        exists: Whether there is a store to read.

    Raises:
        StorageError: The store cannot be read.
    """
    if not exists:
        ledger, failures = _empty_table("tracks", LEDGER_COLUMNS), _empty_table("failures", FAILURE_COLUMNS)
        return plan_tracks(
            catalog, dict.fromkeys(recipes, ledger), dict.fromkeys(recipes, failures), resolutions, retry_failures
        )
    tables = {name: open_table(store, name) for name in ("tracks", "failures", "frames")}
    plan = plan_tracks(
        catalog,
        {recipe: read_columns(tables["tracks"], LEDGER_COLUMNS, recipe) for recipe in recipes},
        {recipe: read_columns(tables["failures"], FAILURE_COLUMNS, recipe) for recipe in recipes},
        resolutions,
        retry_failures,
    )
    if plan.to_process.num_rows == 0:
        return plan
    ids = plan.to_process.column("track_id").to_pylist()
    facts = {recipe: read_columns(tables["frames"], FACT_KEYS, recipe, ids) for recipe in recipes}
    return replace(plan, to_process=add_stored_facts(plan.to_process, facts))


def _empty_table(name: str, columns: Sequence[str]) -> pa.Table:
    return pa.schema([TABLES[name].field(column) for column in columns]).empty_table()
