"""What the recipe ids of a store stand for, written down once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from pipeline.config import Recipe
from pipeline.location import StoreLocation
from pipeline.schema import RECIPES
from pipeline.store.table_commits import append_rows
from pipeline.store.tables import open_table, read_columns


def record_recipes(store: StoreLocation, run_id: str, recipes: Mapping[str, Recipe], checkpoint_name: str) -> None:
    """Write down what a run's recipe ids stand for, where the store does not know them yet.

    Args:
        store: The store.
        run_id: Identifier of the run.
        recipes: Its recipes by id.
        checkpoint_name: What its checkpoint was called by.

    Raises:
        StorageError: The store cannot be read or written.
    """
    while True:
        table = open_table(store, "recipes")
        known = read_columns(table, ["recipe"])["recipe"].to_pylist()
        now = datetime.now(UTC)
        rows = [
            {"recipe": name, "definition": recipe.definition, "checkpoint": checkpoint_name, "created_time": now}
            for name, recipe in recipes.items()
            if name not in known
        ]
        if not rows:
            return
        recorded = pa.Table.from_pylist(rows, schema=RECIPES)
        with suppress(CommitFailedError):  # another driver of the run was first, with the same recipes
            append_rows(store, "recipes", recorded, {"run_id": run_id, "event": "append"}, table)
