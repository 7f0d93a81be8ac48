"""Settings of a run as a program gives them: checked by name and value before anything begins."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args

from pipeline.config import (
    PRECISIONS,
    RESOLUTIONS,
    PruneLimit,
    RunSettings,
    Shard,
    WindowPolicy,
    check_catalog_name,
)
from pipeline.errors import UsageError
from pipeline.location import StoreLocation

CHOICES: Mapping[str, tuple[str, ...]] = {
    "windows": get_args(WindowPolicy),
    "precision": PRECISIONS,
    "attention": ("sdpa", "eager", "flash"),
    "device": ("cuda", "cpu"),
}
WHOLE_NUMBERS = {"mantissa_bits": (1, 23), "num_gpus": (1, math.inf), "batch_size": (1, math.inf)}
POSITIVE_NUMBERS = ("max_duration_s", "commit_interval_s", "stall_timeout_s")
NAMES = tuple(field.name for field in fields(RunSettings) if field.name not in ("store", "checkpoint"))


def build_settings(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
    others: Mapping[str, Any],
) -> RunSettings:
    """Return a run's settings.

    Args:
        store: URL or path of the store.
        checkpoint: Name, URL or path of the checkpoint.
        storage_options: File system options of the store.
        others: Fields of ``RunSettings`` by name; a single layer or resolution stands for a list of one.

    Raises:
        UsageError: There is no such setting, or it cannot have that value.
    """
    for name in others:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, 1)
            hint = f"; the nearest is {nearest[0]}" if nearest else ""
            raise UsageError(f"expected settings among {', '.join(NAMES)}; found {name}{hint}")
    given = dict(others)
    for name in ("layers", "resolutions"):
        if name in given:
            given[name] = _list_of(given[name])
    for name, kind, written in (("prune_limit", PruneLimit, str | int), ("shard", Shard, str)):
        if isinstance(given.get(name), written):
            try:
                given[name] = kind.parse(str(given[name]))
            except ValueError as error:
                raise UsageError(f"{name}: {error}") from error
    settings = RunSettings(StoreLocation(os.fspath(store), storage_options), os.fspath(checkpoint), **given)
    check_settings(settings)
    return settings


def check_settings(settings: RunSettings) -> None:
    """See whether every setting has a value that it can have.

    Raises:
        UsageError: One has not.
    """
    for name, choices in CHOICES.items():
        value = getattr(settings, name)
        if value not in choices and not (name == "device" and value is None):
            raise UsageError(f"{name}: expected {', '.join(choices)}; found {value!r}")
    if not settings.layers or not all(_is_whole(layer) for layer in settings.layers):
        raise UsageError(f"layers: expected whole numbers such as 7 or (4, 7, 12), found {settings.layers!r}")
    if not settings.resolutions or not set(settings.resolutions) <= set(RESOLUTIONS):
        raise UsageError(
            f"resolutions: expected names of {', '.join(RESOLUTIONS)}; found {settings.resolutions!r}"
        )
    for name, (least, most) in WHOLE_NUMBERS.items():
        value = getattr(settings, name)
        if value is not None and not (_is_whole(value) and least <= value <= most):
            span = f"{least} or more" if math.isinf(most) else f"{least} to {most}"
            raise UsageError(f"{name}: expected a whole number, {span}; found {value!r}")
    for name in POSITIVE_NUMBERS:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UsageError(f"{name}: expected a number over 0, found {value!r}")
    if not isinstance(settings.prune_limit, PruneLimit):
        raise UsageError(f"prune_limit: expected a text such as '25%' or '300', found {settings.prune_limit!r}")
    if settings.shard is not None and not isinstance(settings.shard, Shard):
        raise UsageError(f"shard: expected a text such as '2/4', found {settings.shard!r}")
    if settings.catalog is not None:
        try:
            check_catalog_name(settings.catalog)
        except ValueError as error:
            raise UsageError(f"catalog: {error}") from error
    if settings.num_gpus and settings.device == "cpu":
        raise UsageError("num_gpus with device='cpu': nothing would use them; give one of them")


def _list_of(value: object) -> tuple[object, ...]:
    return tuple(dict.fromkeys(value)) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
