"""A preview's books after a look into some files: the outcomes that the run gives those files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import RunSettings
from pipeline.location import StoreLocation
from pipeline.run.preview import count_plan, enter_trial
from pipeline.run.recognise import settle_recognised
from pipeline.run.trial import Trial
from pipeline.store.tables import create_tables, open_table
from pipeline.store.takedown import take_down
from pipeline.store.write import WriteSettings, write_parts
from pipeline.store.writer import StoreWriter
from tests.rows import fake_embedding
from tests.runs import R7, RECIPES, Track, open_run, plan_run, run, start_books

RESOLUTIONS = ("8hz", "global")
HELD = {name: Track(f"/{name}", f"content of {name}", 1) for name in ("a", "b", "c", "d", "withdrawn")}
NIGHTLY = {
    "a": Track("/a", "content of a", 2),  # touched
    "b2": Track("/b2", "content of b", 1),  # renamed
    "c": Track("/c", "content of c", 1),
    "c2": Track("/c2", "content of c", 1),  # copied
    "d": Track("/d", "other content", 2),  # changed
    "new": Track("/new", "new content", 1),
    "broken": Track("/broken", "", 1, state="corrupt"),
    "again": Track("/again", "content of withdrawn", 1),  # taken down, under another name
}


@pytest.fixture
def store(tmp_path: Path) -> StoreLocation:
    location = StoreLocation(str(tmp_path / "store"))
    create_tables(location)
    run(location, HELD, resolutions=RESOLUTIONS)
    take_down(StoreWriter(location, "take-down"), ["withdrawn"])
    return location


def test_a_look_into_all_files_gives_the_counts_of_the_run(store: StoreLocation) -> None:
    plan = plan_run(store, NIGHTLY, [R7], RESOLUTIONS)
    known = set(plan.known_hashes.to_pylist())
    planned = plan.to_process.column("track_id").to_pylist()
    looked_at = {name: NIGHTLY[name].audio for name in planned}
    trial = Trial(
        num_files=len(planned),
        num_failed=1,
        known=tuple(
            (name, audio.content_hash or "") for name, audio in looked_at.items() if audio.content_hash in known
        ),
        failures=(
            {"track_id": "broken", "uri": "/broken", "reason": "truncated", "message": "", "stage": "decode"},
        ),
    )
    counts = count_plan(plan, RunSettings(store, "none"))
    assert counts.embedded == len(planned) == 7
    enter_trial(counts, plan, trial)
    assert counts.closes

    committer = open_run(store, "nightly")
    start_books(committer, plan)
    committer.counts.withheld = plan.num_withheld
    ledger = open_table(store, "tracks", committer.store_version)
    embedded = fake_embedding(plan.to_process, looked_at)
    kept = [
        {**row, "wanted": [], "features": []} if row["content_hash"] in known and row["stage"] is None else row
        for row in embedded.to_pylist()
    ]
    write = WriteSettings(store.table_url("frames"), dict.fromkeys(RECIPES, 23), committer.run_id)
    committer.accept(write_parts(type(embedded).from_pylist(kept, schema=embedded.schema), write))
    assert settle_recognised(committer, plan, ledger).num_rows == 0
    assert vars(counts) == vars(committer.counts)
    assert (counts.embedded, counts.unchanged, counts.failed, counts.withheld) == (2, 4, 1, 1)
    assert (counts.moved, counts.copied) == (1, 1)
