"""A plan kept in the store, so that the report of the run that follows it can put prediction beside fact."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.storage import join_url, read_file, write_file

logger = logging.getLogger(__name__)

FOLDER = "reports"
PLAN_NAME = "plan.json"


def save_plan(
    store: StoreLocation, recipes: Sequence[str], version: int | None, estimate: Mapping[str, Any]
) -> None:
    """Keep what a plan predicts.

    Args:
        store: The store; need not exist yet.
        recipes: Ids of the planned recipes.
        version: Version of ``tracks`` that the plan was made against; None where there is no store yet.
        estimate: ``estimate.RunEstimate`` as a dict.
    """
    plan = {**estimate, "recipes": list(recipes), "base_version": version or 0}
    try:
        write_file(join_url(store.table_url(FOLDER), PLAN_NAME), json.dumps(plan).encode(), store.options)
    except StorageError as error:  # a plan may be made with credentials that only read
        logger.warning("the plan is not kept: %s", error)


def read_plan(store: StoreLocation, recipes: Sequence[str], base_version: int) -> dict[str, Any] | None:
    """Return what was predicted for these recipes against that version of ``tracks``; None where nothing was."""
    with suppress(StorageError, ValueError):  # nobody made a plan
        plan: dict[str, Any] = json.loads(read_file(join_url(store.table_url(FOLDER), PLAN_NAME), store.options))
        if plan["recipes"] == list(recipes) and plan["base_version"] == base_version:
            return plan
    return None
