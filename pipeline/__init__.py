"""From a music catalog to a store of MusicFM features.

::

    from pipeline import FeatureStore, embed_catalog

    report = embed_catalog("~/Music", store="~/features", checkpoint="msd")
    store = FeatureStore("~/features")

Names are loaded when they are asked for: who only catches ``UsageError`` does not wait for PyTorch, Ray or Arrow.

One room a folder, each standing on those before it: the base (``config errors schema storage location
local_files logs``), then ``catalog``, ``decode``, ``embed``, ``store``, ``report``, ``run``, ``index``,
``search``, ``service``; ``probing`` stands on ``catalog`` and ``store``, ``training`` on
``embed``, ``run`` and ``probing``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    CatalogError,
    CheckpointError,
    FeatureStoreError,
    RunError,
    StorageError,
    StoreFormatError,
    TrackError,
    UsageError,
)

if TYPE_CHECKING:
    from pipeline.run.api import embed_catalog
    from pipeline.run.run import RunReport
    from pipeline.store.read import FeatureStore
    from pipeline.store.torch_dataset import FrameDataset

__version__ = "0.1.0"

__all__ = [
    "CatalogError",
    "CheckpointError",
    "FeatureStore",
    "FeatureStoreError",
    "FrameDataset",
    "RunError",
    "RunReport",
    "StorageError",
    "StoreFormatError",
    "TrackError",
    "UsageError",
    "__version__",
    "embed_catalog",
]

_MODULES = {
    "FeatureStore": "store.read",
    "FrameDataset": "store.torch_dataset",
    "RunReport": "run.run",
    "embed_catalog": "run.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
