"""The table of flags, held against what ``argparse`` itself makes of a word."""

import argparse
import contextlib
import io

import pytest

from jobs.arguments import OneLineParser, add_storage_option, add_switch
from jobs.search import build_parser


def make_parser() -> OneLineParser:
    parser = OneLineParser("search", "", "")
    for name in ("--store", "--layers", "-k"):
        parser.add_argument(*[name, "--layer"] if name == "--layers" else [name])
    group = parser.add_group("more").add_exclusive_group()
    group.add_argument("--start-s", "--start_s")
    group.add_argument("--audio")
    add_switch(parser, "--dry-run", "say what would be done")
    add_storage_option(parser, "--storage-option", "the store")
    return parser


def ask_argparse(word: str) -> str | None:
    """Return the flag that plain argparse takes a word for, by what it sets."""
    parser = argparse.ArgumentParser()
    for names in (["--store"], ["--layers", "--layer"], ["-k"], ["--start-s", "--start_s"], ["--audio"]):
        parser.add_argument(*names)
    parser.add_argument("--config")
    parser.add_argument("--dry-run", action=argparse.BooleanOptionalAction)
    parser.add_argument("--storage-option")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for words in ([f"{word}=x=y"], [word]):
            with contextlib.suppress(SystemExit):
                flags, rest = parser.parse_known_args(words)
                given = [name for name, value in vars(flags).items() if value is not None]
                if not rest and len(given) == 1:
                    return given[0]
    return None


@pytest.mark.parametrize(
    "name",
    ["--store", "--start-s", "--start_s", "--layers", "--audio", "--storage-option", "--no-dry-run", "--config"],
)
def test_a_beginning_of_a_flag_is_what_argparse_takes_it_for(name: str) -> None:
    table = make_parser().table
    for end in range(3, len(name) + 1):
        flag = table.find(f"{name[:end]}=x")
        taken = ask_argparse(name[:end])
        # Older argparse also refuses the beginning of two spellings of one flag.
        assert taken is None or (flag is not None and flag.dest == taken), name[:end]
        assert flag is None or taken is not None or len(flag.option_strings) > 1, name[:end]
        assert table.list_unknown([name[:end]]) == []


@pytest.mark.parametrize("word", ["--stores", "--frobnicate=1", "--start-sx", "--configs", "--no-store"])
def test_a_word_that_argparse_does_not_know_is_unknown(word: str) -> None:
    assert ask_argparse(word.partition("=")[0]) is None
    assert make_parser().table.list_unknown(["--store", "x", word]) == [word]


@pytest.mark.parametrize("word", ["-", "-k", "-5", "-x", "--", "--a b", "plain", "a--b"])
def test_what_may_be_a_value_is_left_to_argparse(word: str) -> None:
    assert make_parser().table.list_unknown([word]) == []


def test_what_stands_behind_two_dashes_is_a_value() -> None:
    assert make_parser().table.list_unknown(["--store", "x", "--", "--frobnicate"]) == []


def test_one_flag_voids_those_that_it_excludes() -> None:
    table = build_parser().table
    names = {flag.dest for flag in table.list_rivals([table.find("--audio")])}
    assert names == {"audio", "track"}
    assert table.list_rivals([table.find("--store")]) == []


def test_the_default_is_shown_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser("embed", "", "")
    parser.add_argument("--rate", default=0.5, help="how fast")
    parser.add_argument("--limit", help="how many")
    add_switch(parser, "--prune", "take out")
    add_storage_option(parser, "--option", "the store")
    parser.print_help()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--rate RATE how fast (default: 0.5)" in lines
    assert "--limit LIMIT how many" in lines
    assert "--prune, --no-prune take out" in lines
    assert sum("default" in line for line in lines) == 1


def test_pairs_add_up_and_start_anew_with_every_call() -> None:
    parser = make_parser()
    words = ["--audio", "a", "--storage-option", "a=1", "--storage-option", "b=2=3"]
    for _ in range(2):
        assert parser.parse_args(words).storage_option == [("a", "1"), ("b", "2=3")]
    assert parser.parse_args(["--audio", "a"]).storage_option == []
