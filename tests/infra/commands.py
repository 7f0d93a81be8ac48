"""Commands as documents and manifests have them, and the parsers that would take them."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from jobs.__main__ import COMMANDS as MODULES

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(
    r"jobs/(?P<job>\w+)\.py|\bmusicfm (?P<name>[a-z]+(?:-[a-z]+)*)|sbatch (?P<batch>infra/slurm/\w+\.sbatch)"
)
OF_RAY = re.compile(r"^(?:#\s+|-\s+|srun\s+)?(?:ulimit[^;]*;\s*)?ray (?=[a-z])")


@dataclass(frozen=True)
class Command:
    """One command: the module of ``jobs`` that runs, or ``ray``, and its words."""

    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([self.program, *self.words])


class Parsed(Exception):  # noqa: N818
    """Carries what a parser read, instead of a command's work."""

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__()
        self.flags = flags


def find_commands(text: str) -> list[Command]:
    """Find commands of ours and of Ray in a document; optional parts are taken, alternatives each in turn."""
    return [*_find_ours(text), *_find_of_ray(text)]


def parse(command: Command, folder: Path) -> argparse.Namespace | None:
    """Parse a command of ours as its program would, or one of Ray's.

    Args:
        command: The command.
        folder: Where files that ``--config`` names lie.

    Raises:
        SystemExit: Our parser refuses it.
        click.ClickException: Ray's refuses it.
    """
    if command.program == "ray":
        _parse_of_ray(list(command.words))
        return None
    main = importlib.import_module(f"jobs.{command.program}").main
    words = list(command.words)
    for index, word in enumerate(words[:-1]):
        if word == "--config":
            words[index + 1] = str(folder / Path(words[index + 1]).name)
    original = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:
        raise Parsed(original(parser, arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            main(words)
        except Parsed as parsed:
            return parsed.flags
    raise AssertionError(f"{command} did not parse its flags")


def find_settings(path: Path) -> dict[str, str]:
    """Return the TOML files that a document shows, by name: of its ConfigMaps, or after their name in text."""
    text = path.read_text()
    if path.suffix == ".yaml":
        documents = [item for item in yaml.safe_load_all(text) if item and item.get("kind") == "ConfigMap"]
        return {name: content for item in documents for name, content in item["data"].items()}
    return dict(re.findall(r"`([\w-]+\.toml)`[^`]*```toml\n(.*?)```", text, re.DOTALL))


def _find_ours(text: str) -> Iterator[Command]:
    for line in _join_lines(text):
        for match in OURS.finditer(line):
            rest = _cut(line[match.end() :], line[: match.start()])
            if "$@" in rest or not re.match(r"\s+(-|\[|\(|[A-Z]+\b)", rest):
                continue  # a mention, or what a script hands on
            program = match["job"] or "embed_catalog"
            if match["name"]:
                program = MODULES[match["name"]][0]
            for words in _expand(rest):
                yield Command(program, tuple(shlex.split(words)))


def _find_of_ray(text: str) -> Iterator[Command]:
    for line in _join_lines(text):
        match = OF_RAY.match(line.strip())
        if match:
            rest = _cut(line.strip()[match.end() :], "")
            # Of a variable's value nothing is known here; what stands for numbers in scripts passes as one.
            yield Command("ray", tuple(shlex.split(re.sub(r"\$(\w+|\{[^}]*\})", "1", rest))))


def _join_lines(text: str) -> list[str]:
    return re.sub(r"\\\n[ \t]*#?[ \t]*", " ", text).splitlines()


def _cut(rest: str, before: str) -> str:
    """Return the rest of a line as far as the command goes."""
    if before.count("'") % 2:
        rest = rest.split("'", 1)[0]
    if before.count("`") % 2:
        rest = rest.split("`", 1)[0]
    return re.split(r"\s+(?:#|&&?|>|;)(?:\s|$)", rest)[0]


def _expand(text: str) -> Iterator[str]:
    parts = re.split(r"\(([^()]*\|[^()]*)\)", re.sub(r"[\[\]]", "", text.replace("\\|", "|")))
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def _parse_of_ray(words: list[str]) -> None:
    command: click.Command = ray_cli
    name = "ray"
    if words[0] == "symmetric-run":  # takes flags of `ray start` without looking at them
        _parse_of_ray(["start", *words[words.index("--min-nodes") + 2 : words.index("--")]])
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"ray has no command {name}")
        command = found
    command.make_context(name, words)
