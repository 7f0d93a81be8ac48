"""What can go wrong, as a tree.

::

    FeatureStoreError
    ├── UsageError      a mistake in the call: a command prints its one line and exits with 2
    │   ├── CatalogError       the catalog cannot be read, or two of its tracks clash
    │   ├── CheckpointError    the checkpoint is missing, damaged, or another one than is needed
    │   ├── HeadError          a head's file is damaged, or made for other features than these
    │   └── StoreFormatError   the store is there, but its tables are not what this version writes
    ├── StorageError    storage refuses or does not answer, which may be over tomorrow; a command exits with 2
    ├── RunError        the run broke off in the middle; what it had committed stays, and it exits with 1
    ├── DeviceError     a device computes nothing at all; its process ends, and the tracks are tried again
    └── TrackError      one track cannot be processed; it becomes a row in ``failures`` and the run goes on

The model imports nothing of the pipeline and has an error of its own for checkpoints, which becomes the one above
where the pipeline loads them (``pipeline.embed.checkpoint``).
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """The stage at which a track failed."""

    CATALOG = "catalog"
    FETCH = "fetch"
    DECODE = "decode"
    EMBED = "embed"


class Reason(StrEnum):
    """Why a track failed: the values of ``failures.error_type``."""

    ID_TAKEN = "id_taken"
    OBJECT_MISSING = "object_missing"
    PERMISSION_DENIED = "permission_denied"
    FETCH_FAILED = "fetch_failed"
    EMPTY_FILE = "empty_file"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    SILENT = "silent"
    NON_FINITE_AUDIO = "non_finite_audio"
    NON_FINITE_EMBEDDING = "non_finite_embedding"
    OUT_OF_MEMORY = "out_of_memory"
    EMBED_FAILED = "embed_failed"
    WORKER_CRASHED = "worker_crashed"


class FeatureStoreError(Exception):
    """Everything that this package raises on purpose."""


class UsageError(FeatureStoreError):
    """A mistake that concerns the whole run: expected, found, where, and what to do, in one line."""


class CatalogError(UsageError):
    """The catalog cannot be read, or two files of it claim one track id."""


class CheckpointError(UsageError):
    """A checkpoint or its statistics file is missing, damaged, or not what its use needs."""


class HeadError(UsageError):
    """A head's file is missing or damaged, or the head was trained on features of another recipe or resolution."""


class StoreFormatError(UsageError):
    """The feature store's tables are not of the format that this version reads and writes."""


class StorageError(FeatureStoreError):
    """Storage as a whole refuses: no such bucket or folder, wrong credentials, no answer, no room."""


class RunError(FeatureStoreError):
    """The run could not go on: the store no longer takes writes, or another run got in between."""


class DeviceError(FeatureStoreError):
    """The model does not run on its device, whatever it is given: no track is to blame."""


class TrackError(FeatureStoreError):
    """One track cannot be processed.

    Args:
        stage: Where it failed.
        reason: Why, as it will stand in ``failures.error_type``.
        message: One sentence: what was expected and what was found.
    """

    def __init__(self, stage: Stage, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[TrackError], tuple[Stage, Reason, str]]:
        # The default pickles only `args`, which would lose the stage and reason between processes.
        return (type(self), (self.stage, self.reason, self.message))
