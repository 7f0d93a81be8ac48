"""The Slurm script: as bash reads it, its options, and what it starts on a Slurm of three lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run.placement import WORKER_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "slurm" / "embed.sbatch"
# Long options of sbatch(1), Slurm 25.05, that a script of one job may have.
KNOWN = set(
    """
    account array begin chdir comment constraint cores-per-socket cpus-per-gpu cpus-per-task deadline
    dependency distribution error exclude exclusive export get-user-env gpu-bind gpus gpus-per-node
    gpus-per-socket gpus-per-task gres hint hold input job-name licenses mail-type mail-user mem mem-bind
    mem-per-cpu mem-per-gpu nice no-requeue nodelist nodes ntasks ntasks-per-core ntasks-per-gpu
    ntasks-per-node ntasks-per-socket open-mode output overcommit oversubscribe partition prefer priority qos
    quiet requeue reservation signal sockets-per-node spread-job switches threads-per-core time time-min tmp
    verbose wait-all-nodes wckey
    """.split()  # noqa: SIM905
)


def list_options(text: str) -> list[str]:
    return re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)


def lint(path: Path) -> str:
    parsed = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    linted = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "--shell=bash", path],
        capture_output=True,
        text=True,
        check=False,
    )
    return parsed.stderr + linted.stdout


def test_bash_and_its_linter_find_nothing() -> None:
    assert lint(SCRIPT) == ""


@pytest.mark.parametrize(
    ("old", "new"), [('"$@"', "$@"), ("<(scontrol", "<((scontrol"), ("read -r head_host", "read -r host")]
)
def test_a_mistake_is_found(old: str, new: str, tmp_path: Path) -> None:
    assert old in SCRIPT.read_text()
    (tmp_path / "x.sbatch").write_text(SCRIPT.read_text().replace(old, new))
    assert lint(tmp_path / "x.sbatch")


def test_workers_have_the_environment_of_those_that_a_run_starts_itself() -> None:
    exported = [pair for line in re.findall(r"^export (.*)$", SCRIPT.read_text(), re.M) for pair in line.split()]
    assert {f"{name}={value}" for name, value in WORKER_ENVIRONMENT.items()} <= set(exported)


def test_its_options_are_options_of_sbatch() -> None:
    options = list_options(SCRIPT.read_text())
    assert set(options) <= KNOWN
    assert {"nodes", "gpus-per-node", "cpus-per-task", "requeue"} <= set(options)
    assert len(options) == len(re.findall(r"^#SBATCH", SCRIPT.read_text(), re.MULTILINE))
    # Slurm reads no option after the first command.
    assert SCRIPT.read_text().index("set -euo") > SCRIPT.read_text().rindex("#SBATCH")


def test_an_unknown_option_is_found() -> None:
    assert not set(list_options(SCRIPT.read_text() + "\n#SBATCH --gpu-per-node=4")) <= KNOWN


@pytest.mark.parametrize(("said", "num_gpus"), [("4", "4"), ("a100:4", "4"), (None, "0")])
def test_it_starts_ray_on_all_nodes_and_the_command_on_one(
    said: str | None, num_gpus: str, tmp_path: Path
) -> None:
    for name, body in {
        "scontrol": 'echo node7; echo node8; [ "$3" = "node[7-8]" ]',
        "srun": 'printf "%s\\n" "$@"; echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = (
        os.environ
        | {
            "PATH": f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "64",
        }
        | ({"SLURM_GPUS_PER_NODE": said} if said else {})
    )
    arguments = ["--audio", "/data/my music", "--store", "/data/features", "--checkpoint", "msd"]
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    separator = lines.index("--")
    assert lines[:separator] == [
        "--cpus-per-task=64",
        *("ray", "symmetric-run", "--address", "node7:6379", "--min-nodes", "2"),
        *("--num-cpus", "64", "--num-gpus", num_gpus),
    ]
    assert lines[separator + 1 : -1] == ["python", "jobs/embed_catalog.py", *arguments]
    assert lines[-1] == "token 64 token"
