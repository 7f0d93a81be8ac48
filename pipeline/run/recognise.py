"""Recognised content: what becomes of files whose bytes the store knows under another id, or must not have."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipeline.run.plan import Plan
from pipeline.store.commit import RunCommitter
from pipeline.store.takeover import copy_tracks, match_sources

TRACKS_PER_COMMIT = 5000


def settle_recognised(committer: RunCommitter, plan: Plan, ledger: DeltaTable) -> pa.Table:
    """Give each recognised track its outcome: withheld, moved or copied.

    Args:
        committer: Has the recognised tracks; what they come to is committed.
        plan: Of the run.
        ledger: ``tracks`` as the run found it.

    Returns:
        Rows of ``schema.PLAN`` of tracks that were taken for known by the start of their hash and are not.

    Raises:
        StorageError: The store cannot be read or written.
        RunError: Another run has claimed it.
    """
    recognised = committer.collect_recognised()
    withheld = pc.is_in(recognised.column("content_hash"), pa.array(sorted(plan.withheld_hashes), pa.string()))
    num_recognised = recognised.num_rows
    recognised = recognised.filter(pc.invert(withheld))
    committer.counts.withheld += num_recognised - recognised.num_rows
    departed = set(plan.departed_tracks.column("track_id").to_pylist())
    matches = match_sources(recognised, plan.sources, departed) if recognised.num_rows else []
    matches.sort(key=lambda match: match.source_id)  # so that few parts are read more than once
    rows = _keep(plan.to_process.select(["track_id", "stored"]), (match.track_id for match in matches))
    stored = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    for start in range(0, len(matches), TRACKS_PER_COMMIT):
        chunk = matches[start : start + TRACKS_PER_COMMIT]
        parts, tracks = copy_tracks(
            chunk,
            recognised,
            committer.store,
            ledger,
            committer.writer.frames,
            list(committer.recipes),
            stored,
            committer.run_id,
        )
        committer.take_over(parts, tracks)
        committer.counts.unchanged += len(chunk)
        moved = {match.source_id for match in chunk if match.is_move}
        committer.counts.moved += len(moved)
        committer.counts.copied += len(chunk) - len(moved)
        committer.moved_ids |= moved
        committer.commit()
    unknown = set(recognised.column("track_id").to_pylist()) - {match.track_id for match in matches}
    committer.forget(unknown)
    return _keep(plan.to_process, unknown)


def _keep(rows: pa.Table, track_ids: Iterable[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows.column("track_id"), pa.array(sorted(track_ids), pa.string())))
