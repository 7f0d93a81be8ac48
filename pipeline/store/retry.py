"""Try again what delta-rs leaves undone when a connection breaks.

Its object store client repeats by itself what a server turns away (500, 503 and so on) and what may be repeated
without harm. Two cases are left to its callers (object_store 0.13, ``client/retry.rs``): a listing whose body
ends early, and the conditional PUT that makes a commit. Of that nobody knows whether it arrived; asked for a
second time, the server would say that another writer was first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TypeVar

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

RETRY_FOR_S = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_COMMIT_ID = "commit_id"

Result = TypeVar("Result")


def retry_broken(operation: Callable[[], Result]) -> Result:
    """Call an operation until no connection breaks in it, for up to ``RETRY_FOR_S`` seconds.

    Args:
        operation: Calls delta-rs; may be repeated without harm.

    Returns:
        What the operation returns.

    Raises:
        DeltaError: The operation failed for another reason, or until the time was over.
        OSError: Likewise.
    """
    again = Retrying(
        retry=retry_if_exception(_is_broken),
        wait=wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S),  # so that workers do not come back as one
        stop=stop_before_delay(RETRY_FOR_S),
        reraise=True,
    )
    return again(operation)


def commit_once(
    table: DeltaTable,
    commit: Callable[..., object],
    metadata: Mapping[str, str],
    transaction: Transaction | None = None,
) -> None:
    """Make one commit, even if the answer to it is lost, and bring the table object up to date.

    The commit carries an id of its own, by which it is found again in the table's history.

    Args:
        table: The table that is committed to, at the version that the commit is made for.
        commit: Makes the commit, with the ``commit_properties`` that it is given.
        metadata: Keys and values that the commit carries.
        transaction: Application transaction: of two writers with the same, one fails.

    Raises:
        deltalake.exceptions.CommitFailedError: Another writer was first.
        DeltaError: The commit failed for another reason.
        OSError: Likewise.
    """
    commit_id = uuid.uuid4().hex
    transactions = [transaction] if transaction else None
    properties = CommitProperties({**metadata, _COMMIT_ID: commit_id}, app_transactions=transactions)
    version = table.version()
    may_stand = False

    def stands() -> bool:
        retry_broken(table.update_incremental)
        num_newer = table.version() - version
        newer = retry_broken(lambda: table.history(num_newer)) if num_newer else []
        if newer and all(found.get(_COMMIT_ID) != commit_id for found in newer):
            raise CommitFailedError(f"another writer has made version {table.version()} of {table.table_uri}")
        return bool(newer)

    def attempt() -> None:
        nonlocal may_stand
        if may_stand and stands():
            return
        may_stand = True
        try:
            commit(commit_properties=properties)
        except CommitFailedError:
            if not stands():  # the winner may be an earlier attempt
                raise

    retry_broken(attempt)
    retry_broken(table.update_incremental)


def _is_broken(error: BaseException) -> bool:
    """Say whether an error is a broken connection, which delta-rs tells in its text alone.

    A server that cannot be connected to is none: that has been tried ten times already.
    """
    text = str(error) if isinstance(error, DeltaError | OSError) else ""
    return "HTTP error" in text and "(Connect)" not in text
