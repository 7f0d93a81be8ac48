"""Every Python block of the README runs as it stands, in a fresh process, on the demo's store."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import embed_catalog
from tests.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A folder like the repository's root after `make demo`."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "demo", folder / "demo", ignore=shutil.ignore_patterns("store"))
    demo = folder / "demo"
    arguments = ["--audio", str(demo / "music"), "--store", str(demo / "store")]
    assert embed_catalog.main([*arguments, "--checkpoint", str(demo / "musicfm_nano.pt"), "--layer", "2"]) == 0
    return folder


def test_the_readme_shows_every_reader() -> None:
    for reader in ("duckdb", "polars", "DeltaTable", "DataLoader", "FeatureStore", "MusicFM25Hz"):
        assert any(reader in snippet for snippet in SNIPPETS)


@pytest.mark.ray
@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs_and_prints(index: int, demo_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", SNIPPETS[index]],
        cwd=demo_folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str, capsys: object) -> None:
    assert f"musicfm {name} " in README
    with pytest.raises(SystemExit) as caught:
        COMMANDS[name].main(["--help"])
    assert caught.value.code == 0


def list_folders() -> set[str]:
    """Return paths of the folders that the README's tree names, by their indents."""
    tree = README[README.index("## The tree") : README.index("## Licence")]
    parent, folders = "", set()
    for line in (line for line in tree.splitlines() if re.match(r"    ( *)\w+/ ", line)):
        name = line.split()[0]
        parent = name if line.startswith("    " + name) else parent
        folders.add(name if name == parent else parent + name)
    return folders


def test_the_tree_names_every_folder_and_no_other() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [Path(line) for line in tracked.splitlines()]
    if not paths:
        pytest.skip("not a git checkout")
    top = {f"{path.parts[0]}/" for path in paths if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    rooms = {
        f"{path.parts[0]}/{path.parts[1]}/"
        for path in paths
        if len(path.parts) > 2 and path.parts[0] in ("pipeline", "musicfm_model") and path.suffix == ".py"
    }
    assert list_folders() == top | rooms


@pytest.mark.ray
def test_the_searching_commands_work_as_they_stand(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("## Searching")[1].split("## ")[0]
    section = section.replace("\\\n", " ")
    lines = re.findall(r"^    (\.venv/bin/musicfm .*)$", section, re.MULTILINE)
    monkeypatch.chdir(demo_folder)
    ran = []
    for line in lines:
        _, name, *arguments = shlex.split(line, comments=True)
        if name != "serve":  # that one goes on until it is ended; it has tests of its own
            assert COMMANDS[name].main(arguments) == 0, line
            ran.append(name)
    assert ran == ["index", "index", "search", "search"]
