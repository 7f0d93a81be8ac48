"""The report's facts against what is known of a store, and its page against a strict parser."""

import json
import logging
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import Reason
from pipeline.location import StoreLocation
from pipeline.report.advice import ADVICE
from pipeline.report.page import build_page
from pipeline.report.plan_file import save_plan
from pipeline.report.publish import RunFacts, gather_facts, publish_report, remove_reports_of
from pipeline.storage import read_file
from pipeline.store.books import RunCounts
from tests.s3_server import STORE, STORE_BUCKET, S3Server
from tests.stores import BAD, KnownStore, make_features, make_recipe

R7 = make_recipe(7)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "br", "hr", "img"}


class StrictParser(HTMLParser):
    """Follows the open elements; a page in which they do not close is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def work(num_tracks: int, **others: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"num_tasks": 1, "num_tracks": num_tracks, "seconds": 2.0, "cpu_seconds": 3.0}
    return {**known, "audio_s": 90.0, "num_windows": 4, "bytes_read": 700, "bytes_written": {}, **others}


@pytest.fixture
def store(tmp_path: Path) -> KnownStore:
    store = KnownStore(StoreLocation(str(tmp_path / "store")))
    store.run({f"a{i}": f"content {i}" for i in range(30)}, [R7])
    return store


def run_more(store: KnownStore) -> RunFacts:
    base = 1 + int(store.run({f"a{i}": f"content {i}" for i in range(30)}, [R7]).store_version)
    contents = {f"a{i}": f"content {i}" for i in range(30)}
    contents |= {f"b{i}": f"other {i}" for i in range(25)} | {"bad": BAD, HOSTILE: BAD}
    committer = store.run(contents, [R7])
    books = {
        "placement": {
            "decode": {"10.0.0.1/aa": work(20), "10.0.0.2/bb": work(7)},
            "embed": {"10.0.0.2/bb": work(27, audio_s=80.0)},
            "write": {"10.0.0.1/aa": work(27, audio_s=0.0, bytes_written={"8hz": 5})},
        },
        "devices": {"10.0.0.2/bb": "cuda"},
    }
    return RunFacts(
        store.location,
        committer.run_id,
        {R7.recipe_id: 7},
        vars(committer.counts),
        committer.store_version,
        base,
        closed=True,
        seconds=10.0,
        phases={"listing the catalog": 1.5, "starting the model": 6.5, "embedding": 2.0},
        bytes_written=committer.bytes_written,
        throughput={"bucket_s": 2.0, "tracks": [0, 20, 7], "audio_s": [0.0, 60.0, 20.0]},
        books=books,
        configuration={"store": HOSTILE, "layers": [7], "device": None},
    )


def test_facts_are_those_of_the_store(store: KnownStore) -> None:
    facts = gather_facts(run_more(store))
    assert facts["counts"]["embedded"] == 25
    (failure,) = facts["failures"]
    assert (failure["reason"], failure["number"], failure["num_new"]) == ("unreadable", 2, 2)
    assert facts["stages"]["decode"]["num_tracks"] == 27
    assert facts["stages"]["decode"]["audio_s"] == 180.0
    assert facts["stages"]["write"]["bytes_written"] == {"8hz": 5}
    assert facts["distributions"]["num_sampled"] == facts["distributions"]["num_total"] == 55
    (health,) = facts["health"]
    names = store.contents[R7.recipe_id]
    vectors = np.concatenate([make_features(names[name], R7.recipe_id, "global") for name in names])
    norms = np.linalg.norm(vectors.astype(float), axis=1)
    assert health["num_vectors"] == 55
    assert health["norms"]["median"] == pytest.approx(np.median(norms))
    assert health["norms"]["maximum"] == pytest.approx(norms.max())
    assert (health["drift"]["num_now"], health["drift"]["num_before"]) == (25, 30)
    before = np.concatenate([make_features(f"content {i}", R7.recipe_id, "global") for i in range(30)])
    now = np.concatenate([make_features(f"other {i}", R7.recipe_id, "global") for i in range(25)])
    shift = np.abs(now.mean(axis=0) - before.mean(axis=0)) / before.std(axis=0)
    assert health["drift"]["mean_shift"] == pytest.approx(shift.mean(), rel=1e-4)
    assert len(facts["map"]["points"]) == 55


def test_a_plan_of_this_run_stands_beside_the_fact(store: KnownStore) -> None:
    run = run_more(store)
    plan = {"seconds": 12.0, "num_tracks": 27, "audio_s": 170.0, "bytes_read": 1400, "bytes_written": 99}
    plan |= {"model_s": 1.0, "decode_core_s": 6.0, "model_core_s": 3.0, "write_core_s": 3.0}
    save_plan(store.location, ["another recipe"], run.base_version - 1, plan)
    assert gather_facts(run)["plan"]["predicted"] is None
    save_plan(store.location, [R7.recipe_id], run.base_version - 1, plan)
    facts = gather_facts(run)
    assert facts["plan"]["predicted"]["seconds"] == 12.0
    assert facts["plan"]["actual"]["bytes_read"] == 1400
    page = build_page(facts)
    assert "<td>12.0 s</td><td>10.0 s</td><td>+20%</td>" in page
    assert re.findall(r"<span>([^<]*)</span><b>([^<]*)</b>", page.split("Wall time")[1])[:3] == [
        ("listing the catalog", "1.5 s"),
        ("starting the model", "6.5 s"),
        ("embedding", "2.0 s"),
    ]


def test_the_page_is_whole_and_harmless(store: KnownStore) -> None:
    run = run_more(store)
    page = publish_report(run)
    assert page == f"{store.location.url}/reports/{run.run_id}.html"
    text = Path(page).read_text()
    parser = StrictParser()
    parser.feed(text)
    assert parser.open == []
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "img", "iframe", "object"}
    links = [
        value for _, attributes in parser.seen for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links == ["data:,"]
    assert "url(" not in text
    assert "&lt;img src=x" in text
    facts = json.loads(Path(page).with_suffix(".json").read_text())
    assert facts["run_id"] == run.run_id
    assert facts["placement"]["embed"]["10.0.0.2/bb"]["num_tracks"] == 27


@pytest.mark.parametrize("num_tracks", [1, 2])
def test_few_tracks_are_counted_in_words_that_fit_and_judged_by_nothing(tmp_path: Path, num_tracks: int) -> None:
    store = KnownStore(StoreLocation(str(tmp_path / "store")))
    committer = store.run({f"a{number}": f"content {number}" for number in range(num_tracks)}, [R7])
    facts = (committer.run_id, {R7.recipe_id: 7}, vars(committer.counts), committer.store_version, 1, True, 9.0)
    stage = work(num_tracks)
    placement = {name: {"10.0.0.1/aa": stage} for name in ("decode", "embed", "write")}
    course = {"bucket_s": 2.0, "tracks": [num_tracks], "audio_s": [60.0]}
    run = RunFacts(store.location, *facts, throughput=course, books={"placement": placement, "devices": {}})
    found = gather_facts(run)
    page = build_page(found)
    text = " ".join(re.sub("<[^>]*>", " ", page.partition("<body>")[2]).split())
    assert found["counts"]["embedded"] == num_tracks
    assert f", {found['written_time'][11:16]} UTC · Store" in text[:200]
    if num_tracks == 1:
        assert re.findall(r"\b1 (?:global )?(?:tracks|vectors|dimensions|groups|are)\b", text) == []
        assert "the one track has an outcome" in text
        assert "The store's one track." in text
        assert "✓" not in text  # a vector alone tells nothing
    else:
        assert "All 2 tracks of the store." in text
        assert "– Near-duplicates cannot be told" in text
        assert "– No drift to tell" in text


def test_a_run_without_work_reads_nothing(tmp_path: Path) -> None:
    """There is no store to read: any look at it would fail."""
    store = StoreLocation(str(tmp_path / "nowhere"))
    run = RunFacts(store, "idle", {"r": 7}, vars(RunCounts(planned=5, unchanged=5)), 9, 9, True, 1.0)
    page = publish_report(run)
    assert page is not None
    assert "Nothing had changed" in Path(page).read_text()
    assert len(Path(page).read_text()) < 20_000


def test_a_report_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "reports").write_text("in the way")
    run = RunFacts(StoreLocation(str(tmp_path / "store")), "r1", {}, vars(RunCounts()), 1, 1, True, 1.0)
    with caplog.at_level(logging.WARNING):
        assert publish_report(run) is None
    assert "no report of run r1" in caplog.text


def test_a_run_that_broke_off_says_why(tmp_path: Path) -> None:
    run = RunFacts(StoreLocation(str(tmp_path)), "r1", {}, vars(RunCounts(planned=3)), 1, 1, False, 1.0)
    assert "The books do not close" in build_page(gather_facts(run))
    assert "broke off: no room" in build_page(gather_facts(replace(run, broke_off="no room")))


def test_reports_that_name_a_track_go_with_it(store: KnownStore) -> None:
    run = run_more(store)
    publish_report(run)
    publish_report(replace(run, run_id="other", counts=vars(RunCounts()), books={}, configuration={}))
    assert remove_reports_of(store.location, ["b"]) == 0
    assert remove_reports_of(store.location, ["nobody", HOSTILE]) == 1
    left = {path.name for path in Path(store.location.url, "reports").iterdir()}
    assert left == {"other.json", "other.html"}
    assert remove_reports_of(StoreLocation(store.location.url + "-none"), ["a1"]) == 0


def test_a_report_lies_beside_tables_on_an_object_store(s3_server: S3Server) -> None:
    store = KnownStore(StoreLocation(f"s3://{STORE_BUCKET}/reported", s3_server.options(STORE)))
    store.run({f"a{i}": f"content {i}" for i in range(30)}, [R7])
    run = run_more(store)
    page = publish_report(run)
    assert page == f"s3://{STORE_BUCKET}/reported/reports/{run.run_id}.html"
    assert b"Embedding health" in read_file(page, store.location.options)
    assert remove_reports_of(store.location, [HOSTILE]) == 1


def test_every_reason_has_its_advice() -> None:
    assert set(ADVICE) == set(Reason)
    assert all(text.endswith(".") and len(text) < 120 for text in ADVICE.values())
