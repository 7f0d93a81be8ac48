"""Prepare: what a run computes and what there is to do, from its settings, the catalog and the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from musicfm_model.attention import check_attention
from musicfm_model.checkpoint import Checkpoint
from pipeline.catalog.columns import filter_rows
from pipeline.config import Recipe, RunSettings
from pipeline.embed.checkpoint import load_checkpoint
from pipeline.errors import UsageError
from pipeline.listing import is_rising
from pipeline.location import StoreLocation
from pipeline.run.plan import (
    FAILURE_COLUMNS,
    LEDGER_COLUMNS,
    Plan,
    add_stored_facts,
    list_sources,
    plan_tracks,
)
from pipeline.schema import TABLES
from pipeline.store.shared_run import IdRange
from pipeline.store.tables import open_table, read_columns
from pipeline.store.withheld import read_withheld

FACT_KEYS = ("track_id", "content_hash", "resolution")


def load_model(settings: RunSettings) -> Checkpoint:
    """Load the run's checkpoint, once it is clear that the model could compute as it is told to.

    Raises:
        UsageError: The attention back end cannot work, or not in this precision.
        CheckpointError: The checkpoint is not one, or not whole.
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


def list_layers(recipes: Mapping[str, Recipe]) -> dict[str, int]:
    """Return the layer of each recipe id."""
    return {recipe_id: recipe.layer for recipe_id, recipe in recipes.items()}


def plan_run(
    catalog: pa.Table,
    settings: RunSettings,
    recipes: Mapping[str, Recipe],
    exists: bool = True,
    ids: IdRange | None = None,
    version: int | None = None,
) -> Plan:
    """Compare the catalog with what the store holds of the run's recipes, as settings say."""
    return plan_against_store(
        catalog,
        settings.store,
        list(recipes),
        settings.resolutions,
        settings.retry_failures,
        exists,
        ids,
        version,
        settings.catalog,
    )


def list_first_ids(catalog: pa.Table, num_shards: int) -> list[str]:
    """Return the first track of each of a catalog's shards but the first: they have as many tracks each."""
    ids = catalog["track_id"] if is_rising(catalog["track_id"]) else catalog["track_id"].sort()
    return [ids[number * len(ids) // num_shards].as_py() for number in range(1, num_shards)] if len(ids) else []


def plan_against_store(
    catalog: pa.Table,
    store: StoreLocation,
    recipes: Sequence[str],
    resolutions: Sequence[str],
    retry_failures: bool = False,
    exists: bool = True,
    ids: IdRange | None = None,
    version: int | None = None,
    name: str | None = None,
) -> Plan:
    """Read what a store holds and compare a catalog with it.

    Args:
        catalog: Rows of ``schema.CATALOG``.
        store: The store.
        recipes: Ids of the wanted recipes.
        resolutions: Wanted resolutions.
        retry_failures: Try known-bad files again.
        exists: Whether there is a store to read.
        ids: Plan these tracks alone, of the catalog as of the store.
        version: Of ``tracks``; by default the newest.
        name: Stands before the catalog's ids: what other ids the store holds are other catalogs', and none left.

    Raises:
        StorageError: The store cannot be read.
    """
    ids = ids or IdRange()
    catalog = ids.select(catalog)
    withheld = read_withheld(store)
    taken_down = pa.array(sorted(withheld.ids), pa.string())
    open_catalog = filter_rows(catalog, lambda rows: pc.invert(pc.is_in(rows["track_id"], taken_down)))
    if exists:
        plan = _compare(open_catalog, store, recipes, resolutions, retry_failures, ids, version, name)
    else:
        ledger, failures = _empty_table("tracks", LEDGER_COLUMNS), _empty_table("failures", FAILURE_COLUMNS)
        nothing = dict.fromkeys(recipes, ledger), dict.fromkeys(recipes, failures)
        plan = plan_tracks(open_catalog, *nothing, resolutions, retry_failures)
    num_withheld = catalog.num_rows - open_catalog.num_rows
    return replace(plan, num_tracks=catalog.num_rows, num_withheld=num_withheld, withheld_hashes=withheld.hashes)


def _compare(
    catalog: pa.Table,
    store: StoreLocation,
    recipes: Sequence[str],
    resolutions: Sequence[str],
    retry_failures: bool,
    ids: IdRange,
    version: int | None,
    name: str | None,
) -> Plan:
    tables = {name: open_table(store, name) for name in ("failures", "frames")}
    tracks = open_table(store, "tracks", version)
    ledgers = {recipe: read_columns(tracks, LEDGER_COLUMNS, recipe) for recipe in recipes}
    failures = {recipe: read_columns(tables["failures"], FAILURE_COLUMNS, recipe) for recipe in recipes}
    plan = plan_tracks(
        catalog,
        {recipe: _select_named(ids.select(ledger), name) for recipe, ledger in ledgers.items()},
        {recipe: _select_named(ids.select(rows), name) for recipe, rows in failures.items()},
        resolutions,
        retry_failures,
        list_sources(list(ledgers.values()), resolutions),
    )
    if plan.to_process.num_rows == 0 or not tables["frames"].file_uris():
        return plan
    planned = plan.to_process.column("track_id").to_pylist()
    facts = {recipe: read_columns(tables["frames"], FACT_KEYS, recipe, planned) for recipe in recipes}
    return replace(plan, to_process=add_stored_facts(plan.to_process, facts))


def _select_named(rows: pa.Table, name: str | None) -> pa.Table:
    if name is None:
        return rows
    return filter_rows(rows, lambda some: pc.starts_with(some["track_id"], f"{name}/"))


def _empty_table(name: str, columns: Sequence[str]) -> pa.Table:
    return pa.schema([TABLES[name].field(column) for column in columns]).empty_table()
