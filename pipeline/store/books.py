"""Books: what became of a run's tracks, in numbers that close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass
class RunCounts:
    """Tracks of a run by outcome; the books close when planned = embedded + unchanged + failed + withheld.

    Args:
        planned: Tracks of the catalog.
        embedded: Those that went through the model.
        unchanged: Those whose content the store has; ``moved`` and ``copied`` are among them.
        failed: Those that cannot be embedded.
        deleted: Tracks that left the store, none of which is there under another id.
        failures_by_reason: The failed ones.
        withheld: Those that were taken down, or have the content of such a one.
        moved: Those that the store had under an id that the catalog no longer has.
        copied: Those whose content the store has under another id as well.
        not_pruned: Tracks that would have left the store, and stay because they are too many.
        prune_refusal: What is to be said of that.
    """

    planned: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: int = 0
    deleted: int = 0
    failures_by_reason: dict[str, int] = field(default_factory=dict)
    withheld: int = 0
    moved: int = 0
    copied: int = 0
    not_pruned: int = 0
    prune_refusal: str | None = None

    def add(self, accepted: Accepted) -> None:
        """Count what one result brought."""
        self.embedded += len(accepted.embedded)
        self.failed += len(accepted.failed)
        self.unchanged += len(accepted.unchanged)
        for (_, reason), number in accepted.failures.items():
            self.failures_by_reason[reason] = self.failures_by_reason.get(reason, 0) + number

    @property
    def closes(self) -> bool:
        """Whether every planned track has exactly one outcome."""
        return self.num_lost == 0

    @property
    def num_lost(self) -> int:
        """Planned tracks that have no outcome."""
        return self.planned - self.embedded - self.unchanged - self.failed - self.withheld


@dataclass(frozen=True)
class Accepted:
    """What one result brought into the books.

    Args:
        embedded: Ids of its tracks, by outcome.
        failed: The same.
        unchanged: The same.
        recognised: The same: content that is known under another id; ``take_over`` says what becomes of them.
        failures: How many tracks failed, by stage and reason.
        audio_s: Seconds of audio embedded.
    """

    embedded: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    unchanged: frozenset[str] = frozenset()
    recognised: frozenset[str] = frozenset()
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)
    audio_s: float = 0.0

    @property
    def num_tracks(self) -> int:
        """How many tracks got their outcome."""
        return len(self.ids)

    @property
    def ids(self) -> frozenset[str]:
        """All its tracks."""
        return self.embedded | self.failed | self.unchanged | self.recognised

    @classmethod
    def read(cls, tracks: pa.Table, failures: pa.Table, unchanged: pa.Table, recognised: pa.Table) -> Accepted:
        """Read a result's tables. A track has a row a recipe in them, and one outcome."""
        durations_s = dict(
            zip(*(tracks.column(name).to_pylist() for name in ("track_id", "duration_s")), strict=True)
        )
        failed = {row["track_id"]: (row["stage"], row["error_type"]) for row in failures.to_pylist()}
        return cls(
            frozenset(durations_s),
            frozenset(failed),
            frozenset(unchanged.column("track_id").to_pylist()),
            frozenset(recognised.column("track_id").to_pylist()),
            dict(Counter(failed.values())),
            sum(filter(None, durations_s.values())),
        )
