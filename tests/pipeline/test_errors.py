"""The tree of errors: what a caller can rely on to tell a mistake from an outage."""

import pickle

import pytest

from pipeline import errors
from pipeline.errors import (
    CatalogError,
    CheckpointError,
    FeatureStoreError,
    Reason,
    RunError,
    Stage,
    StorageError,
    StoreFormatError,
    TrackError,
    UsageError,
)


def test_everything_raised_on_purpose_can_be_caught_at_once() -> None:
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, Exception):
            assert issubclass(found, FeatureStoreError)


@pytest.mark.parametrize("mistake", [CatalogError, CheckpointError, StoreFormatError])
def test_what_the_caller_can_mend_is_a_usage_error(mistake: type[Exception]) -> None:
    assert issubclass(mistake, UsageError)


@pytest.mark.parametrize("other", [StorageError, RunError, TrackError])
def test_an_outage_or_a_track_is_no_mistake_of_the_caller(other: type[Exception]) -> None:
    assert not issubclass(other, UsageError)


def test_a_track_error_travels_between_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(TrackError(Stage.DECODE, Reason.TRUNCATED, "cut short")))
    assert (error.stage, error.reason, str(error)) == (Stage.DECODE, Reason.TRUNCATED, "cut short")
