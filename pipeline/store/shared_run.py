"""A run that several drivers share: which of its tracks is whose, who is at work, and who has closed.

What all of them have to agree on stands in the ledger's newest commit. Each commit of one of them is made from
what the one before it says, and fails where another came first (see ``writer``): it is then made anew. So nothing
is overwritten by somebody who had not read it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Shard
from pipeline.errors import UsageError
from pipeline.store.lease import describe_process, explain_lease, may_be_alive

SHARDS_KEY = "shards"  # of a commit's metadata


@dataclass(frozen=True)
class IdRange:
    """Track ids from a first one on, up to another one; None has no limit.

    Args:
        first: The least of them.
        past: The least that is not among them any more.
    """

    first: str | None = None
    past: str | None = None

    def select(self, table: pa.Table) -> pa.Table:
        """Return a table's rows whose ``track_id`` is one of these."""
        if self.first is not None:
            table = table.filter(pc.greater_equal(table["track_id"], self.first))
        return table if self.past is None else table.filter(pc.less(table["track_id"], self.past))


def cut_range(first_ids: Sequence[str], number: int) -> IdRange:
    """Return the ids of a shard by the first ones of all but the first; of an empty catalog the first has all."""
    if not first_ids:
        return IdRange() if number == 1 else IdRange("", "")
    edges = [None, *first_ids, None]
    return IdRange(edges[number - 1], edges[number])


@dataclass(frozen=True)
class ShardState:
    """What one driver of a shared run is at.

    Args:
        run_id: Its run.
        writer: Its process, from ``describe_process``.
        time_s: When it last said so, in seconds since 1970.
        counts: Its books, once they have closed.
    """

    run_id: str
    writer: Mapping[str, Any]
    time_s: float
    counts: Mapping[str, Any] | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether it has not closed, and its process may be alive; this process itself does not count."""
        return self.counts is None and may_be_alive(self.writer, time.time() - self.time_s)


@dataclass(frozen=True)
class SharedRun:
    """A run of several drivers, as the ledger's newest commit tells it.

    Args:
        group: Its name: its drivers' commits have it in common.
        num_shards: How many drivers it takes.
        first_ids: Of the tracks of each shard but the first, as they were when the first driver began. They stay
            until all have closed: whatever the catalog of a later driver has, an id is one driver's alone.
        recipes: What is computed.
        shards: What those that have begun are at, by their number.
    """

    group: str
    num_shards: int
    first_ids: Sequence[str]
    recipes: Sequence[str]
    shards: Mapping[int, ShardState] = field(default_factory=dict)

    @classmethod
    def read(cls, commit: Mapping[str, Any]) -> SharedRun | None:
        """Read it from a commit's metadata; None where the commit is of another kind of run."""
        if SHARDS_KEY not in commit:
            return None
        facts = json.loads(commit[SHARDS_KEY])
        shards = {int(number): ShardState(**state) for number, state in facts.pop("shards").items()}
        return cls(**facts, shards=shards)

    def describe(self) -> dict[str, str]:
        """Return it as a commit's metadata."""
        return {SHARDS_KEY: json.dumps(asdict(self))}

    @property
    def at_work(self) -> list[int]:
        """Numbers of the shards whose drivers may be alive, and have not closed."""
        return [number for number, state in self.shards.items() if state.is_at_work]

    @property
    def num_open(self) -> int:
        """How many shards have not closed."""
        return self.num_shards - sum(state.counts is not None for state in self.shards.values())

    def enter(self, number: int, run_id: str, counts: Mapping[str, Any] | None = None) -> SharedRun:
        """Return it with what one shard is at now.

        Args:
            number: Of the shard.
            run_id: Its run.
            counts: Its books, where they have closed.
        """
        state = ShardState(run_id, describe_process(), time.time(), counts)
        return replace(self, shards={**self.shards, number: state})

    def take_range(self, number: int) -> IdRange:
        """Return the ids that are a shard's."""
        return cut_range(self.first_ids, number)

    def add_counts(self) -> dict[str, Any]:
        """Add up the books of the shards that have closed."""
        total: dict[str, Any] = {}
        for counts in (state.counts for _, state in sorted(self.shards.items()) if state.counts is not None):
            for name, value in counts.items():
                total[name] = _add(total.get(name), value)
        return total


def _add(total: Any, value: Any) -> Any:
    if isinstance(value, dict):
        total = dict(total or {})
        return {**total, **{name: total.get(name, 0) + number for name, number in value.items()}}
    if total is None or value is None:
        return value if total is None else total
    return f"{total}; {value}" if isinstance(value, str) else total + value


def join_run(
    store_url: str, newest: Mapping[str, Any], shard: Shard, first_ids: Sequence[str], recipes: Collection[str]
) -> SharedRun:
    """Return the shared run that a driver belongs to: the one that is open, or else a new one.

    Args:
        store_url: For messages.
        newest: The ledger's newest commit.
        shard: Which of how many the driver is.
        first_ids: Of each shard but the first, by this driver's catalog; counts where the run is new.
        recipes: What the driver computes.

    Raises:
        UsageError: The open run is another one, or this shard's driver is at work already.
    """
    found = SharedRun.read(newest)
    if found is None:
        check_nobody_writes(store_url, newest)
    elif found.num_open and found.num_shards == shard.of:
        state = found.shards.get(shard.number)
        if state is not None and state.is_at_work:
            raise UsageError(
                f"run {state.run_id} is writing to the store at {store_url} as shard {shard} ({_name(state)}); "
                "wait until it ends" + explain_lease(state.writer)
            )
        if found.at_work and set(found.recipes) != set(recipes):
            raise UsageError(
                f"the other shards of the run of {shard.of} at {store_url} compute {', '.join(found.recipes)}, "
                f"this one {', '.join(recipes)}: give all of them the same checkpoint, layers and precision"
            )
        if set(found.recipes) == set(recipes):
            return found
    else:
        check_nobody_writes(store_url, newest)
    return SharedRun(uuid.uuid4().hex[:12], shard.of, list(first_ids), list(recipes))


def check_nobody_writes(store_url: str, newest: Mapping[str, Any]) -> None:
    """Refuse where the newest commit is of a run that has not ended and may be alive.

    Args:
        store_url: For the message.
        newest: The ledger's newest commit.

    Raises:
        UsageError: Such a run is at work.
    """
    shared = SharedRun.read(newest)
    if shared is not None:
        for number in shared.at_work[:1]:
            state = shared.shards[number]
            raise UsageError(
                f"run {state.run_id} is writing to the store at {store_url} as shard {number}/{shared.num_shards} "
                f"({_name(state)}); wait until all shards have ended" + explain_lease(state.writer)
            )
        return
    if newest.get("event") not in ("open", "progress") or "writer" not in newest:
        return
    state = ShardState(newest["run_id"], json.loads(newest["writer"]), int(newest["timestamp"]) / 1000)
    if state.is_at_work:
        raise UsageError(
            f"run {state.run_id} is writing to the store at {store_url} ({_name(state)}); wait until it ends"
            + explain_lease(state.writer)
        )


def _name(state: ShardState) -> str:
    return (
        f"process {state.writer['pid']} on {state.writer['machine'].split('/')[0]}, last commit "
        f"{time.time() - state.time_s:.0f} s ago"
    )
