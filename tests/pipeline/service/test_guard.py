from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from pipeline.service.guard import SIGNATURE_LIFETIME_S, Access, Guard, Metrics

TOKEN = "correct horse battery".replace(" ", "-")
BEARER = {"authorization": f"Bearer {TOKEN}"}
AUDIO = "/tracks/a b/ç?.mp3/audio"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def make_client(access: Access, metrics: Metrics | None = None, host: str = "localhost") -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    guard = Guard(app, access, metrics or Metrics(), max_upload_bytes=1000)
    return TestClient(guard, base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.fixture
def locked() -> TestClient:
    return make_client(Access(TOKEN))


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json", "/page/page.js"])
def test_the_page_and_the_health_are_open(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/info", "/tracks", "/search/track/health", "/metrics", "/map", AUDIO, "/health/", "/page"]
)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"],
)
def test_everything_else_asks_for_the_token(locked: TestClient, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    answer = locked.get(path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens_everything(locked: TestClient, scheme: str) -> None:
    assert locked.get("/info", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200


def test_a_signed_path_needs_no_token_and_shows_none(locked: TestClient) -> None:
    url = Access(TOKEN).sign(AUDIO)
    assert unquote(url).startswith(f"{AUDIO}?expires=")
    assert TOKEN not in url
    assert locked.get(url).status_code == 200


def test_a_signature_opens_its_own_path_alone_and_only_to_read(locked: TestClient) -> None:
    path, _, query = Access(TOKEN).sign(AUDIO).partition("?")
    assert locked.get(f"/tracks/other/audio?{query}").status_code == 401
    assert locked.post(f"{path}?{query}").status_code == 401
    assert locked.get(f"{path}?{query}0").status_code == 401
    assert locked.get(f"{path}?expires=99999999999&{query.partition('&')[2]}").status_code == 401
    assert locked.get(f"{path}?expires=&signature=").status_code == 401
    assert make_client(Access(f"{TOKEN}2")).get(f"{path}?{query}").status_code == 401


def test_a_signature_ends(locked: TestClient) -> None:
    assert locked.get(Access(TOKEN).sign(AUDIO, now_s=1000.0)).status_code == 401
    assert f"expires={1000 + int(SIGNATURE_LIFETIME_S)}" in Access(TOKEN).sign(AUDIO, now_s=1000.0)


def test_without_a_token_paths_are_not_signed() -> None:
    assert unquote(Access().sign(AUDIO)) == AUDIO


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_a_local_service_answers_for_this_machine(host: str) -> None:
    assert make_client(Access(is_local=True)).get("/info", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""])
def test_a_local_service_answers_for_no_other_name(host: str) -> None:
    assert make_client(Access(is_local=True)).get("/info", headers={"host": host}).status_code == 421
    assert make_client(Access(is_local=False)).get("/info", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("status", [200, 401])
def test_browsers_are_told_to_take_nothing_from_elsewhere(locked: TestClient, status: int) -> None:
    answer = locked.get("/info", headers=BEARER if status == 200 else {})
    assert answer.status_code == status
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_that_states_too_much_is_refused_unread() -> None:
    async def call_never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application was called")

    guard = Guard(call_never, Access(), Metrics(), max_upload_bytes=1000)
    answer = TestClient(guard).post("/x", content=b"x" * 100_000)
    assert answer.status_code == 413
    assert "expected a file of at most" in answer.json()["detail"]


def test_a_body_that_states_nothing_is_cut_off() -> None:
    def send() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    metrics = Metrics()
    assert make_client(Access(), metrics).post("/x", content=send()).status_code == 413
    assert b'status="413"' in metrics.render()


@pytest.mark.parametrize("length", ["-1", "many", "1e3", "٣"])
def test_a_length_that_is_no_number_is_refused(locked: TestClient, length: str) -> None:
    headers = {"content-length": length.encode(), **{k: v.encode() for k, v in BEARER.items()}}
    assert locked.post("/x", headers=headers).status_code == 400  # type: ignore[arg-type]


def test_requests_are_counted_by_pattern_and_never_by_id() -> None:
    metrics = Metrics()
    client = make_client(Access(TOKEN), metrics)
    for path in ("/secret-id", "/secret-id", "/health"):
        client.get(path)
    text = metrics.render().decode()
    assert "secret-id" not in text
    assert 'musicfm_requests_total{route="none",status="401"} 2.0' in text
    assert 'status="200"} 1.0' in text


def test_secrets_do_not_show_in_the_settings() -> None:
    assert TOKEN not in repr(Access(TOKEN))
