"""Alternatives: an index of a store as it would be by another distance, for comparison; never published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.index.build import build
from pipeline.index.draft import IndexSettings, describe_draft
from pipeline.index.files import IndexLocation, working_folder
from pipeline.index.space import Distance
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.store.source import open_source


@contextmanager
def open_alternative(store: StoreLocation, recipe: str, distance: Distance, folder: str) -> Iterator[VectorIndex]:
    """Build an exact index of the published snapshot's global vectors in a folder of its own; remove it at last.

    Args:
        store: The store; nothing is written to it.
        recipe: Recipe id.
        distance: In which space vectors are compared.
        folder: On this machine; half precision takes twice as many bytes as there are values.

    Raises:
        UsageError: No vectors of the recipe, or no moments for ``within-track``.
        StorageError: The store cannot be read, or the folder not be written.
    """
    source = open_source(store, "global", recipe)
    location = IndexLocation(StoreLocation(folder), source.recipe, source.resolution)
    settings = IndexSettings(recipe=recipe, kind="exact", distance=distance)
    with working_folder(location) as work:
        draft = build(source, location, settings, work)
        yield VectorIndex(location, describe_draft(draft, source, location, settings, 1, work))
