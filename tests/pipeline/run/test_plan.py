from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run.plan import Plan, add_stored_facts, plan_tracks
from pipeline.schema import CATALOG, PLAN
from tests.rows import at_second, build_catalog, build_failures, build_ledger

Row = dict[str, Any]

LABELS = ("title", "artist", "album", "genre")
NUMBERS = ("track_number", "year")
LASTING = ("catalog", "decode", "embed")
PASSING = ("out_of_memory", "embed_failed")

# Few values, so that a drawn catalog row and a drawn ledger row often agree.
facts = st.fixed_dictionaries(
    {
        "uri": st.sampled_from(["/a", "/a", "/a", "/b", None]),
        "size_bytes": st.sampled_from([1, 1, 1, 2, None]),
        "etag": st.sampled_from([None, None, "e", "f"]),
        "modified_time": st.sampled_from([1, 1, 1, 2, None]).map(at_second),
    }
)
labels = st.fixed_dictionaries(
    {name: st.sampled_from(["t", "t", "", None]) for name in LABELS}
    | {name: st.sampled_from([1, 1, 2, None]) for name in NUMBERS}
)
resolution_lists = st.lists(st.sampled_from(["50hz", "8hz", "global"]), min_size=1, unique=True)
ledger_rows = st.builds(
    lambda facts, labels, names, content: {**facts, **labels, "resolutions": names, "content_hash": content},
    facts,
    labels,
    resolution_lists,
    st.sampled_from(["h1", "h2"]),
)
failure_rows = st.builds(
    lambda facts, stage, reason: {**facts, "stage": stage, "error_type": reason},
    facts,
    st.sampled_from([*LASTING, "fetch"]),
    st.sampled_from(["truncated", "silent", *PASSING]),
)
track_ids = st.sampled_from(["a", "b", "Ünü", "d e", "~"])


def by_track(rows: st.SearchStrategy[Row]) -> st.SearchStrategy[dict[str, Row]]:
    return st.dictionaries(track_ids, rows)


def as_rows(by_id: dict[str, Row]) -> list[Row]:
    return [{"track_id": track_id, **row} for track_id, row in by_id.items()]


def in_two_chunks(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, table.num_rows // 2), table.slice(table.num_rows // 2)])


def is_same_file(now: Row, then: Row | None) -> bool:
    if then is None or now["uri"] is None or now["uri"] != then["uri"]:
        return False
    if now["etag"] is not None and then["etag"] is not None:
        return bool(now["etag"] == then["etag"])
    names = ("size_bytes", "modified_time")
    return all(now[name] is not None and now[name] == then[name] for name in names)


def is_known_bad(now: Row, failure: Row | None) -> bool:
    if failure is None or failure["stage"] not in LASTING or failure["error_type"] in PASSING:
        return False
    return is_same_file(now, failure) or (now["uri"] is None and failure["uri"] is None)


@settings(deadline=None, max_examples=200)
@given(
    by_track(st.builds(lambda facts, labels: {**facts, **labels}, facts, labels)),
    st.lists(st.tuples(by_track(ledger_rows), by_track(failure_rows)), min_size=1, max_size=2),
    resolution_lists,
    st.booleans(),
)
def test_every_track_has_the_outcome_that_a_plain_reading_of_the_rules_gives(
    catalog: dict[str, Row],
    stored: list[tuple[dict[str, Row], dict[str, Row]]],
    resolutions: list[str],
    retry_failures: bool,
) -> None:
    unchanged, known_bad, to_process, relabeled, reasons = set(), set(), set(), set(), []
    for track_id, row in catalog.items():
        settled = [
            is_same_file(row, ledger.get(track_id)) and set(resolutions) <= set(ledger[track_id]["resolutions"])
            for ledger, _ in stored
        ]
        bad = [is_known_bad(row, failures.get(track_id)) for _, failures in stored]
        if all(settled):
            unchanged.add(track_id)
            moved = any(
                row[name] is not None
                and row[name] != (ledger[track_id][name] or (None if name in NUMBERS else ""))
                for ledger, _ in stored
                for name in (*LABELS, *NUMBERS)
            )
            if moved or any(track_id in failures for _, failures in stored):
                relabeled.add(track_id)
        elif not retry_failures and all(s or b for s, b in zip(settled, bad, strict=True)):
            known_bad.add(track_id)
            reasons.append(stored[bad.index(True)][1][track_id]["error_type"])
        else:
            to_process.add(track_id)

    plan = plan_tracks(
        in_two_chunks(build_catalog(as_rows(catalog))),
        {f"r{i}": in_two_chunks(build_ledger(as_rows(ledger))) for i, (ledger, _) in enumerate(stored)},
        {f"r{i}": in_two_chunks(build_failures(as_rows(failures))) for i, (_, failures) in enumerate(stored)},
        resolutions,
        retry_failures,
    )

    assert plan.num_tracks == len(catalog)
    assert plan.num_tracks == plan.to_process.num_rows + plan.num_unchanged + plan.num_known_failures
    assert plan.num_unchanged == len(unchanged)
    assert plan.num_known_failures == len(known_bad)
    assert plan.known_failures_by_reason == {reason: reasons.count(reason) for reason in reasons}
    assert plan.relabeled.schema == CATALOG
    assert {row.pop("track_id"): row for row in plan.relabeled.to_pylist()} == {i: catalog[i] for i in relabeled}
    assert plan.to_process.schema == PLAN
    assert plan.to_process.column("track_id").to_pylist() == sorted(to_process)
    for row in plan.to_process.to_pylist():
        track_id = row.pop("track_id")
        assert row.pop("wanted") == [f"r{i}/{name}" for i in range(len(stored)) for name in resolutions]
        assert row.pop("held") == [
            f"r{i}/{name}@{ledger[track_id]['content_hash']}"
            for i, (ledger, _) in enumerate(stored)
            if track_id in ledger
            for name in ledger[track_id]["resolutions"]
        ]
        assert row.pop("stored") == []
        owners = [ledger[track_id]["uri"] for ledger, _ in stored if track_id in ledger]
        owner = next((uri for uri in owners if uri is not None), None)
        assert row.pop("owner_uri") == (owner if row["uri"] is not None and owner != row["uri"] else None)
        assert row == catalog[track_id]
    for i, (ledger, failures) in enumerate(stored):
        assert plan.departed[f"r{i}"] == sorted((set(ledger) | set(failures)) - set(catalog))
    assert plan.num_departed == len({track_id for ledger, _ in stored for track_id in ledger} - set(catalog))


NOW: Row = {"track_id": "a", "uri": "/a", "size_bytes": 1, "etag": None, "modified_time": at_second(1)}
HELD = {**NOW, "content_hash": "h1", "resolutions": ["50hz", "global"]}
BAD = {**NOW, "stage": "decode", "error_type": "truncated"}


def plan_one(
    now: Row, held: Row | None = None, bad: Row | None = None, resolutions: tuple[str, ...] = ("50hz",)
) -> Plan:
    return plan_tracks(
        build_catalog([now]),
        {"r": build_ledger([held] if held else [])},
        {"r": build_failures([bad] if bad else [])},
        resolutions,
    )


def outcome_of(plan: Plan) -> str:
    if plan.num_unchanged:
        return "unchanged"
    return "failed" if plan.num_known_failures else "looked at"


@pytest.mark.parametrize(
    ("then", "now", "outcome"),
    [
        ({"etag": "e"}, {"etag": "e", "modified_time": at_second(9)}, "unchanged"),
        ({"etag": "e"}, {"etag": "f"}, "looked at"),
        ({}, {}, "unchanged"),
        ({}, {"modified_time": at_second(9)}, "looked at"),
        ({}, {"size_bytes": 9}, "looked at"),
        ({"etag": "e"}, {}, "unchanged"),
        ({}, {"uri": "/b"}, "looked at"),
        ({"etag": "e"}, {"etag": "e", "uri": "/b"}, "looked at"),
        ({"modified_time": None}, {"modified_time": None}, "looked at"),
        ({}, {"uri": None}, "looked at"),
    ],
)
def test_a_stored_file_is_looked_at_when_its_etag_or_else_size_or_time_or_place_moved(
    then: Row, now: Row, outcome: str
) -> None:
    assert outcome_of(plan_one({**NOW, **now}, {**HELD, **then})) == outcome


@pytest.mark.parametrize(
    ("then", "now", "outcome"),
    [
        ({}, {}, "failed"),
        ({"stage": "embed"}, {}, "failed"),
        ({"stage": "embed", "error_type": "worker_crashed"}, {}, "failed"),
        ({"stage": "embed", "error_type": "embed_failed"}, {}, "looked at"),
        ({"stage": "decode", "error_type": "out_of_memory"}, {}, "looked at"),
        ({"stage": "fetch", "error_type": "permission_denied"}, {}, "looked at"),
        ({"etag": "e"}, {"etag": "f"}, "looked at"),
        ({}, {"size_bytes": 9}, "looked at"),
        ({}, {"modified_time": at_second(9)}, "looked at"),
        ({}, {"uri": "/b"}, "looked at"),
        ({"stage": "catalog", "uri": None}, {"uri": None}, "failed"),
        ({"stage": "catalog", "uri": None}, {}, "looked at"),
        ({}, {"uri": None}, "looked at"),
    ],
)
def test_a_failed_file_is_tried_again_when_it_moved_or_could_not_be_fetched(
    then: Row, now: Row, outcome: str
) -> None:
    plan = plan_one({**NOW, **now}, bad={**BAD, **then})
    assert outcome_of(plan) == outcome
    reason = {**BAD, **then}["error_type"]
    assert plan.known_failures_by_reason == ({reason: 1} if outcome == "failed" else {})


def test_a_failure_of_another_state_of_the_file_gives_no_reason() -> None:
    stale = {**BAD, "size_bytes": 9, "error_type": "silent"}
    plan = plan_tracks(
        build_catalog([NOW]),
        {"r1": build_ledger([HELD]), "r2": build_ledger([])},
        {"r1": build_failures([stale]), "r2": build_failures([BAD])},
        ["50hz"],
    )
    assert plan.known_failures_by_reason == {"truncated": 1}


def test_known_failures_are_tried_again_on_request() -> None:
    catalog, ledger, failures = build_catalog([NOW]), {"r": build_ledger([])}, {"r": build_failures([BAD])}
    plan = plan_tracks(catalog, ledger, failures, ["50hz"], retry_failures=True)
    assert outcome_of(plan) == "looked at"
    assert plan.known_failures_by_reason == {}


def test_a_resolution_that_is_not_held_is_looked_at_with_what_is_held() -> None:
    (row,) = plan_one(NOW, HELD, resolutions=("50hz", "8hz")).to_process.to_pylist()
    assert row["wanted"] == ["r/50hz", "r/8hz"]
    assert row["held"] == ["r/50hz@h1", "r/global@h1"]


@pytest.mark.parametrize(
    ("name", "word"), [*((name, "new") for name in LABELS), ("track_number", 3), ("year", 1997)]
)
def test_new_words_for_the_same_file_are_relabelling_alone(name: str, word: str | int) -> None:
    plan = plan_one({**NOW, name: word}, HELD)
    assert outcome_of(plan) == "unchanged"
    assert plan.relabeled.column(name).to_pylist() == [word]
    assert plan_one(NOW, HELD).relabeled.num_rows == 0


def test_a_file_restored_as_it_was_sheds_the_failure_of_the_time_between() -> None:
    plan = plan_one(NOW, HELD, bad={**BAD, "size_bytes": 9})
    assert outcome_of(plan) == "unchanged"
    assert plan.relabeled.num_rows == 1


def test_planned_rows_learn_what_frames_has_of_them_live_or_dead() -> None:
    catalog = build_catalog([{**NOW, "track_id": track_id} for track_id in "cab"])
    planned = plan_tracks(catalog, {"r": build_ledger([])}, {"r": build_failures([])}, ["8hz"]).to_process
    facts = [("a", "h1", "8hz"), ("a", "h2", "8hz"), ("c", "h1", "16hz"), ("departed", "h1", "8hz")]
    rows = [dict(zip(("track_id", "content_hash", "resolution"), fact, strict=True)) for fact in facts]
    table = pa.Table.from_pylist(rows)
    found = add_stored_facts(planned, {"r1": table, "r2": table.slice(0, 1)})
    assert found.schema == PLAN
    assert found.drop_columns(["stored"]) == planned.drop_columns(["stored"])
    assert dict(zip(*(found.column(name).to_pylist() for name in ("track_id", "stored")), strict=True)) == {
        "a": ["r1/8hz@h1", "r1/8hz@h2", "r2/8hz@h1"],
        "b": [],
        "c": ["r1/16hz@h1"],
    }


def test_what_is_wanted_of_a_large_catalog_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.catalog.columns._REPEATED_ROWS", 2)
    catalog = build_catalog([{"track_id": f"t{number}", "uri": f"/{number}"} for number in range(5)])
    plan = plan_tracks(catalog, {"r": build_ledger([])}, {"r": build_failures([])}, ["8hz", "global"])
    assert plan.to_process.column("wanted").num_chunks == 3
    assert plan.to_process.column("wanted").to_pylist() == [["r/8hz", "r/global"]] * 5


def test_an_empty_catalog_and_an_empty_store_make_an_empty_plan() -> None:
    plan = plan_tracks(build_catalog([]), {"r": build_ledger([])}, {"r": build_failures([])}, ["50hz"])
    assert plan.to_process.schema == PLAN
    assert (plan.num_tracks, plan.to_process.num_rows, plan.departed) == (0, 0, {"r": []})
