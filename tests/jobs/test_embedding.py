from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import embed_catalog, embed_fma, embed_msd
from jobs.arguments import parse_layers, parse_resolutions
from jobs.embedding import (
    build_embed_parser,
    choose_exit_code,
    print_report,
    read_settings,
    run_embed_command,
)
from pipeline.config import DEFAULT_RESOLUTIONS, RESOLUTIONS, RunSettings
from pipeline.errors import RunError
from pipeline.location import StoreLocation
from pipeline.run.run import RunReport
from pipeline.store.books import RunCounts
from pipeline.store.tables import FORMAT_PROPERTY, create_tables, open_table
from tests.corpus import encode_clip, load_music

Command = Callable[[Sequence[str]], int]
SECRET = "hunter2-and-more"


@dataclass(frozen=True)
class Place:
    """A folder with three clips, a checkpoint, and where a store would go."""

    root: Path
    checkpoint: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    def arguments(self, **changed: str) -> list[str]:
        flags = {"audio": str(self.root / "music"), "store": str(self.store), "checkpoint": str(self.checkpoint)}
        flags["layers"] = "2"
        return [text for name, value in (flags | changed).items() for text in (f"--{name}", value)]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path) -> Place:
    (tmp_path / "music").mkdir()
    for name in ("c.wav", "a.wav", "b.flac"):
        encode_clip(tmp_path / "music" / name, load_music(seconds=0.2, sample_rate=24_000), 24_000)
    return Place(tmp_path, tiny_checkpoint)


@dataclass(frozen=True)
class Result:
    """What a command returned and printed."""

    exit_code: int
    stdout: str
    stderr: str


Call = Callable[..., Result]


def start_nothing(settings: RunSettings, is_listed: Future[bool], starts_ray: Future[bool]) -> Callable[[], None]:
    starts_ray.set_result(False)
    return lambda: None


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Call:
    if request.node.get_closest_marker("ray") is None:  # Ray would start ahead, in vain
        monkeypatch.setattr("pipeline.run.start._start_early", start_nothing)

    def run(arguments: Sequence[str], command: Command = embed_catalog.main) -> Result:
        capfd.readouterr()
        try:
            exit_code = command(arguments)
        except SystemExit as end:
            exit_code = int(str(end.code))
        return Result(exit_code, *capfd.readouterr())

    return run


def list_tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2
    assert result.stderr.endswith("\n")
    assert [line for line in result.stderr.splitlines() if " error: " in line] == result.stderr.splitlines()[-1:]
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resolutions", "16hz,17hz,12hz"], ["50hz, 25hz, 16hz, 8hz, 0.5hz, global", "found 17hz, 12hz"]),
        (["--resolutions", " , "], ["50hz", "found none"]),
        (["--layers", "x"], ["numbers such as 7 or 4,7,12", "found 'x'"]),
        (["--layers", "1,,2"], ["found '1,,2'"]),
        (["--layers", "99"], ["expected 0 to 3", "tiny.pt", "found 99"]),
        (["--layer", "-1"], ["expected 0 to 3", "found -1"]),
        (["--precision", "nonsense"], ["'nonsense'", "float32", "bfloat16"]),
        (["--windows", "both"], ["'both'", "shared", "task"]),
        (["--attention", "fast"], ["'fast'", "sdpa"]),
        (["--attention", "flash"], ["bfloat16 or float16", "found precision 'float32'", "sdpa"]),
        (["--device", "tpu"], ["'tpu'", "cuda", "cpu"]),
        (["--limit", "0"], ["expected 1 or more, found 0"]),
        (["--limit", "many"], ["expected a whole number, found 'many'"]),
        (["--batch-size", "-3"], ["expected 1 or more, found -3"]),
        (["--mantissa-bits", "24"], ["expected 1 to 23, found 24"]),
        (["--max-duration-s", "0"], ["expected a number over 0, found 0"]),
        (["--commit-interval-s", "nan"], ["expected a number over 0, found nan"]),
        (["--commit-interval-s", "soon"], ["expected a number, found 'soon'"]),
        (["--prune", "--limit", "2"], ["--prune with --limit", "give one of them"]),
        (["--stats", "no/such.json"], ["no/such.json"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
    ],
)
def test_a_mistake_is_one_line_and_no_work(flags: list[str], words: list[str], place: Place, call: Call) -> None:
    assert_refused(call([*place.arguments(), *flags]), *words)
    assert not place.store.exists()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_told(place: Place, call: Call) -> None:
    arguments = [*place.arguments(), "--attention", "flash", "--precision", "bfloat16"]
    assert_refused(call(arguments), "needs the flash-attn package", "sdpa")
    assert not place.store.exists()


@pytest.mark.parametrize("name", ["audio", "store", "checkpoint"])
def test_what_must_be_given_is_named(name: str, place: Place, call: Call) -> None:
    arguments = place.arguments()
    position = arguments.index(f"--{name}")
    assert_refused(call(arguments[:position] + arguments[position + 2 :]), f"required: --{name}")


def test_a_missing_checkpoint_is_named(place: Place, call: Call) -> None:
    missing = str(place.root / "gone.pt")
    assert_refused(call(place.arguments(checkpoint=missing)), missing)
    assert not place.store.exists()


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors"])
def test_a_checkpoint_that_is_noise_is_named(name: str, place: Place, call: Call) -> None:
    (place.root / name).write_bytes(np.random.default_rng(0).bytes(50_000))
    assert_refused(call(place.arguments(checkpoint=str(place.root / name))), name)
    assert not place.store.exists()


def test_missing_audio_is_named(place: Place, call: Call) -> None:
    missing = str(place.root / "gone")
    assert_refused(call(place.arguments(audio=missing)), missing)
    assert not place.store.exists()


def test_a_folder_without_audio_is_told(place: Place, call: Call) -> None:
    (place.root / "pictures").mkdir()
    (place.root / "pictures" / "cover.jpg").write_bytes(b"picture")
    result = call(place.arguments(audio=str(place.root / "pictures")))
    assert_refused(result, "expected audio at", "pictures", "none among 1 files")
    assert not place.store.exists()


def test_two_files_that_claim_one_id_are_both_named(place: Place, call: Call) -> None:
    manifest = place.root / "music" / "list.csv"
    manifest.write_text("track_id,uri\na,a.wav\nb,b.flac\na,c.wav\n")
    assert_refused(call(place.arguments(audio=str(manifest))), "'a'", "/music/a.wav", "/music/c.wav")
    assert not place.store.exists()


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_store_of_a_newer_format_is_left_alone(extra: list[str], place: Place, call: Call) -> None:
    location = StoreLocation(str(place.store))
    create_tables(location)
    open_table(location, "tracks").alter.set_table_properties({FORMAT_PROPERTY: "9"}, False)
    before = list_tree(place.store)
    assert_refused(call([*place.arguments(), *extra]), "has format 9", "writes format 4", "another --store")
    assert list_tree(place.store) == before


def test_a_store_below_a_file_is_told(place: Place, call: Call) -> None:
    (place.root / "file").write_bytes(b"a file")
    result = call(place.arguments(store=str(place.root / "file" / "store")))
    assert_refused(result, str(place.root / "file" / "store"))
    assert (place.root / "file").read_bytes() == b"a file"


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        (embed_fma.main, ["--subset", "small"], ["tracks.csv", "name it as metadata"]),
        (embed_fma.main, ["--subset", "tiny"], ["'tiny'", "small"]),
        (embed_msd.main, ["--split", "no/such.txt"], ["no/such.txt"]),
        (embed_msd.main, ["--layers", "99"], ["expected 0 to 3"]),
    ],
)
def test_the_other_commands_refuse_in_the_same_way(
    command: Command, flags: list[str], words: list[str], place: Place, call: Call
) -> None:
    for old, new in (("a.wav", "000/000002.mp3"), ("b.flac", "TRAXLZU12903D05F94.mp3")):
        (place.root / "music" / new).parent.mkdir(exist_ok=True)
        (place.root / "music" / old).rename(place.root / "music" / new)
    assert_refused(call([*place.arguments(), *flags], command), *words)
    assert not place.store.exists()


@pytest.mark.parametrize("text", [SECRET, f"={SECRET}"])
def test_a_secret_in_a_malformed_option_is_not_repeated(text: str, place: Place, call: Call) -> None:
    for flag in ("--storage-option", "--audio-option"):
        assert_refused(call([*place.arguments(), flag, text]), f"{flag}: expected KEY=VALUE")
        assert SECRET not in call([*place.arguments(), flag, text]).stderr


@pytest.mark.parametrize(
    "flags",
    [
        [f"--storage-options=secret={SECRET}"],
        ["--storage-options", f"secret={SECRET}"],
        ["--storage-option", "key=me", f"secret={SECRET}"],
    ],
)
def test_a_secret_behind_an_unknown_flag_is_not_repeated(flags: list[str], place: Place, call: Call) -> None:
    result = call([*place.arguments(), *flags])
    assert_refused(result, "unrecognized arguments")
    assert SECRET not in result.stderr


@pytest.mark.parametrize("command", [embed_catalog.main, embed_fma.main, embed_msd.main])
def test_help_explains_every_flag(command: Command, call: Call) -> None:
    result = call(["--help"], command)
    assert result.exit_code == 0
    for flag in ("--audio", "--store", "--checkpoint", "--layers", "--resolutions", "--windows", "--dry-run"):
        assert flag in result.stdout
    assert "(default: 7)" in result.stdout
    assert "Sequence" not in result.stdout


@pytest.mark.ray
def test_a_dry_run_says_what_it_would_do(place: Place, call: Call, local_ray: None) -> None:
    secrets = ["--storage-option", f"secret={SECRET}", "--audio-option", f"password={SECRET}"]
    result = call([*place.arguments(), "--layer", "3,1", "--dry-run", *secrets])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["dry_run"] is True
    expected = {"planned": 3, "embedded": 3, "unchanged": 0, "failed": 0, "deleted": 0, "store_version": None}
    assert {name: report[name] for name in expected} == expected
    assert list(report["recipes"].values()) == [3, 1]
    assert report["recipe"] == next(iter(report["recipes"]))
    assert report["store"] == str(place.store)
    assert report["seconds"] >= 0
    assert SECRET not in result.stdout + result.stderr
    assert not place.store.exists()


@pytest.mark.ray
def test_a_limit_takes_the_first_tracks(place: Place, call: Call, local_ray: None) -> None:
    result = call([*place.arguments(), "--limit", "2", "--dry-run", "--layers", "1"])
    assert json.loads(result.stdout.splitlines()[-1])["planned"] == 2


def test_a_run_that_breaks_off_ends_with_one_line_and_one(place: Place, call: Call) -> None:
    def break_off(flags: argparse.Namespace) -> pa.Table:
        raise RunError("the store is full")

    def command(arguments: Sequence[str] | None) -> int:
        return run_embed_command(build_embed_parser(None, "", "", "msd"), break_off, arguments)

    result = call(["--store", str(place.store)], command)
    assert result.exit_code == 1
    assert result.stderr.endswith(": broke off: the store is full\n")
    assert result.stderr.count(": ") == 2  # before it stands what the run was at


def make_report(counts: RunCounts) -> RunReport:
    return RunReport("run1", counts, {"r7": 7, "r4": 4}, 12, 61.23456, 4096, counts.closes)


def test_the_report_lists_failures_and_ends_with_json(call: Call) -> None:
    reasons = {"too_short": 1, "truncated": 3, "silent": 1}
    counts = RunCounts(20, 10, 5, 5, 2, reasons)

    def report(arguments: Sequence[str] | None) -> int:
        print_report(make_report(counts), "s3://bucket/features", False)
        return 0

    lines = call([], report).stdout.splitlines()
    assert lines[1] == "20 tracks: 10 embedded, 5 unchanged, 5 failed, 2 deleted in 61.2 s, 0.004 MB written"
    assert [line.split() for line in lines[2:5]] == [["3", "truncated"], ["1", "silent"], ["1", "too_short"]]
    assert json.loads(lines[5]) == {
        "planned": 20,
        "embedded": 10,
        "unchanged": 5,
        "failed": 5,
        "withheld": 0,
        "moved": 0,
        "copied": 0,
        "deleted": 2,
        "not_pruned": 0,
        "undecided": 0,
        "recipe": "r7",
        "recipes": {"r7": 7, "r4": 4},
        "store": "s3://bucket/features",
        "store_version": 12,
        "seconds": 61.235,
        "failures": reasons,
        "bytes_written": 4096,
        "run_id": "run1",
        "dry_run": False,
        "closed": True,
        "report": None,
    }
    assert len(lines) == 6


def test_the_first_failures_are_named_and_what_is_special_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    counts = RunCounts(20, 4, 9, 5, 0, {"truncated": 5}, withheld=2, moved=3, copied=1)
    counts.not_pruned, counts.prune_refusal = 7, "--prune deleted none of the 7 tracks"
    named = [{"track_id": f"{letter}.mp3", "message": f"{letter} is cut"} for letter in "ab"]
    print_report(replace(make_report(counts), failures=named, num_undecided=6), "store", False)
    out = capsys.readouterr().out
    assert "5 failed, 2 withheld, 0 deleted" in out
    assert "a.mp3: a is cut" in out
    assert "and 3 more; musicfm failures --store store" in out
    assert "3 moved and 1 copied" in out
    assert "6 of those to embed were not looked into" in out
    assert "--prune deleted none of the 7 tracks" in out
    line = json.loads(out.splitlines()[-1])
    assert line["planned"] == line["embedded"] + line["unchanged"] + line["failed"] + line["withheld"]
    assert (line["moved"], line["copied"], line["not_pruned"], line["undecided"]) == (3, 1, 7, 6)


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        (RunCounts(5, 5), 0),
        (RunCounts(5, 5, not_pruned=7), 3),
        (RunCounts(5, 4), 1),
        (RunCounts(5, 4, not_pruned=7), 1),
    ],
)
def test_a_scheduler_hears_of_open_books_and_of_a_refusal_to_prune(counts: RunCounts, code: int) -> None:
    assert choose_exit_code(make_report(counts)) == code


def test_the_help_says_what_a_refusal_to_prune_exits_with() -> None:
    text = " ".join(build_embed_parser(None, "", "").format_help().split())
    assert "and the exit code is 3" in text


def test_open_books_say_how_many_tracks_are_lost(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(make_report(RunCounts(20, 10, 5, 2)), "store", False)
    out = capsys.readouterr().out
    assert "the books do not close: 3 tracks have no outcome; run the same command again" in out
    assert json.loads(out.splitlines()[-1])["closed"] is False


def test_defaults_are_those_of_the_settings() -> None:
    flags = build_embed_parser(None, "", "", "msd").parse_args(["--store", "x"])
    assert (flags.layers, flags.resolutions, flags.checkpoint) == ((7,), DEFAULT_RESOLUTIONS, "msd")
    assert (flags.windows, flags.precision, flags.attention, flags.mantissa_bits) == (
        "shared",
        "float32",
        "sdpa",
        10,
    )
    assert (flags.storage_option, flags.audio_option, flags.limit, flags.batch_size) == ([], [], None, None)


def test_options_are_pairs_split_at_the_first_sign() -> None:
    options = ["--storage-option", "secret=a=b==", "--storage-option", "token=", "--audio-option", "anon=true"]
    flags = build_embed_parser(None, "", "", "msd").parse_args(["--store", "x", *options])
    assert dict(flags.storage_option) == {"secret": "a=b==", "token": ""}
    assert dict(flags.audio_option) == {"anon": "true"}


@pytest.mark.parametrize("flag", ["--layer", "--layers"])
def test_layers_have_two_spellings(flag: str) -> None:
    flags = build_embed_parser(None, "", "", "msd").parse_args(["--store", "x", flag, "4, 7,4,0"])
    assert flags.layers == (4, 7, 0)


def test_layers_and_resolutions_are_read_once_each_in_order() -> None:
    assert parse_layers("12") == (12,)
    assert parse_layers("7,4,7") == (7, 4)
    assert parse_resolutions(" Global,8HZ,,global ") == ("global", "8hz")
    assert parse_resolutions(",".join(RESOLUTIONS)) == tuple(RESOLUTIONS)


def test_a_catalogs_name_reaches_the_run(place: Place) -> None:
    parser = build_embed_parser("embed", "", "musicfm embed")
    flags = parser.parse_args([*place.arguments()[2:], "--catalog", "live"])
    assert read_settings(flags).catalog == "live"
    assert read_settings(parser.parse_args(place.arguments()[2:])).catalog is None
