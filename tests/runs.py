"""Runs without audio, model or Ray: a catalog of made-up tracks goes through planning, writing and committing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import Recipe
from pipeline.location import StoreLocation
from pipeline.run.plan import Plan
from pipeline.run.prepare import plan_against_store
from pipeline.store.commit import RunCommitter
from pipeline.store.tables import open_table
from pipeline.store.write import WriteSettings, write_parts
from tests.rows import Audio, at_second, build_catalog, fake_embedding, read_store

RECIPES = {recipe.recipe_id: recipe for recipe in (Recipe("ab" * 32, layer, mantissa_bits=23) for layer in (4, 7))}
R4, R7 = RECIPES
ERRORS = {
    "missing": ("catalog", "object_missing"),
    "corrupt": ("decode", "truncated"),
    "denied": ("fetch", "permission_denied"),
}


@dataclass(frozen=True)
class Track:
    """A track as it lies in storage: what the catalog says of it, and what reading it comes to."""

    uri: str | None
    content: str
    second: int
    title: str | None = None
    state: str = "sound"

    @property
    def audio(self) -> Audio:
        if self.state == "sound":
            return Audio(self.content)
        return Audio("other bytes" if self.state == "corrupt" else None, ERRORS[self.state])

    def as_catalog_row(self, track_id: str) -> dict[str, Any]:
        return {
            "track_id": track_id,
            "uri": self.uri,
            "title": self.title,
            "size_bytes": None if self.uri is None else 10,
            "modified_time": None if self.uri is None else at_second(self.second),
        }


Catalog = Mapping[str, Track]


class KilledError(Exception):
    """Stands for the end of the process."""


def plan_run(
    store: StoreLocation, catalog: Catalog, recipes: Sequence[str], resolutions: Sequence[str], retry: bool = False
) -> Plan:
    """Compare a catalog with a store."""
    rows = build_catalog(track.as_catalog_row(track_id) for track_id, track in catalog.items())
    return plan_against_store(rows, store, recipes, resolutions, retry)


def embed(store: StoreLocation, planned: pa.Table, catalog: Catalog, run_id: str) -> pa.Table:
    """Embed and write planned rows as a worker does."""
    audio = {track_id: track.audio for track_id, track in catalog.items()}
    write_settings = WriteSettings(store.table_url("frames"), dict.fromkeys(RECIPES, 23), run_id)
    return write_parts(fake_embedding(planned, audio), write_settings)


def run(
    store: StoreLocation,
    catalog: Catalog,
    recipes: Sequence[str] = (R7,),
    resolutions: Sequence[str] = ("8hz", "global"),
    run_id: str = "run1",
    prune: bool = False,
) -> RunCommitter:
    """Run once from beginning to end."""
    committer = RunCommitter(store, run_id, {recipe: RECIPES[recipe] for recipe in recipes})
    plan = plan_run(store, catalog, recipes, resolutions)
    start_books(committer, plan)
    committer.accept(embed(store, plan.to_process, catalog, run_id))
    committer.close(plan.departed if prune else None)
    return committer


def start_books(committer: RunCommitter, plan: Plan) -> None:
    """Enter what the plan settles, as the driver does before anything is processed."""
    committer.counts.planned = plan.num_tracks
    committer.counts.unchanged = plan.num_unchanged
    committer.counts.failed = plan.num_known_failures
    committer.counts.failures_by_reason = dict(plan.known_failures_by_reason)
    committer.relabel(plan.relabeled)


def list_frames(store: StoreLocation, version: int | None = None) -> list[tuple[str, str, str, str]]:
    """List the keys of ``frames``: recipe, resolution, track id, content hash."""
    names = ("recipe", "resolution", "track_id", "content_hash")
    return sorted(tuple(row[name] for name in names) for row in read_store(store, "frames", version))


def list_called_for(tracks: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, str, str]]:
    """List the rows of ``frames`` that ledger rows stand for."""
    return {
        (row["recipe"], name, row["track_id"], row["content_hash"])
        for row in tracks
        for name in row["resolutions"]
    }


def assert_every_ledger_version_has_its_frames(store: StoreLocation) -> None:
    """Walk all versions of the ledger: each goes with a version of ``frames`` that has all it calls for."""
    for commit in open_table(store, "tracks").history():
        if "frames_version" in commit:
            frames = list_frames(store, int(commit["frames_version"]))
            assert len(set(frames)) == len(frames)
            assert list_called_for(read_store(store, "tracks", commit["version"])) <= set(frames)


def kill(committer: RunCommitter, method: str | None) -> None:
    """Let the process end when it comes to a method."""

    def die(*arguments: Any) -> None:
        raise KilledError

    assert method is not None
    setattr(committer.writer if method == "commit_ledger" else committer, method, die)


def sound(*ids: str, content: str = "content", **others: Any) -> dict[str, Track]:
    """Return tracks that nothing is wrong with."""
    return {track_id: Track(f"/{track_id}", f"{content} of {track_id}", 1, **others) for track_id in ids}


def open_run(store: StoreLocation, run_id: str, recipes: Sequence[str] = (R7,)) -> RunCommitter:
    return RunCommitter(store, run_id, {recipe: RECIPES[recipe] for recipe in recipes})


def write_result(store: StoreLocation, catalog: Catalog, run_id: str, *ids: str) -> pa.Table:
    """Plan some tracks of a catalog and write them as one task does."""
    plan = plan_run(store, {track_id: catalog[track_id] for track_id in ids}, [R7], ["8hz", "global"])
    return embed(store, plan.to_process, catalog, run_id)
