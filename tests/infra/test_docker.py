"""The images' recipes: no Docker here, so the linter, their own Python, and what they copy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pipeline.run.placement import WORKER_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "docker"
BIN = Path(sys.executable).parent
KINDS = ("cpu", "gpu")
_SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = _SETTINGS["project"]
INSTALLED = _SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]  # patterns of packages' dotted names
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def read(kind: str) -> str:
    return (FOLDER / f"{kind}.Dockerfile").read_text()


def list_instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def lint(path: Path) -> str:
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_linter_finds_nothing(kind: str) -> None:
    assert lint(FOLDER / f"{kind}.Dockerfile") == ""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("COPY jobs jobs", "COPPY jobs jobs", "unexpected"),
        ("USER 1000", "USER root", "DL3002"),
        ("python:3.11.14-slim-bookworm", "python", "DL3006"),
        ("--no-cache-dir ", "", "DL3042"),
        ("--no-install-recommends ", "", "DL3015"),
    ],
)
def test_a_mistake_is_found(old: str, new: str, fault: str, tmp_path: Path) -> None:
    assert old in read("cpu")
    (tmp_path / "Dockerfile").write_text(read("cpu").replace(old, new))
    assert fault in lint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("kind", KINDS)
def test_workers_have_the_environment_of_those_that_a_run_starts_itself(kind: str) -> None:
    (settings,) = [text for name, text in list_instructions(read(kind)) if name == "ENV"]
    assert WORKER_ENVIRONMENT.items() <= dict(pair.split("=", 1) for pair in settings.split()).items()


@pytest.mark.parametrize("kind", KINDS)
def test_the_processes_do_not_run_as_root(kind: str) -> None:
    users = [value for name, value in list_instructions(read(kind)) if name == "USER"]
    assert users == ["1000"]
    assert "useradd --uid 1000 " in read(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_those_that_are_tested(kind: str) -> None:
    pinned = dict(re.findall(r" (torch(?:audio)?)==([\d.]+)", read(kind)))
    assert pinned == {name: CONSTRAINTS[name] for name in ("torch", "torchaudio")}
    installs = re.findall(r"pip install (.*?)(?=\n[A-Z#\n]|\Z)", read(kind), re.DOTALL)
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in install for install in installs[:2])
    assert "--no-deps" in installs[2]
    base = next(value for name, value in list_instructions(read(kind)) if name == "FROM")
    python = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert python is not None
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert int(low) <= int(python[1].split(".")[1]) < int(high)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_the_code_leaves_the_large_layers_as_they_are(kind: str) -> None:
    instructions = list_instructions(read(kind))
    copied = [value.split()[:-1] for name, value in instructions if name == "COPY"]
    assert copied[0] == ["constraints.txt", "pyproject.toml"]
    code = next(index for index, item in enumerate(instructions) if item == ("COPY", "jobs jobs"))
    large = [index for index, (_, value) in enumerate(instructions) if "--constraint" in value]
    assert max(large) < code


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_is_there_and_not_ignored(kind: str) -> None:
    ignored = (FOLDER / f"{kind}.Dockerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = {
        source for name, value in list_instructions(read(kind)) if name == "COPY" for source in value.split()[:-1]
    }
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)
    packages = {pattern.rstrip("*") for pattern in INSTALLED}
    assert packages
    assert sources >= packages


def test_every_folder_with_code_is_installed() -> None:
    packages = {pattern.rstrip("*") for pattern in INSTALLED}
    folders = {file.parent.relative_to(ROOT) for package in packages for file in (ROOT / package).rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders}
    assert {"musicfm_model.cpu", "pipeline.store", "jobs"} <= names
    assert not {name for name in names if not any(fnmatchcase(name, pattern) for pattern in INSTALLED)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_requirements_are_those_of_the_project(kind: str) -> None:
    script = re.search(r'RUN python -c "(import tomllib.*?)" > requirements.txt', read(kind), re.DOTALL)
    assert script is not None
    code = script[1].replace("\\\n", "").replace("\\\\", "\\")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    extras = PROJECT["optional-dependencies"]
    expected = [*PROJECT["dependencies"], *extras["search"], *extras["serve"], *extras["probe"]]
    assert done.stdout.splitlines() == expected + (["boto3"] if kind == "cpu" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_is_one_of_the_projects(kind: str) -> None:
    command = next(value for name, value in list_instructions(read(kind)) if name == "CMD")
    assert json.loads(command)[0] in PROJECT["scripts"]


def test_the_images_differ_in_torch_and_what_a_gpu_needs() -> None:
    lines = {kind: set(read(kind).splitlines()) for kind in KINDS}
    differing = "\n".join(sorted(lines["cpu"] ^ lines["gpu"]))
    assert differing.count("\n") < 20
    assert "NVIDIA_VISIBLE_DEVICES=all" in differing
    assert "whl/cpu" in differing
