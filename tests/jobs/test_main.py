"""``musicfm``: one name for all commands."""

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS, run_command
from tests.infra.commands import Command, parse

HEAVY = {
    "torch",
    "torchaudio",
    "ray",
    "pyarrow",
    "pandas",
    "numpy",
    "fsspec",
    "faiss",
    "deltalake",
    "av",
    "starlette",
}


def test_the_table_names_every_file_that_can_be_run() -> None:
    folder = Path(str(sys.modules["jobs"].__file__)).parent
    scripts = {path.stem for path in folder.glob("*.py") if "run_script(main)" in path.read_text()}
    assert {module for module, _ in COMMANDS.values()} == scripts
    assert len(COMMANDS) == len(scripts)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, purpose) in COMMANDS.items():
        assert sum(line.split(maxsplit=1) == [name, purpose] for line in lines) == 1


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    output = capsys.readouterr().out
    assert output == f"musicfm {version('music-feature-store')}\n"
    assert re.fullmatch(r"musicfm \d+\.\d+\.\d+\n", output)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("serach", "search"), ("embed_msd", "embed-msd"), ("neighbours", "neighbors"), ("--verison", "--version")],
)
def test_an_unknown_command_names_the_nearest(name: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--store", "s"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        f"musicfm: error: expected a command, found {name!r}; the nearest is {nearest!r} (see musicfm --help)\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_that_works_and_no_empty_defaults(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: musicfm {name} ")
    assert not re.search(r"\(default: (None|False|\[\]|\(\))\)", " ".join(text.split()))
    program, command, *words = shlex.split(text.partition("\nexample:\n")[2])
    assert (program, command) == ("musicfm", name)
    assert parse(Command(COMMANDS[name][0], tuple(words)), tmp_path) is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_names_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command([name, "--confg", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"musicfm {name}: error: unrecognized arguments: --confg; the nearest is --config "
        f"(see musicfm {name} --help)\n"
    )


def test_help_and_mistakes_wait_for_nothing_that_is_slow_to_import(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text("stor = 1")
    program = f"""
import sys
from jobs.__main__ import COMMANDS, run_command
for name in COMMANDS:
    for words in (["--help"], ["--frobnicate"], [], ["--config", {str(tmp_path / "some.toml")!r}]):
        try:
            run_command([name, *words])
        except SystemExit as end:
            assert end.code == (0 if words == ["--help"] else 2), (name, words)
        else:
            raise AssertionError((name, words))
import json
print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert len(done.stderr.splitlines()) == 3 * len(COMMANDS)
