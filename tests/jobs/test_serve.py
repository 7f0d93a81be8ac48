import socket
from pathlib import Path

import pytest

from jobs.serve import TOKEN_VARIABLE, build_parser, is_loopback, main, read_settings, read_token
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.service.port import claim_port
from tests.stores import KnownStore

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--store", "{}/none"], "no index"),
        (["--store", "{}/none", "--token-file", "{}/missing"], "cannot read the token"),
        (["--store", "{}/none", "--replicas", "0"], "expected a number over 0 for --replicas"),
        (["--store", "{}/none", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--store", "{}/none", "--port", "99999999"], "cannot listen on 127.0.0.1 port 99999999"),
        (["--store", "{}/store"], "no index"),
        (["--store", "{}/store", "--resolution", "0.5hz"], "no index for resolution 0.5hz"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    KnownStore(StoreLocation(str(tmp_path / "store"))).run({"a": "x", "b": "y"})
    port = [] if "--port" in arguments else ["--port", "0"]
    assert main([argument.format(tmp_path) for argument in arguments] + port) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    *words, line = errors.splitlines()
    assert text in line
    assert all(word.startswith("opening the index") for word in words)
    assert len(words) <= 1


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["--store", str(tmp_path), "--port", port]) == 2
    errors = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}" in errors
    assert len(errors.splitlines()) == 1


def test_any_free_port_can_be_asked_for() -> None:
    assert claim_port("127.0.0.1", 0) > 0
    assert claim_port("localhost", 0) > 0


@pytest.mark.parametrize(
    "text", ["short", "two words that are long", "ünicode-ünicode-ünicode", "", "tab\there-and-more-of-it"]
)
def test_a_token_that_no_header_can_carry_or_anyone_can_guess_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(UsageError, match="expected a token"):
        read_token(str(tmp_path / "token"))


def test_a_token_comes_from_the_file_or_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "another-token-entirely")
    assert read_token(None) == "another-token-entirely"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(str(tmp_path / "token")) == TOKEN


def test_the_token_and_the_options_do_not_show(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    flags = ["--store", "s3://b/x", "--token-file", str(tmp_path / "token")]
    flags += ["--storage-option", "secret=hidden1", "--audio-option", "secret=hidden2"]
    settings = read_settings(build_parser().parse_args(flags))
    assert settings.access.token == TOKEN
    assert not any(secret in repr(settings) for secret in (TOKEN, "hidden1", "hidden2"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_an_address_of_this_machine_alone_is_told_from_others(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
