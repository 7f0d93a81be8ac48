"""A small store of real music with names, embedded and indexed in this process: what a service has to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.catalog.manifest import learn_facts
from pipeline.config import RunSettings
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.location import StoreLocation
from pipeline.run.prepare import build_recipes, load_model, plan_run
from pipeline.schema import CATALOG
from pipeline.storage import Options
from pipeline.store.commit import RunCommitter
from pipeline.store.recipes import record_recipes
from pipeline.store.tables import create_tables
from pipeline.store.write import WriteSettings, write_parts
from tests.corpus import MUSIC

SLASHED = "HyperRogue/disc 1/ocean & sky?.mp3"  # an id as a catalog of paths has them
HOSTILE = "<img src=x onerror=alert(1)>"  # a title as nobody should have it

TRACKS: tuple[dict[str, str], ...] = (
    {
        "track_id": "caves",
        "file": "caves.mp3",
        "title": "Caves",
        "artist": "Shawn Parrotte",
        "album": "HyperRogue",
    },
    {
        "track_id": "caves-later",
        "file": "caves-later.ogg",
        "title": "Caves (Later)",
        "artist": "Shawn Parrotte",
        "album": "HyperRogue",
    },
    {"track_id": "caribbean", "file": "caribbean.ogg", "title": "Caribbean", "artist": "Will Savino"},
    {"track_id": "crossroads", "file": "crossroads.wav", "title": "Crossroads", "artist": "Shawn Parrotte"},
    {"track_id": "desert", "file": "desert.flac", "title": "Désert", "artist": "Shawn Parrotte"},
    {"track_id": "hunting", "file": "hunting.mp3", "title": "Hunting", "artist": "Lincoln Domina"},
    {"track_id": "icy-land", "file": "icy-land.opus", "title": HOSTILE, "artist": "Shawn Parrotte"},
    {"track_id": "ivory-tower", "file": "ivory-tower.m4a", "title": "Ivory Tower", "artist": "Will Savino"},
    {"track_id": "laboratory", "file": "laboratory.wma", "artist": "Shawn Parrotte"},
    {"track_id": "mountain", "file": "mountain.mp3", "title": "Mountain", "artist": "Lincoln Domina"},
    {"track_id": SLASHED, "file": "ocean.mp3", "title": "Ocean", "artist": "Will Savino"},
    {"track_id": "palace", "file": "palace.m4a", "title": "Palace", "artist": "Will Savino"},
)


def make_catalog(
    tracks: Sequence[Mapping[str, str]] = TRACKS, root: str = str(MUSIC), options: Options | None = None
) -> pa.Table:
    """Return catalog rows of tracks whose files lie under a root."""
    rows: list[dict[str, Any]] = [
        {name: track[name] for name in track if name != "file"} | {"uri": f"{root}/{track['file']}"}
        for track in tracks
    ]
    facts = learn_facts(pa.chunked_array([[row["uri"] for row in rows]], pa.string()), options).to_pylist()
    return pa.Table.from_pylist([row | fact for row, fact in zip(rows, facts, strict=True)], schema=CATALOG)


def embed_here(
    store: StoreLocation, catalog: pa.Table, checkpoint: Path, audio_options: Options | None = None
) -> None:
    """Bring a store up to date with a catalog, without Ray; what the catalog lacks leaves the store."""
    settings = RunSettings(store, str(checkpoint), layers=(2,), resolutions=("8hz", "0.5hz", "global"))
    model = load_model(settings)
    recipes = build_recipes(model, settings)
    create_tables(store)
    committer = RunCommitter(store, "run", recipes)
    record_recipes(committer.store, committer.run_id, committer.recipes, "tiny")
    plan = plan_run(catalog.sort_by("track_id"), settings, recipes)
    committer.counts.planned = plan.num_tracks
    committer.counts.unchanged = plan.num_unchanged
    if plan.to_process.num_rows:
        decoded = pa.concat_tables(decode_tracks(plan.to_process, audio_options))
        embedder = Embedder(model, EmbedderSettings({name: recipe.layer for name, recipe in recipes.items()}))
        write = WriteSettings(store.table_url("frames"), dict.fromkeys(recipes, 10), "run", store.options)
        committer.accept(write_parts(pa.concat_tables(embedder.embed_rows(decoded)), write))
    committer.close(plan.departed)


def build_indexes(store: StoreLocation, cache: str | None = None) -> None:
    """Build or follow up the index of whole tracks and that of moments."""
    for resolution in ("global", "0.5hz"):
        build_index(store, IndexSettings(resolution, cache=cache))
