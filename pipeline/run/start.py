"""The start of a run: what it needs before it can plan is gathered at once, and said from the first moment.

Nothing here is slow to import: PyTorch and Ray, which take seconds, are loaded in threads while the catalog is
listed. Whoever interrupts a start interrupts the wait for them, never an import. On few CPUs their order decides:
all waits for Ray's processes, which start one after the other, so they come before what this process itself loads.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import RunSettings
from pipeline.errors import CatalogError, StorageError, UsageError
from pipeline.logs import say
from pipeline.run.watch import RunWatch

if TYPE_CHECKING:
    import pyarrow as pa

    from musicfm_model.checkpoint import Checkpoint
    from pipeline.run.estimate import Prices
    from pipeline.run.run import RunReport

logger = logging.getLogger(__name__)

LEAVE_TIMEOUT_S = 10.0  # a process that ends amid an import in a thread may be aborted by what is imported

# Imports take Python's lock from the thread that starts Ray, which would need half a second more for its part.
_HEAD_START_S = 0.3
_DECISION_TIMEOUT_S = 1.0  # a long listing of the catalog is no reason to load nothing meanwhile

# Ray asks once a second whether its node is up: whether it is within the first depends on who has the CPUs then.
# Where other programs want all of them, a small run takes a tenth longer so; with 15 it took half as long again.
_NICENESS = 10

Result = TypeVar("Result")


def start_run(load_catalog: Callable[[], pa.Table], settings: RunSettings) -> RunReport:
    """Embed a catalog that is yet to be listed: ``run.embed_catalog``, from the first second on.

    Args:
        load_catalog: Lists the tracks: rows of ``schema.CATALOG``.
        settings: What to compute.

    Raises:
        CatalogError: There is no catalog, or it cannot be understood.
        FeatureStoreError: As ``run.embed_catalog``.
    """
    watch = RunWatch()
    with _gather(load_catalog, settings, watch, "pipeline.run.run") as (catalog, checkpoint):
        from pipeline.run.run import embed_catalog

        return copy_context().run(embed_catalog, catalog, settings, checkpoint, watch)  # it sets the log's run id


def start_preview(
    load_catalog: Callable[[], pa.Table],
    settings: RunSettings,
    prices: Prices | None = None,
    gpu: str | None = None,
) -> RunReport:
    """Say what ``start_run`` would come to, without writing anything; arguments as ``preview.preview_catalog``."""
    watch = RunWatch()
    with _gather(load_catalog, settings, watch, "pipeline.run.preview") as (catalog, checkpoint):
        from pipeline.run.preview import preview_catalog

        say(f"trying some of {catalog.num_rows:,} tracks")
        return preview_catalog(catalog, settings, prices, gpu, checkpoint, watch)


@contextmanager
def _gather(
    load_catalog: Callable[[], pa.Table], settings: RunSettings, watch: RunWatch, module: str
) -> Iterator[tuple[pa.Table, Checkpoint]]:
    """List the catalog while the checkpoint is loaded, and Ray started where there surely is work for it.

    A mistake in the call ends the Ray that was started in vain.

    Args:
        load_catalog: As ``start_run`` takes it.
        settings: Of the run.
        watch: Is told what goes on.
        module: What the run needs besides; it is loaded by the time that the checkpoint is.
    """
    watch.enter("listing the catalog")
    is_listed: Future[bool] = Future()
    starts_ray: Future[bool] = Future()
    checkpoint = call_aside(partial(_load_model, settings, module, is_listed, starts_ray))
    end_ray = call_aside(partial(_start_early, settings, is_listed, starts_ray))
    asked: list[Future[Any]] = [checkpoint, end_ray]
    try:
        catalog = load_catalog()
        if settings.catalog is not None:
            from pipeline.catalog.load import name_catalog

            catalog = name_catalog(catalog, settings.catalog)
        is_listed.set_result(True)
        watch.enter(
            "loading the checkpoint",
            f"{catalog.num_rows:,} tracks listed; loading the checkpoint {settings.checkpoint}",
        )
        yield catalog, checkpoint.result()
    except BaseException as error:
        if not is_listed.done():
            is_listed.set_result(False)
        wait(asked, LEAVE_TIMEOUT_S)
        if isinstance(error, UsageError | StorageError):
            end_ray.result()()
        raise


def _load_model(
    settings: RunSettings, module: str, is_listed: Future[bool], starts_ray: Future[bool]
) -> Checkpoint:
    import ray as ray  # before PyTorch: what Ray starts needs seconds, and has them while PyTorch loads

    try:
        is_begun = starts_ray.result(_DECISION_TIMEOUT_S)
    except TimeoutError:
        is_begun = False
    if is_listed.done() and not is_listed.result():
        raise CatalogError("there is no catalog to load a model for")  # what is wrong with it is told elsewhere
    if is_begun:
        time.sleep(_HEAD_START_S)
        call_aside(partial(_load_behind_others, module)).result()
    import_module(module)

    from pipeline.run.prepare import load_model

    return load_model(settings)


def _load_behind_others(module: str) -> None:
    """Import a module with what CPUs have to spare; this thread and those that it starts never get more again."""
    if sys.platform == "linux":  # elsewhere a niceness is the whole process's
        thread = threading.get_native_id()
        with suppress(OSError):  # some sandboxes forbid it
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
    import_module(module)


def _start_early(settings: RunSettings, is_listed: Future[bool], starts_ray: Future[bool]) -> Callable[[], None]:
    """Start Ray and its workers' imports ahead of the plan, unless the store may turn out to have all tracks.

    What fails here fails again, and is told, where the run comes to it.

    Args:
        settings: Of the run.
        is_listed: Will say whether there is a catalog.
        starts_ray: Is told whether processes of Ray's are about to be started on this machine.

    Returns:
        Ends that Ray where nobody has use for it.
    """
    end = None
    try:
        from pipeline.run.cluster import start_ray_early, warm_workers
        from pipeline.store.tables import has_tables

        if not _may_start(settings):
            starts_ray.set_result(False)
        if is_listed.result() and seems_loadable(settings.checkpoint) and not has_tables(settings.store):
            if not starts_ray.done():
                starts_ray.set_result(True)
            end = start_ray_early()
            warm_workers()
    except Exception as error:
        logger.debug("Ray was not started ahead: %s", error)
    if not starts_ray.done():
        starts_ray.set_result(False)
    return end or (lambda: None)


def _may_start(settings: RunSettings) -> bool:
    """Say what can be said without the catalog or a network: whether a run may start Ray's processes here."""
    import ray

    from pipeline.store.tables import has_tables

    if ray.is_initialized() or os.environ.get("RAY_ADDRESS") or not seems_loadable(settings.checkpoint):
        return False
    return "://" in settings.store.url or not has_tables(settings.store)


def seems_loadable(checkpoint: str) -> bool:
    """Say at a glance whether a local file is a checkpoint; a name or URL is taken for one until it is loaded."""
    path = Path(checkpoint).expanduser()
    if "://" in checkpoint or not (path.suffix or path.exists()):
        return True
    with suppress(OSError), path.open("rb") as file:
        head = file.read(9)
        return head.startswith(b"PK") or head[8:] == b"{"  # a zip archive; a length, then JSON
    return False


def call_aside(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a thread that no end of the process waits for, and return what will come of it."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        # Ray's processes are told to end with the thread that started them, not with the process: it stays.
        threading.Event().wait()

    threading.Thread(target=call, daemon=True, name=f"aside {getattr(function, '__name__', '')}".strip()).start()
    return future
