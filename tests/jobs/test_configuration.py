from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import convert_checkpoint, finetune, pretrain, search
from jobs.arguments import OneLineParser
from jobs.configuration import HIDDEN, describe_flags, hide_credentials
from jobs.embedding import build_embed_parser, run_embed_command
from pipeline.config import RunSettings
from pipeline.run.run import RunReport
from tests.commands import COMMANDS

SECRET = "hunter2-and-more"
Parse = Callable[..., argparse.Namespace]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write_file(text: str) -> str:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], write: Callable[[str], str]) -> Callable[..., str]:
    def refused(text: str, parser: OneLineParser | None = None, arguments: Sequence[str] = ()) -> str:
        with pytest.raises(SystemExit) as caught:
            (parser or make_parser()).parse_args(["--config", write(text), *arguments])
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "settings.toml" in message
        return message

    return refused


def make_parser() -> OneLineParser:
    parser = build_embed_parser(None, "", "", "msd")
    parser.add_argument("--audio", required=True)
    return parser


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    flags = vars(make_parser().parse_args(arguments))
    del flags["config"]
    return flags


WHOLE_FILE = """
audio = "s3://bucket/msd"
store = "s3://bucket/features"
layers = [4, 7]
resolutions = "global,0.5hz"
mantissa_bits = 23
max-duration-s = 600.5
batch-size = 8
dry-run = true
prune = false

[storage-option]
endpoint_url = "http://127.0.0.1:8333"
secret = "a=b"
anon = true
"""


def test_a_file_says_what_flags_say(write: Callable[[str], str]) -> None:
    flags = ["--audio", "s3://bucket/msd", "--store", "s3://bucket/features", "--layers", "4,7", "--dry-run"]
    flags += ["--resolutions", "global,0.5hz", "--mantissa-bits", "23", "--max-duration-s", "600.5"]
    flags += ["--batch-size", "8", "--storage-option", "endpoint_url=http://127.0.0.1:8333"]
    flags += ["--storage-option", "secret=a=b", "--storage-option", "anon=true"]
    assert parse(["--config", write(WHOLE_FILE)]) == parse(flags)
    assert parse([f"--config={write(WHOLE_FILE)}"]) == parse(flags)
    assert parse(["--conf", write(WHOLE_FILE)]) == parse(flags)


@pytest.mark.parametrize("config_first", [True, False])
def test_flags_override_the_file(config_first: bool, write: Callable[[str], str]) -> None:
    config = ["--config", write(WHOLE_FILE)]
    flags = ["--layer", "1", "--no-dry-run", "--prune", "--store", "here", "--storage-option", "secret=other"]
    found = parse([*config, *flags] if config_first else [*flags, *config])
    assert (found["layers"], found["dry_run"], found["prune"], found["store"]) == ((1,), False, True, "here")
    assert (found["mantissa_bits"], found["audio"]) == (23, "s3://bucket/msd")
    assert dict(found["storage_option"])["secret"] == "other"


values = {
    "layers": st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True),
    "mantissa-bits": st.integers(1, 23),
    "windows": st.sampled_from(["shared", "task"]),
    "prune": st.booleans(),
    "commit-interval-s": st.floats(0.5, 1e6),
    "checkpoint": st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=9),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.fixed_dictionaries({}, optional=values), data=st.data())
def test_it_makes_no_difference_what_is_in_the_file_and_what_on_the_line(
    chosen: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    in_file = {name: value for name, value in chosen.items() if data.draw(st.booleans())}
    (tmp_path / "some.toml").write_text("".join(f"{key} = {json.dumps(item)}\n" for key, item in in_file.items()))
    required = ["--audio", "a", "--store", "s"]
    everything = [word for name, value in chosen.items() for word in as_words(name, value)]
    rest = [word for name, value in chosen.items() if name not in in_file for word in as_words(name, value)]
    assert parse([*required, "--config", str(tmp_path / "some.toml"), *rest]) == parse([*required, *everything])


def as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("mantisa-bits", "mantissa-bits"),
        ("Layers", "layers"),
        ("retry_failure", "retry-failures"),
        ("comit_interval", "commit-interval-s"),
        ("config", "resolutions"),  # a file names no other file
        ("no-prune", "prune"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str, refuse: Callable[..., str]) -> None:
    message = refuse(f"{key} = 1")
    assert f"found '{key}'" in message
    if key != "config":
        assert f"the nearest is '{nearest}'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers = 'x'", ["layers: expected numbers such as 7 or 4,7,12; found 'x'"]),
        ("mantissa-bits = 24", ["mantissa-bits: expected 1 to 23, found 24"]),
        ("mantissa-bits = 1.5", ["mantissa-bits: expected a whole number, found '1.5'"]),
        ("precision = 'half'", ["precision: expected one of float32, tf32", "found 'half'"]),
        ("store = ['a', 'b']", ["store: expected one value, found a list"]),
        ("store = true", ["store: expected a text or a number, found bool"]),
        ("store = 1979-05-27", ["store: expected a text or a number, found date"]),
        ("prune = 'yes'", ["prune: expected true or false, found str"]),
        ("prune = 1", ["prune: expected true or false, found int"]),
        ("layer = 1\nlayers = 2", ["'layer' and 'layers' set the same flag"]),
        ("store = 'a'\nstore = 'b'", ["expected TOML", "Cannot overwrite a value"]),
        ("store = ", ["expected TOML", "Invalid value"]),
    ],
)
def test_a_value_that_the_flag_does_not_take_is_told(
    text: str, words: list[str], refuse: Callable[..., str]
) -> None:
    message = refuse(text)
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", [f"storage-option = '{SECRET}'", f"storage-option = {{secret = ['{SECRET}']}}"])
def test_a_secret_in_the_wrong_place_is_not_repeated(text: str, refuse: Callable[..., str]) -> None:
    message = refuse(text)
    assert "storage-option: expected a table" in message
    assert SECRET not in message


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--config", str(tmp_path / "gone.toml")])
    assert "gone.toml" in capsys.readouterr().err


def test_a_flag_on_the_line_takes_the_place_of_one_that_excludes_it(write: Callable[[str], str]) -> None:
    config = ["--config", write("store = 's'\ntrack = 'caves'\nk = 3")]
    flags = search.build_parser().parse_args([*config, "--audio", "file.mp3"])
    assert (flags.track, flags.audio, flags.k) == (None, ["file.mp3"], 3)
    assert search.build_parser().parse_args(config).track == ["caves"]


WITHOUT_STORE = (pretrain, finetune)


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_every_command_takes_a_file(module: Any, write: Callable[[str], str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        module.main(["--config", write("audi = 'x'" if module in WITHOUT_STORE else "stor = 'x'")])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    nearest = {convert_checkpoint: "stats", **dict.fromkeys(WITHOUT_STORE, "audio")}.get(module, "store")
    assert f"the nearest is '{nearest}'" in message


def test_the_effective_flags_are_kept_without_secrets(
    write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[RunSettings] = []

    def run(_: object, run_settings: RunSettings) -> RunReport:
        kept.append(run_settings)
        raise SystemExit(0)

    monkeypatch.setattr("jobs.embedding.start_preview", run)
    text = WHOLE_FILE + f"token = '{SECRET}'\n[audio-option]\npassword = '{SECRET}'\n"
    line = ["--config", write(text), "--layers", "3,1", "--stats", f"https://me:{SECRET}@host/s.json?sig={SECRET}"]
    with pytest.raises(SystemExit):
        run_embed_command(make_parser(), lambda _: None, line)
    configuration = kept[0].configuration
    assert SECRET not in json.dumps(configuration)
    assert configuration["layers"] == [3, 1]
    assert configuration["resolutions"] == ["global", "0.5hz"]
    assert configuration["mantissa-bits"] == 23
    assert configuration["precision"] == "float32"
    assert configuration["storage-option"] == dict.fromkeys(("endpoint_url", "secret", "anon", "token"), HIDDEN)
    assert configuration["audio-option"] == {"password": HIDDEN}
    assert configuration["stats"] == f"https://{HIDDEN}@host/s.json?{HIDDEN}"
    assert not {"config", "help"} & set(configuration)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"https://{SECRET}@host/a.pt", f"https://{HIDDEN}@host/a.pt"),
        (f"s3://me:{SECRET}/with/slashes@bucket/a", f"s3://{HIDDEN}@bucket/a"),
        (f"https://host/a.pt?sig={SECRET}#{SECRET}", f"https://host/a.pt?{HIDDEN}"),
    ],
)
def test_credentials_in_a_url_are_left_out(text: str, kept: str) -> None:
    assert hide_credentials(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b.mp3",
        "msd",
        "s3://bucket/a?b#c/d",
        "hf://minzwon/MusicFM/pretrained_msd.pt",
        "/music",
        "https://host/a.pt",
    ],
)
def test_a_url_without_credentials_is_kept_as_it_is(text: str) -> None:
    assert hide_credentials(text) == text


def test_every_flag_is_described_once() -> None:
    parser = make_parser()
    flags = parser.parse_args(["--audio", "a", "--store", "s"])
    names = {name.replace("-", "_") for name in describe_flags(parser.table, flags)}
    assert names == set(vars(flags)) - {"config"}
