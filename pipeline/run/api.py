"""What a program calls to embed a catalog, without a command in between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.catalog.load import load_catalog, load_rows
from pipeline.run.settings import build_settings
from pipeline.run.start import start_run

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.run.run import RunReport


def embed_catalog(
    audio: str | os.PathLike[str] | pa.Table,
    *,
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RunReport:
    """Bring a store up to date with a catalog, as the command does: what changed is embedded, nothing else.

    The run says on standard error what it is at. It joins the Ray that the process has or that ``RAY_ADDRESS``
    names, else starts one on this machine, which stays up for the next call and ends with the process or by
    ``ray.shutdown()``. Nothing else is left in the process: no warning filter, no setting of Ray Data, no signal
    handler, no environment variable, no logger's level. Calls in several threads take turns at the cluster.

    Args:
        audio: A folder (``~`` is known), a bucket's URL, a single file, a Parquet, CSV or TSV manifest,
            ``mirdata:NAME``, or a table with a column ``uri`` and any other column of a manifest.
        store: The feature store: a folder or bucket prefix, made where there is none.
        checkpoint: ``msd`` or ``fma``, the published ones, or the URL or path of a ``.pt`` or ``.safetensors``.
        storage_options: File system options of the store; credentials otherwise come from the standard places.
        **settings: Any other field of ``pipeline.config.RunSettings``, among them ``layers``, ``resolutions``,
            ``windows``, ``precision``, ``device``, ``stats``, ``prune`` and ``audio_options``.

    Returns:
        Tracks by outcome, the recipes' ids, the store's version, the report's address. A track that cannot be
        embedded is a row in the table ``failures``, never an error.

    Raises:
        CatalogError: There is no audio, or the catalog cannot be understood.
        CheckpointError: The checkpoint is missing, damaged, or not of this model.
        UsageError: A setting is not known or makes no sense, or another run is writing to the store.
        StoreFormatError: The store is of another format.
        StorageError: The audio or the store cannot be reached.
        RunError: The run broke off; what was committed stays, and the same call goes on from there.
    """
    run_settings = build_settings(store, checkpoint, storage_options, settings)

    def load() -> pa.Table:
        if isinstance(audio, str | os.PathLike):
            return load_catalog(os.fspath(audio), run_settings.audio_options)
        return load_rows(audio, run_settings.audio_options)

    return start_run(load, run_settings)
