import base64
import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from jobs import delete_tracks
from pipeline.index.manifest import list_indexes, remove_index
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.service.app import create_app
from pipeline.service.guard import Access
from pipeline.service.page_files import PAGE_FOLDER
from pipeline.service.similarity import compare_with_itself
from pipeline.service.state import ServiceSettings, ServiceState
from pipeline.store.maintain import compact_store, vacuum_store
from pipeline.store.read import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.corpus import MUSIC, make_failures
from tests.served import HOSTILE, SLASHED, TRACKS, build_indexes, embed_here, make_catalog

TOKEN = "correct-horse-battery"
IDS = sorted(track["track_id"] for track in TRACKS)


@pytest.fixture(scope="module")
def store(served_store: StoreLocation) -> StoreLocation:
    return served_store


@pytest.fixture(scope="module")
def state(store: StoreLocation, tiny_checkpoint: Path) -> ServiceState:
    return ServiceState(
        ServiceSettings(store, checkpoint=str(tiny_checkpoint), device="cpu", max_upload_bytes=2_000_000)
    )


@pytest.fixture(scope="module")
def client(state: ServiceState) -> Iterator[TestClient]:
    with TestClient(create_app(state), raise_server_exceptions=False) as client:
        yield client


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(answer: Any) -> list[str]:
    return [result["track_id"] for result in answer["results"]]


def test_a_track_finds_the_nearest_by_cosine(client: TestClient, store: StoreLocation) -> None:
    ids, vectors = FeatureStore(store.url).vectors("global")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in ("caves", SLASHED):
        scores = dict(zip(ids.to_pylist(), unit @ unit[ids.to_pylist().index(query)], strict=True))
        del scores[query]
        answer = get(client, f"/search/track/{quote(query)}", k=5)
        assert ids_of(answer) == sorted(scores, key=lambda name: -scores[name])[:5]
        found = [result["score"] for result in answer["results"]]
        np.testing.assert_allclose(found, [scores[name] for name in ids_of(answer)], atol=2e-3)
        assert [result["rank"] for result in answer["results"]] == [1, 2, 3, 4, 5]
        assert {result["start_s"] for result in answer["results"]} == {None}


def test_a_moment_finds_moments(client: TestClient) -> None:
    answer = get(client, "/search/track/caves", resolution="0.5hz", start_s=4, end_s=8)
    assert answer["index"]["resolution"] == "0.5hz"
    assert answer["results"]
    for result in answer["results"]:
        assert 0 <= result["start_s"] < result["end_s"]


@pytest.mark.parametrize("name", ["caves.mp3", "desert.flac", "ocean.mp3"])
def test_a_file_of_the_catalog_finds_its_track_first(client: TestClient, name: str) -> None:
    for resolution in ("global", "0.5hz"):
        answer = client.post(
            "/search/audio", params={"resolution": resolution}, files={"file": (name, (MUSIC / name).read_bytes())}
        )
        assert answer.status_code == 200, answer.text
        (expected,) = [track["track_id"] for track in TRACKS if track["file"] == name]
        assert ids_of(answer.json())[0] == expected
        assert answer.json()["results"][0]["near_duplicate"] is True or resolution != "global"
        assert answer.json()["results"][0]["score"] == pytest.approx(
            1, abs=2e-3
        )  # the very vectors that are stored
        assert answer.json()["query"]["file"] == name


def test_an_upload_brings_its_own_picture(client: TestClient, store: StoreLocation) -> None:
    answer = client.post("/search/audio", files={"file": ("x", (MUSIC / "caves.mp3").read_bytes())}).json()
    found, stored = answer["similarity"], get(client, "/tracks/caves/similarity")
    assert {name: found[name] for name in ("num_bins", "bin_s", "duration_s")} == {
        name: stored[name] for name in ("num_bins", "bin_s", "duration_s")
    }
    cosines, expected = (
        picture["low"]
        + np.frombuffer(base64.b64decode(picture["values"]), np.uint8) / 255 * (picture["high"] - picture["low"])
        for picture in (found, stored)
    )
    np.testing.assert_allclose(cosines, expected, atol=0.01)


def test_filters_and_exclusions_hold(client: TestClient) -> None:
    found = get(client, "/search/track/caves", where="artist = 'Shawn Parrotte'")
    assert {result["artist"] for result in found["results"]} == {"Shawn Parrotte"}
    others = get(client, "/search/track/caves", exclude_same="artist")
    assert others["results"]
    assert "Shawn Parrotte" not in {result["artist"] for result in others["results"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/search/track/nobody", 404),
        ("/search/track/caves?k=0", 422),
        ("/search/track/caves?k=100000", 422),
        ("/search/track/caves?k=many", 422),
        ("/search/track/caves?start_s=-1", 422),
        ("/search/track/caves?start_s=nan", 422),
        ("/search/track/caves?resolution=3hz", 400),
        ("/search/track/caves?exclude_same=genre", 422),
        ("/search/track/caves?where=no_such_column%20%3D%201", 400),
        ("/search/track/caves?where=1%3B%20DROP%20TABLE%20tracks", 400),
        ("/search/track/caves?where=track_id%20IN%20(SELECT%20content%20FROM%20read_text('/etc/passwd'))", 400),
        ("/tracks/nobody", 404),
        ("/tracks/nobody/audio", 404),
        ("/tracks/nobody/similarity", 404),
        ("/tracks/..%2F..%2F..%2Fetc%2Fpasswd/audio", 404),
        ("/tracks//etc/passwd/audio", 404),
        ("/page/..%2Fapp.py", 404),
        ("/page/%2Fetc%2Fpasswd", 404),
        ("/map?limit=0", 422),
        ("/no/such/path", 404),
    ],
)
def test_a_mistake_is_answered_with_4xx_and_its_reason(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert "root:" not in answer.text


def test_bad_uploads_are_answered_with_4xx_and_their_reason(client: TestClient, tmp_path: Path) -> None:
    expected = make_failures(tmp_path)
    for name, reason in expected.items():
        answer = client.post("/search/audio", files={"file": (name, (tmp_path / name).read_bytes())})
        assert (answer.status_code, answer.json()["reason"]) == (422, reason)
        assert answer.json()["detail"]
    assert (
        client.post("/search/audio", files={"file": ("x", (MUSIC / "caves.mp3").read_bytes())}).status_code == 200
    )


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"", "multipart/form-data; boundary=x", 422),
        (b"garbage", "multipart/form-data; boundary=x", 400),
        (b"garbage", "multipart/form-data", 400),
        (b"{}", "application/json", 422),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
        ),
        (b"x" * 3_000_000, "multipart/form-data; boundary=x", 413),
    ],
)
def test_malformed_uploads_are_answered_with_4xx(
    client: TestClient, content: bytes, content_type: str, status: int
) -> None:
    answer = client.post("/search/audio", content=content, headers={"content-type": content_type})
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_an_upload_without_a_stated_length_is_cut_off(client: TestClient) -> None:
    sent = []

    def send() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.mp3"\r\n\r\n'
        for _ in range(100):
            sent.append(1)
            yield b"x" * 100_000

    answer = client.post(
        "/search/audio", content=send(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413


def test_without_a_checkpoint_a_file_cannot_be_asked_for(store: StoreLocation) -> None:
    client = TestClient(create_app(ServiceState(ServiceSettings(store))))
    answer = client.post("/search/audio", files={"file": ("x", b"x")})
    assert answer.status_code == 409
    assert "--checkpoint" in answer.json()["detail"]
    assert get(client, "/info")["can_query_audio"] is False


def test_tracks_are_suggested_by_what_was_typed(client: TestClient) -> None:
    assert [track["track_id"] for track in get(client, "/tracks", prefix="desert")["tracks"]] == ["desert"]
    assert [track["track_id"] for track in get(client, "/tracks", prefix="CAV")["tracks"]] == [
        "caves",
        "caves-later",
    ]
    assert len(get(client, "/tracks", limit=3)["tracks"]) == 3


def test_the_facts_of_a_track_name_its_audio(client: TestClient) -> None:
    for track in TRACKS:
        facts = get(client, f"/tracks/{quote(track['track_id'], safe='')}")
        assert facts["track_id"] == track["track_id"]
        assert facts["title"] == track.get("title", "Laboratory")  # which its file says
        assert facts["duration_s"] > 0
        audio = client.get(facts["audio_url"])
        assert audio.status_code == 200
        own = client.get(f"/tracks/{quote(track['track_id'], safe='')}/audio").content
        assert own == (MUSIC / track["file"]).read_bytes()
        assert audio.content[:4] == b"fLaC" if track["file"].endswith(".wma") else audio.content == own
        assert audio.headers["content-type"].startswith("audio/")


def test_any_track_comes_as_a_copy_that_every_browser_plays(client: TestClient) -> None:
    whole = client.get("/tracks/ivory-tower/audio", params={"format": "flac"})
    assert whole.headers["content-type"] == "audio/flac"
    samples, rate_hz = soundfile.read(io.BytesIO(whole.content))
    assert len(samples) / rate_hz == pytest.approx(get(client, "/tracks/ivory-tower")["duration_s"], abs=0.1)
    headers = {"range": "bytes=5000-5999", "if-range": whole.headers["etag"]}
    part = client.get("/tracks/ivory-tower/audio", params={"format": "flac"}, headers=headers)
    assert (part.status_code, part.content) == (206, whole.content[5000:6000])
    assert client.get("/tracks/ivory-tower/audio", params={"format": "exe"}).status_code == 422
    assert client.get("/tracks/nobody/audio", params={"format": "flac"}).status_code == 404


def test_a_player_can_seek(client: TestClient) -> None:
    whole = (MUSIC / "mountain.mp3").read_bytes()
    answer = client.get("/tracks/mountain/audio", headers={"range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, whole[1000:2000])
    assert answer.headers["content-range"] == f"bytes 1000-1999/{len(whole)}"
    assert client.get("/tracks/mountain/audio", headers={"range": f"bytes={len(whole)}-"}).status_code == 416


def test_the_picture_of_a_track_is_its_frames_against_themselves(client: TestClient, store: StoreLocation) -> None:
    for track_id in ("caves", "mountain", SLASHED):
        answer = get(client, f"/tracks/{quote(track_id, safe='')}/similarity")
        frames = np.array(FeatureStore(store.url).frames([track_id], "8hz")["embeddings"][0].as_py(), np.float32)
        expected = compare_with_itself(frames, 8.0)
        found = np.frombuffer(base64.b64decode(answer["values"]), np.uint8).reshape(answer["num_bins"], -1)
        cosines = answer["low"] + found / 255 * (answer["high"] - answer["low"])
        np.testing.assert_allclose(cosines, expected.values, atol=0.01)
        assert answer["duration_s"] == len(frames) / 8


def test_the_map_has_every_track_once(client: TestClient) -> None:
    answer = get(client, "/map")
    assert sorted(track["track_id"] for track in answer["tracks"]) == IDS
    assert answer["num_tracks"] == len(IDS)
    one = answer["tracks"][3]
    near = get(client, "/map", x_min=one["x"], x_max=one["x"], y_min=one["y"], y_max=one["y"])
    assert near["tracks"] == [one]


def test_the_document_names_every_path(client: TestClient) -> None:
    paths = get(client, "/openapi.json")["paths"]
    assert {
        "/search/track/{track_id}", "/search/audio", "/tracks", "/tracks/{track_id}", "/tracks/{track_id}/audio",
        "/tracks/{track_id}/similarity", "/tracks/{track_id}/predictions", "/map", "/info", "/health", "/metrics",
    } == set(paths)  # fmt: skip
    assert all(operation["summary"] for methods in paths.values() for operation in methods.values())


def test_the_figures_are_in_prometheus_format(client: TestClient) -> None:
    get(client, "/search/track/caves")
    text = client.get("/metrics").text
    line = re.compile(r'[a-z_]+(\{([a-z_]+="[^"]*",?)+\})? [0-9.e+-]+|[a-z_]+(\{.*\})? \+?(Inf|NaN)')
    assert all(row.startswith("#") or line.fullmatch(row) for row in text.splitlines())
    assert 'musicfm_index_tracks{resolution="global"} 12.0' in text
    assert 'route="/search/track/{track_id:path}",status="200"' in text


def test_the_page_comes_from_here_alone_and_titles_are_never_markup(client: TestClient) -> None:
    for path in ("/", "/docs"):
        text = client.get(path).text
        named = re.findall(r'(?:src|href)="([^"#]+)"', text)
        assert named
        for name in named:
            assert not name.startswith(("http", "//"))
            assert client.get(f"/{name.removeprefix('./')}").status_code == 200
        assert "style=" not in text  # the policy allows no inline style, and no inline script
        assert not re.search(r"<script(?![^>]*src=)", text)
    for script in PAGE_FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", script.read_text()
        )
    assert HOSTILE in {track["title"] for track in get(client, "/map")["tracks"]}


def test_a_token_guards_what_is_in_the_store(store: StoreLocation) -> None:
    client = TestClient(create_app(ServiceState(ServiceSettings(store, access=Access(TOKEN)))))
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for path in (
        "/info",
        "/search/track/caves",
        "/tracks",
        "/tracks/caves",
        "/tracks/caves/audio",
        "/map",
        "/metrics",
    ):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer).status_code == 200
    url = client.get("/tracks/caves", headers=bearer).json()["audio_url"]
    assert client.get(url, headers={"range": "bytes=0-9"}).status_code == 206
    assert get(client, "/health") == {"status": "ok"}


def test_an_id_that_ends_like_a_resource_is_still_found(tmp_path: Path, tiny_checkpoint: Path) -> None:
    store = StoreLocation(str(tmp_path / "store"))
    ids = ("band/audio", "band/similarity", "audio")
    embed_here(
        store, make_catalog([{"track_id": name, "file": "crossroads.wav"} for name in ids]), tiny_checkpoint
    )
    build_indexes(store)
    client = TestClient(create_app(ServiceState(ServiceSettings(store))))
    for name in ids:
        assert get(client, f"/tracks/{name}")["track_id"] == name
        assert client.get(f"/tracks/{name}/audio").content == (MUSIC / "crossroads.wav").read_bytes()


@pytest.fixture
def changing(tmp_path: Path, tiny_checkpoint: Path) -> tuple[StoreLocation, Callable[..., None]]:
    """A store of few tracks, and what brings it and its indexes up to date with others."""
    store = StoreLocation(str(tmp_path / "store"))

    def follow(*names: str) -> None:
        embed_here(store, make_catalog([track for track in TRACKS if track["track_id"] in names]), tiny_checkpoint)
        build_indexes(store)

    follow("caves", "crossroads", "desert", "caribbean")
    return store, follow


def test_a_newer_index_takes_over_under_load_and_no_deleted_track_is_found(
    changing: tuple[StoreLocation, Callable[..., None]],
) -> None:
    store, follow = changing
    state = ServiceState(ServiceSettings(store, poll_interval_s=0.05))
    is_over, is_swapped = threading.Event(), threading.Event()
    seen: list[tuple[bool, Any]] = []

    def ask(client: TestClient) -> None:
        while not is_over.is_set():
            is_late = is_swapped.is_set()
            answers = [client.get(f"/search/track/caves?resolution={name}") for name in ("global", "0.5hz")]
            seen.extend((is_late, answer) for answer in answers)

    with TestClient(create_app(state)) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, client) for _ in range(4)]
        try:
            follow("caves", "crossroads", "desert", "mountain")  # one is deleted, one is new
            for _ in range(200):
                if {generation.manifest.version for generation in state.generations.values()} == {2}:
                    break
                threading.Event().wait(0.05)
            is_swapped.set()
            threading.Event().wait(0.3)
        finally:
            is_over.set()
        for one in asking:
            one.result()
    versions = set()
    for is_late, answer in seen:
        assert answer.status_code == 200
        body = answer.json()
        versions.add(body["index"]["version"])
        is_new = body["index"]["version"] == "00000002"
        assert is_new or not is_late
        assert set(ids_of(body)) == {"crossroads", "desert", "mountain" if is_new else "caribbean"}
    assert versions == {"00000001", "00000002"}
    assert b'musicfm_index_swaps_total{resolution="global"} 1.0' in state.metrics.render()


def test_a_request_keeps_the_index_that_it_began_with(changing: tuple[StoreLocation, Callable[..., None]]) -> None:
    store, follow = changing
    state = ServiceState(ServiceSettings(store))
    before = state.generation()
    follow("caves", "mountain")
    follow("caves", "desert")  # the files of the first version are cleared away
    assert sorted(state.refresh()) == ["0.5hz", "global"]
    assert state.refresh() == []
    assert {hit.track_id for hit in before.searcher.search_track("caves")} == {"crossroads", "desert", "caribbean"}
    assert {hit.track_id for hit in state.generation().searcher.search_track("caves")} == {"desert"}


def test_an_index_that_cannot_be_read_leaves_the_old_one_in_place(
    changing: tuple[StoreLocation, Callable[..., None]], caplog: pytest.LogCaptureFixture
) -> None:
    store, follow = changing
    state = ServiceState(ServiceSettings(store))
    follow("caves", "mountain")
    location = VectorIndex.open(store).location
    manifest = Path(location.version_url(2))
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert state.refresh() == ["0.5hz"]
    assert "does not open" in caplog.text
    assert state.generation().manifest.version == 1
    assert state.generation().searcher.search_track("caves")
    assert b'musicfm_index_failed_swaps_total{resolution="global"} 1.0' in state.metrics.render()
    manifest.write_bytes(whole)
    assert state.refresh() == ["global"]


def test_a_track_whose_file_is_gone_says_so(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "a.wav").write_bytes((MUSIC / "crossroads.wav").read_bytes())
    store = StoreLocation(str(tmp_path / "store"))
    embed_here(store, make_catalog([{"track_id": "a", "file": "a.wav"}], str(tmp_path)), tiny_checkpoint)
    build_indexes(store)
    client = TestClient(create_app(ServiceState(ServiceSettings(store))))
    (tmp_path / "a.wav").unlink()
    answer = client.get("/tracks/a/audio")
    assert answer.status_code == 404
    assert str(tmp_path) not in answer.text


def test_an_index_that_was_removed_is_served_no_longer(
    changing: tuple[StoreLocation, Callable[..., None]],
) -> None:
    store, follow = changing
    follow("caves", "crossroads", "desert", "mountain")
    state = ServiceState(ServiceSettings(store))
    client = TestClient(create_app(state))
    assert client.get("/search/track/caves").status_code == 200
    served = set(state.generations)
    for location in list_indexes(store):
        remove_index(location)
        state.refresh()
        served.discard(location.resolution)
        assert set(state.generations) == served
    answer = client.get("/search/track/caves")
    assert (answer.status_code, "results" in answer.json()) == (503, False)


def test_a_passage_of_a_snapshot_that_a_vacuum_took_is_explained(
    changing: tuple[StoreLocation, Callable[..., None]],
) -> None:
    store, follow = changing
    follow("caves", "crossroads", "desert", "mountain")
    client = TestClient(create_app(ServiceState(ServiceSettings(store))), raise_server_exceptions=False)
    passage = {"start_s": 0, "end_s": 1e300}
    assert client.get("/search/track/caves", params=passage).status_code == 200
    writer = StoreWriter(store, "maintenance")
    compact_store(writer)
    assert vacuum_store(writer, 0) > 0
    answer = client.get("/search/track/caves", params=passage)
    assert (answer.status_code, list(answer.json())) == (503, ["detail"])


def test_a_picture_outlives_the_files_that_maintenance_removes(
    changing: tuple[StoreLocation, Callable[..., None]],
) -> None:
    store, follow = changing
    follow("caves", "crossroads", "desert", "mountain")
    state = ServiceState(ServiceSettings(store))
    before = state.compare_with_itself("caves")
    writer = StoreWriter(store, "maintenance")
    compact_store(writer)
    assert vacuum_store(writer, 0) > 0
    after = state.compare_with_itself("caves")
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after.values, before.values)
    assert state.compare_with_itself("nobody") is None


def test_a_taken_down_track_is_returned_by_nothing_from_the_moment_on_at_which_the_command_has_returned(
    changing: tuple[StoreLocation, Callable[..., None]], tmp_path: Path
) -> None:
    store, _ = changing
    (tmp_path / "ids.txt").write_text("desert\n")
    arguments = ["--store", store.url, "--ids", str(tmp_path / "ids.txt")]
    state = ServiceState(ServiceSettings(store, poll_interval_s=0.05))
    is_down, is_over = threading.Event(), threading.Event()
    seen: list[tuple[bool, set[str]]] = []

    def ask(client: TestClient) -> None:
        while not is_over.is_set():
            was_down = is_down.is_set()
            found = set(ids_of(get(client, "/search/track/caves", k=10)))
            for path in ("/tracks?prefix=des", "/map"):
                found |= {track["track_id"] for track in get(client, path)["tracks"]}
            found |= {"desert"} if client.get("/tracks/desert").status_code != 404 else set()
            seen.append((was_down, found))

    with TestClient(create_app(state)) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client) for _ in range(8)]
        try:
            wait_until(lambda: len(seen) > 8)
            assert delete_tracks.main(arguments) == 0
            is_down.set()
            num_before = len(seen)
            wait_until(lambda: len(seen) > num_before + 24)
        finally:
            is_over.set()
        for future in asked:
            future.result()
        assert any("desert" in found for was_down, found in seen if not was_down)
        assert not any("desert" in found for was_down, found in seen if was_down)
        assert sum(was_down for was_down, _ in seen) >= 8
        assert delete_tracks.main([*arguments, "--restore"]) == 0
        assert "desert" in ids_of(get(client, "/search/track/caves", k=10))


def wait_until(is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.01)
