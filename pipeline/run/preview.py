"""Preview: what a run would have to do, and what it would take, without one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.run.estimate import Cluster, Prices, RunEstimate, estimate_run, transfer_trial
from pipeline.run.prepare import build_recipes, list_layers, load_model, plan_run
from pipeline.run.prune import count_refused, describe_refusal
from pipeline.run.run import RunReport
from pipeline.run.trial import size_pools
from pipeline.run.trial_dataflow import run_cluster_trial
from pipeline.run.watch import RunWatch
from pipeline.store.books import RunCounts
from pipeline.store.tables import has_tables, open_table


def preview_catalog(
    catalog: pa.Table,
    settings: RunSettings,
    prices: Prices | None = None,
    gpu: str | None = None,
    checkpoint: Checkpoint | None = None,
    watch: RunWatch | None = None,
) -> RunReport:
    """Say what ``embed_catalog`` would have to do, and what it would take, without writing anything.

    Args:
        catalog: Rows of ``schema.CATALOG``.
        settings: What would be computed.
        prices: For the costs.
        gpu: Key of ``estimate.GPU_TFLOPS``: reckon with one of these, rather than with what the cluster has.
        checkpoint: The settings' checkpoint, where it is loaded already.
        watch: Knows of what was done before; by default the preview begins here.

    Returns:
        A report whose ``embedded`` counts the tracks that would be looked at.

    Raises:
        UsageError: As ``embed_catalog``.
        CheckpointError: As ``embed_catalog``.
    """
    watch = watch or RunWatch()
    checkpoint = checkpoint or load_model(settings)
    recipes = build_recipes(checkpoint, settings)
    exists = has_tables(settings.store)
    plan = plan_run(catalog, settings, recipes, exists)
    counts = RunCounts(
        planned=plan.num_tracks,
        embedded=plan.to_process.num_rows,
        unchanged=plan.num_unchanged,
        failed=plan.num_known_failures,
        failures_by_reason=dict(plan.known_failures_by_reason),
        withheld=plan.num_withheld,
    )
    if settings.prune:
        counts.not_pruned = count_refused(plan, settings.prune_limit)
        counts.deleted = 0 if counts.not_pruned else plan.num_departed
        counts.prune_refusal = describe_refusal(plan, settings.prune_limit) if counts.not_pruned else None
    version = open_table(settings.store, "tracks").version() if exists else None
    estimate = RunEstimate()
    if plan.to_process.num_rows:
        setup_s = watch.age_s()
        estimate = _estimate(plan.to_process, checkpoint, recipes, settings, prices or Prices(), gpu, setup_s)
    return RunReport("dry-run", counts, list_layers(recipes), version, watch.age_s(), 0, counts.closes, estimate)


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
