from pathlib import Path

from fastapi.testclient import TestClient

from pipeline.index.build import build_index
from pipeline.index.draft import IndexSettings
from pipeline.probing.predict import predict
from pipeline.service.app import create_app
from pipeline.service.state import ServiceSettings, ServiceState
from tests.pipeline.probing.cases import expect_scores, make_head, make_store


def test_a_track_tells_what_heads_say_of_its_present_content(tmp_path: Path) -> None:
    known = make_store(tmp_path, 6, ("8hz", "global"))
    build_index(known.location, IndexSettings())
    client = TestClient(create_app(ServiceState(ServiceSettings(known.location))))
    nothing: dict[str, list[object]] = {"tags": [], "beats": [], "sections": [], "chords": []}
    path = "/tracks/track 001/predictions"
    assert client.get(path).json() == nothing
    tags = make_head(labels=("piano", "<b>rock</b>"))
    predict(known.location, make_head(labels=("older",)))
    predict(known.location, tags)
    predict(known.location, make_head("beat", ("beat", "downbeat"), "8hz", bias=9.0))
    predict(known.location, make_head("structure", ("verse", "chorus"), "8hz", bias=9.0))
    found = client.get(path).json()
    scores = dict(zip(tags.spec.labels, expect_scores(tags, known, "track 001"), strict=True))
    assert [tag["label"] for tag in found["tags"]] == sorted(scores, key=lambda label: -scores[label])
    times_s = [beat["time_s"] for beat in found["beats"]]
    assert times_s == sorted(times_s)
    assert times_s
    assert found["sections"][0]["start_s"] == 0.0
    assert {section["label"] for section in found["sections"]} <= {"verse", "chorus"}
    assert client.get("/tracks/nobody/predictions").status_code == 404
    known.run({f"track {number:03}": "changed" for number in range(6)}, resolutions=("global",))
    build_index(known.location, IndexSettings())
    client = TestClient(create_app(ServiceState(ServiceSettings(known.location))))
    assert client.get(path).json() == nothing
