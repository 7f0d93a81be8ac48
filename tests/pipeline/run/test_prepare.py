import pytest

from pipeline.config import RESOLUTIONS, RunSettings
from pipeline.location import StoreLocation
from pipeline.run.prepare import plan_run
from pipeline.store.tables import create_tables
from tests.rows import build_catalog
from tests.runs import R7, RECIPES, Catalog, Track, run

STORED = {
    "live/a": Track("/live/a", "a", 1),
    "live/b": Track("/live/b", "b", 1),
    "live/broken": Track("/live/broken", "", 1, state="corrupt"),
    "lively/c": Track("/lively/c", "c", 1),
    "studio/d": Track("/studio/d", "d", 1),
    "studio/bad": Track("/studio/bad", "", 1, state="corrupt"),
    "e": Track("/e", "e", 1),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreLocation:
    location = StoreLocation(str(tmp_path_factory.mktemp("named") / "store"))
    create_tables(location)
    run(location, STORED, resolutions=sorted(RESOLUTIONS))
    return location


@pytest.mark.parametrize(
    ("name", "departed", "num_held"),
    [
        ("live", ["live/b", "live/broken"], 2),
        (None, ["e", "live/b", "live/broken", "lively/c", "studio/bad", "studio/d"], 5),
    ],
)
def test_of_a_catalog_with_a_name_only_its_own_tracks_can_have_left(
    store: StoreLocation, name: str | None, departed: list[str], num_held: int
) -> None:
    catalog: Catalog = {"live/a": STORED["live/a"], "live/copy": Track("/live/copy", "d", 2)}
    rows = build_catalog(track.as_catalog_row(track_id) for track_id, track in catalog.items())
    settings = RunSettings(store, "none", resolutions=tuple(sorted(RESOLUTIONS)), catalog=name)
    plan = plan_run(rows, settings, {R7: RECIPES[R7]})
    assert plan.departed == {R7: departed}
    whole = [track_id for track_id in departed if STORED[track_id].state == "sound"]
    assert sorted(plan.departed_tracks["track_id"].to_pylist()) == whole
    assert plan.num_held == num_held
    assert plan.num_unchanged == 1
    assert plan.to_process["track_id"].to_pylist() == ["live/copy"]
    assert set(plan.sources["track_id"].to_pylist()) >= {"studio/d"}  # content is known whatever its name
