"""Preview: what a run would have to do, and what it would take, without one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from musicfm_model.checkpoint import Checkpoint
from pipeline.config import Recipe, RunSettings
from pipeline.run.estimate import Cluster, Prices, RunEstimate, estimate_run, transfer_trial
from pipeline.run.plan import Plan
from pipeline.run.prepare import build_recipes, list_first_ids, list_layers, load_model, plan_run
from pipeline.run.prune import count_refused, describe_refusal
from pipeline.run.run import NUM_NAMED_FAILURES, RunReport
from pipeline.run.trial import Trial, size_pools
from pipeline.run.trial_dataflow import ClusterTrial, run_cluster_trial
from pipeline.run.watch import RunWatch
from pipeline.store.books import RunCounts
from pipeline.store.shared_run import cut_range
from pipeline.store.tables import has_tables, open_table
from pipeline.store.takeover import match_sources, split_by_id


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
        A report whose counts are those of the run that follows, but for ``num_undecided`` tracks, which are among
        the ``embedded``.

    Raises:
        UsageError: As ``embed_catalog``.
        CheckpointError: As ``embed_catalog``.
    """
    watch = watch or RunWatch()
    checkpoint = checkpoint or load_model(settings)
    recipes = build_recipes(checkpoint, settings)
    exists = has_tables(settings.store)
    ids = cut_range(list_first_ids(catalog, settings.shard.of), settings.shard.number) if settings.shard else None
    plan = plan_run(catalog, settings, recipes, exists, ids)
    counts = count_plan(plan, settings)
    version = open_table(settings.store, "tracks").version() if exists else None
    layers, setup_s = list_layers(recipes), watch.age_s()
    if not plan.to_process.num_rows:
        return RunReport("dry-run", counts, layers, version, watch.age_s(), 0, counts.closes, RunEstimate())
    known = plan.known_content.prefixes
    cluster_trial = run_cluster_trial(plan.to_process, checkpoint, recipes, settings, known)
    enter_trial(counts, plan, cluster_trial.trial)
    estimate = _estimate(
        cluster_trial, plan.to_process, checkpoint, recipes, settings, prices or Prices(), gpu, setup_s
    )
    return RunReport(
        "dry-run",
        counts,
        layers,
        version,
        watch.age_s(),
        0,
        counts.closes,
        estimate,
        failures=cluster_trial.trial.failures[:NUM_NAMED_FAILURES],
        num_undecided=plan.to_process.num_rows - cluster_trial.trial.num_files,
    )


def count_plan(plan: Plan, settings: RunSettings) -> RunCounts:
    """Return a plan's books, with all tracks to look at among the ``embedded``."""
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
    return counts


def enter_trial(counts: RunCounts, plan: Plan, trial: Trial) -> None:
    """Enter in a preview's books what a look into some files has shown.

    Args:
        counts: Of the plan: all tracks to look at are among the ``embedded``.
        plan: The plan.
        trial: Of some of them.
    """
    counts.embedded -= trial.num_failed + len(trial.known)
    counts.failed += trial.num_failed
    for failure in trial.failures:
        reason = str(failure["reason"])
        counts.failures_by_reason[reason] = counts.failures_by_reason.get(reason, 0) + 1
    hashes = dict(trial.known)
    rows = plan.to_process.filter(
        pc.is_in(plan.to_process.column("track_id"), pa.array(list(hashes), pa.string()))
    )
    in_order = pa.array([hashes[track_id] for track_id in rows.column("track_id").to_pylist()], pa.string())
    renewed, recognised = split_by_id(rows.append_column("content_hash", in_order))
    is_withheld = pc.is_in(recognised.column("content_hash"), pa.array(sorted(plan.withheld_hashes), pa.string()))
    num_withheld = int(pc.sum(is_withheld).as_py() or 0)
    counts.withheld += num_withheld
    counts.unchanged += renewed.num_rows + recognised.num_rows - num_withheld
    departed = set(plan.departed_tracks.column("track_id").to_pylist())
    matches = match_sources(recognised.filter(pc.invert(is_withheld)), plan.sources, departed)
    counts.moved = sum(match.is_move for match in matches)
    counts.copied = len(matches) - counts.moved


def _estimate(
    cluster_trial: ClusterTrial,
    planned: pa.Table,
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    prices: Prices,
    gpu: str | None,
    setup_s: float,
) -> RunEstimate:
    start_s = setup_s + cluster_trial.ray_start_s + cluster_trial.pipeline_start_s
    trial = cluster_trial.trial
    cluster = Cluster(cluster_trial.num_cpus, cluster_trial.placement.num_actors, start_s)
    if gpu is not None and trial.model_s_per_audio_s:
        layer = max(recipe.layer for recipe in recipes.values())
        trial = transfer_trial(
            trial, gpu, checkpoint.config, layer, settings.windows, settings.precision, settings.resolutions
        )
        # One GPU, with as many cores as keep it busy.
        num_cpus = math.ceil(size_pools(trial, float("inf")).cores_per_actor)
        cluster = Cluster(max(1, num_cpus), 1, start_s)
    return estimate_run(planned, trial, cluster, checkpoint.config.embed_dim, len(recipes), prices)
