"""Stores as runs leave them, made without audio, model or Ray, beside plain dicts of what they must hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import RESOLUTIONS, Recipe, RunSettings
from pipeline.location import StoreLocation
from pipeline.run.prepare import plan_run
from pipeline.schema import EMBEDDED
from pipeline.store.commit import RunCommitter
from pipeline.store.recipes import record_recipes
from pipeline.store.tables import create_tables
from pipeline.store.write import WriteSettings, write_parts
from tests.rows import build_catalog, pool

Matrix = npt.NDArray[np.float32]

EMBED_DIM = 5
BAD = "bad"  # content that cannot be decoded
LONG_S = 660


def make_recipe(layer: int = 7) -> Recipe:
    """Return a recipe of a checkpoint that nobody has."""
    return Recipe("ab" * 32, layer)


def make_features(content: str, recipe: str, resolution: str) -> Matrix:
    """Return features of some content, exact in ten mantissa bits.

    As many frames as 0.2 to 4 s give; of content whose name begins with "long", as many as 11 minutes and more.
    """
    rate_hz = RESOLUTIONS[resolution].frame_rate_hz
    num_frames_25hz = 5 + zlib.crc32(content.encode()) % 95 + (LONG_S * 25 if content.startswith("long") else 0)
    num_frames = 1 if rate_hz is None else -int(-num_frames_25hz * rate_hz // 25)
    random = np.random.default_rng(zlib.crc32(f"{content} {recipe} {resolution}".encode()))
    values: Matrix = (random.integers(-1000, 1000, (num_frames, EMBED_DIM)) / 64).astype(np.float32)
    return values


@dataclass
class KnownStore:
    """A store, and what the runs so far must have left in it.

    Args:
        location: Where it lies.
        contents: For each recipe id, the content of each of its tracks.
        features: What ``frames`` and ``tracks`` must hold, by recipe id, resolution and track id.
    """

    location: StoreLocation
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    features: dict[tuple[str, str], dict[str, Matrix]] = field(default_factory=dict)
    num_runs: int = 0

    def run(
        self,
        contents: Mapping[str, str],
        recipes: Sequence[Recipe] = (make_recipe(),),
        resolutions: Sequence[str] = ("16hz", "0.5hz", "global"),
        tracks_per_part: int = 3,
        prune: bool = False,
        close: bool = True,
        order: Callable[[int], Sequence[int]] = range,
        results_per_commit: int = 1,
    ) -> RunCommitter:
        """Bring the store up to date with a catalog of track ids and contents.

        Args:
            contents: Content of each track, any text.
            recipes: Recipes of the run.
            resolutions: Resolutions of the run.
            tracks_per_part: Size of a block.
            prune: Whether absent tracks leave the ledger.
            close: Whether the run closes; else all its results are committed, and it stays open.
            order: Says in which order so many blocks are done.
            results_per_commit: How many of them are committed together.
        """
        self.num_runs += 1
        by_id = {recipe.recipe_id: recipe for recipe in recipes}
        catalog = build_catalog(
            {"track_id": track_id, "uri": f"/{track_id}.mp3", "etag": content, "title": track_id.upper()}
            for track_id, content in sorted(contents.items())
        )
        create_tables(self.location)
        committer = RunCommitter(self.location, f"run{self.num_runs}", by_id)
        record_recipes(committer.store, committer.run_id, committer.recipes, "somewhere.pt")
        plan = plan_run(catalog, RunSettings(self.location, "", resolutions=tuple(resolutions)), by_id)
        counts = committer.counts
        counts.planned, counts.unchanged, counts.failed = (
            plan.num_tracks,
            plan.num_unchanged,
            plan.num_known_failures,
        )
        settings = WriteSettings(
            self.location.table_url("frames"), dict.fromkeys(by_id, 10), committer.run_id, self.location.options
        )
        rows = plan.to_process
        blocks = [rows.slice(start, tracks_per_part) for start in range(0, rows.num_rows, tracks_per_part)]
        for num_done, number in enumerate(order(len(blocks)), 1):
            block = embed(blocks[number], contents)
            committer.accept(write_parts(block, settings))
            if num_done % results_per_commit == 0:
                committer.join_pending()
                committer.commit()
        committer.join_pending()
        committer.commit()
        if close:
            committer.close(plan.departed if prune else None)
        self._expect(contents, by_id, resolutions, prune)
        return committer

    def _expect(
        self, contents: Mapping[str, str], recipes: Mapping[str, Recipe], resolutions: Sequence[str], prune: bool
    ) -> None:
        for recipe in recipes:
            held = self.contents.setdefault(recipe, {})
            for track_id in sorted(set(held) | set(contents)):
                content = contents.get(track_id)
                if content == BAD or (content is None and not prune):
                    continue
                if content != held.get(track_id):
                    for (other, _), tracks in self.features.items():
                        if other == recipe:
                            tracks.pop(track_id, None)
                if content is None:
                    del held[track_id]
                    continue
                held[track_id] = content
                for resolution in resolutions:
                    features = make_features(content, recipe, resolution)
                    self.features.setdefault((recipe, resolution), {})[track_id] = features


def embed(planned: pa.Table, contents: Mapping[str, str]) -> pa.Table:
    """Turn planned rows into embedded ones, as decoding and the model would."""
    rows: list[dict[str, Any]] = []
    for row in planned.to_pylist():
        content = contents[row["track_id"]]
        row["wanted"] = [name for name in row["wanted"] if f"{name}@{content}" not in row["held"]]
        row |= {"content_hash": content, "features": []}
        if content == BAD:
            row |= {"stage": "decode", "error_type": "unreadable", "error_message": "expected music"}
        else:
            row["features"] = [pool(name, make_features(content, *name.split("/"))) for name in row["wanted"]]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EMBEDDED)
