"""The fence around ``--prune``: a catalog that lacks much of the store is taken for the wrong one."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Collection

import pyarrow as pa

from pipeline.config import PruneLimit
from pipeline.run.plan import Plan
from pipeline.store.commit import RunCommitter

logger = logging.getLogger(__name__)

NUM_NAMED_ROOTS = 3


def check_fence(committer: RunCommitter, plan: Plan, limit: PruneLimit) -> bool:
    """Say whether the tracks that left the catalog may leave the store; where not, that stands in the counts.

    Args:
        committer: Knows which of them are there under another id by now: they do not count.
        plan: Of the run.
        limit: How many may leave.
    """
    counts = committer.counts
    counts.not_pruned = count_refused(plan, limit, committer.moved_ids)
    if counts.not_pruned:
        counts.prune_refusal = describe_refusal(plan, limit, committer.moved_ids)
        logger.warning(counts.prune_refusal)
    return not counts.not_pruned


def count_refused(plan: Plan, limit: PruneLimit, moved_ids: Collection[str] = ()) -> int:
    """Return how many tracks stay because they are too many; 0 where all may leave."""
    num_leaving = plan.num_departed - len(moved_ids)
    is_empty = plan.num_tracks == 0
    return 0 if limit.allows(num_leaving, plan.num_held) and not is_empty else num_leaving


def describe_refusal(plan: Plan, limit: PruneLimit, moved_ids: Collection[str] = ()) -> str:
    """Say how many tracks would have been deleted, of which folders, and how to insist."""
    num_leaving = plan.num_departed - len(moved_ids)
    roots = list_roots(plan.departed_tracks, moved_ids)
    named = ", ".join(f"{root} ({number:,})" for root, number in _list_largest(roots))
    more = f" and {len(roots) - NUM_NAMED_ROOTS} other folders" if len(roots) > NUM_NAMED_ROOTS else ""
    allowed = f"{limit.share:.0%} of them" if limit.number is None else f"{limit.number:,}"
    return (
        f"--prune deleted none of the {num_leaving:,} tracks of {plan.num_held:,} that this catalog lacks, for it "
        f"may delete {allowed} at most; they are of {named}{more}; where they are to leave the store, add "
        f"--prune-limit {num_leaving}"
    )


def list_roots(tracks: pa.Table, without: Collection[str]) -> Counter[str]:
    """Count tracks by the folder that their ids are relative to, or else by the one that their files lie in."""
    roots: Counter[str] = Counter()
    for track_id, uri in zip(*(tracks.column(name).to_pylist() for name in ("track_id", "uri")), strict=True):
        if track_id not in without:
            roots["no file" if uri is None else _find_root(track_id, uri)] += 1
    return roots


def _list_largest(roots: Counter[str]) -> list[tuple[str, int]]:
    """Return the folders to name and their counts; of equal ones the first by name."""
    return sorted(roots.items(), key=lambda item: (-item[1], item[0]))[:NUM_NAMED_ROOTS]


def _find_root(track_id: str, uri: str) -> str:
    if track_id != uri:
        for path in (track_id, track_id.partition("/")[2]):  # the second where the catalog's name stands before it
            if path and uri.endswith(path):
                return uri.removesuffix(path).rstrip("/") or "/"
    return posixpath.dirname(uri).rstrip("/") or "/"
