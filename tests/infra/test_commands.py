"""Every command in every document and manifest is one that its program would take."""

import re
import shlex
import subprocess
from pathlib import Path

import botocore
import botocore.session
import click
import pytest

from tests.infra.commands import ROOT, Command, find_commands, find_settings, parse

KINDS = (".md", ".yaml", ".sbatch", ".Dockerfile", ".sh", ".ipynb")


def list_documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(KINDS) and (ROOT / name).exists()]


DOCUMENTS = list_documents()
COMMANDS = [(path, command) for path in DOCUMENTS for command in find_commands(path.read_text())]


def test_commands_are_found_where_there_are_some() -> None:
    with_commands = {str(path.relative_to(ROOT)) for path, _ in COMMANDS}
    assert with_commands >= {
        "README.md",
        "infra/README.md",
        "infra/aws/cluster.yaml",
        "infra/compose/compose.yaml",
        "infra/kuberay/raycluster.yaml",
        "infra/kuberay/rayjob.yaml",
        "infra/slurm/embed.sbatch",
    }
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[f"{path.relative_to(ROOT)}: {command}"[:90] for path, command in COMMANDS]
)
def test_command_is_taken(path: Path, command: Command, tmp_path: Path) -> None:
    for name, content in find_settings(path).items():
        (tmp_path / name).write_text(content)
    parse(command, tmp_path)


@pytest.mark.parametrize(
    ("text", "program", "words"),
    [
        ("python jobs/embed_msd.py --audio A \\\n   --store S  # why", "embed_msd", "--audio A --store S"),
        ("# ray exec c.yaml 'musicfm embed-fma --audio A --store S'", "embed_fma", "--audio A --store S"),
        ("| x | `musicfm search --store U [-k 5]` |", "search", "--store U -k 5"),
        ("sbatch infra/slurm/embed.sbatch --audio A", "embed_catalog", "--audio A"),
        ("- ulimit -n 9; ray start --head --port=1", "ray", "start --head --port=1"),
    ],
)
def test_commands_are_read_as_people_read_them(text: str, program: str, words: str) -> None:
    found = [command for command in find_commands(text) if command.program == program]
    assert found == [Command(program, tuple(words.split()))]


def test_each_alternative_is_a_command() -> None:
    found = find_commands("`musicfm search --store U (--track ID \\| --audio F --checkpoint msd)`")
    assert [str(command).split("U ")[1].strip() for command in found] == [
        "--track ID",
        "--audio F --checkpoint msd",
    ]


@pytest.mark.parametrize(
    "text", ["see jobs/plan.py for how many", "`musicfm serve`", 'python jobs/embed_catalog.py "$@"']
)
def test_a_mention_is_no_command(text: str) -> None:
    assert find_commands(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "python jobs/embed_msd.py --audio A --stor S",
        "python jobs/embed_msd.py --audio A",
        "musicfm embed-msd --audio A --store S --precision half",
        "musicfm check --store S --shallow",
        "sbatch infra/slurm/embed.sbatch --audio A --store S",
    ],
)
def test_a_command_that_would_be_refused_fails(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = find_commands(text)
    assert len(commands) == 1
    with pytest.raises(SystemExit) as caught:
        parse(commands[0], tmp_path)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "text", ["ray job submit --addres x -- python y", "ray strat --head", "ray start --num-cpu=2", "ray up"]
)
def test_a_command_that_ray_would_refuse_fails(text: str, tmp_path: Path) -> None:
    commands = find_commands(text)
    assert len(commands) == 1
    with pytest.raises(click.ClickException):
        parse(commands[0], tmp_path)


def list_aws_commands() -> list[str]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "infra" / "README.md").read_text())
    found = [re.match(r"\s+(aws [a-z].*?)(?: \||$)", line) for line in text.splitlines()]
    return [match[1] for match in found if match and not match[1].startswith("aws s3 ")]


def check_aws_command(command: str) -> None:
    """Check a command of the AWS command line against Amazon's description of the service that it is made from."""
    _, service, operation, *words = shlex.split(command)
    model = botocore.session.get_session().get_service_model(service)
    names = {botocore.xform_name(name, "-"): name for name in model.operation_names}
    # A command of the command line's own; the operation behind it gives the token that it prints.
    operation = {"get-login-password": "get-authorization-token"}.get(operation, operation)
    assert operation in names
    shape = model.operation_model(names[operation]).input_shape
    flags = {botocore.xform_name(name, "-"): name for name in shape.members} | {"region": "region"}
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert given <= set(flags)
    assert {flags[name] for name in given} >= set(shape.required_members)


@pytest.mark.parametrize("command", list_aws_commands())
def test_a_command_for_amazon_has_flags_that_it_knows(command: str) -> None:
    check_aws_command(command)


@pytest.mark.parametrize(
    "command",
    ["aws iam make-role --role-name x", "aws iam create-role --role-name x", "aws iam get-role --name x"],
)
def test_a_command_that_amazon_would_refuse_fails(command: str) -> None:
    with pytest.raises(AssertionError):
        check_aws_command(command)


def test_the_placeholders_of_all_files_are_the_same() -> None:
    texts = [path.read_text() for path in (ROOT / "infra").rglob("*") if path.suffix in (".json", ".yaml", ".md")]
    assert {number for text in texts for number in re.findall(r"\b\d{12}\b", text)} == {"111122223333"}
    buckets = {bucket for text in texts for bucket in re.findall(r"s3://(example[\w-]*|[\w-]*-audio)", text)}
    assert buckets == {"example-audio", "example-features"}
