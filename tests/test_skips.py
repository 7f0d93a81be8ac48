"""A run fails if something was skipped for another reason than the few that are allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
from tests.skips import SkipGuard

def pytest_configure(config):
    config.pluginmanager.register(SkipGuard())
"""


def run_pytest(folder: Path, test: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_one.py").write_text(f"import pytest\n{test}\ndef test_passes():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-ra", "--rootdir", str(folder), *flags, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(
            "@pytest.mark.skip(reason='the figures are not there')\ndef test_skipped():\n    pass",
            marks=pytest.mark.slow,
        ),
        "def test_skipped():\n    pytest.skip('the figures are not there')",
        pytest.param("pytest.importorskip('nowhere', reason='the figures are not there')", marks=pytest.mark.slow),
    ],
    ids=["mark", "call", "whole file"],
)
def test_a_skip_for_another_reason_fails_the_run(test: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, test)
    assert done.returncode == 1
    told = done.stdout.split("skipped though")[1]
    assert "test_one.py" in told
    assert "the figures are not there" in told


@pytest.mark.slow
def test_so_does_one_in_another_process(tmp_path: Path) -> None:
    test = "def test_skipped():\n    pytest.skip('the figures are not there')"
    done = run_pytest(tmp_path, test, "-n", "1", "--dist", "loadfile")
    assert done.returncode == 1
    assert "the figures are not there" in done.stdout.split("skipped though")[1]


def test_an_allowed_skip_is_listed_with_its_reason_at_the_end(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "def test_gpu():\n    pytest.skip('needs a CUDA device')")
    assert done.returncode == 0
    *_, listed, counts = done.stdout.splitlines()
    assert listed.startswith("SKIPPED")
    assert listed.endswith("needs a CUDA device")
    assert "1 passed, 1 skipped" in counts


@pytest.mark.slow
def test_a_run_that_failed_otherwise_still_fails(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, "def test_fails():\n    pytest.skip('root') if False else 1 / 0").returncode == 1
