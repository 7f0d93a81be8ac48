import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.arguments import EXTRAS, OneLineParser, run_or_explain

ROOT = Path(__file__).resolve().parents[2]
BROUGHT_ALONG = {"ray": ("fastapi", "starlette", "uvicorn"), "scikit-learn": ("scipy",)}


@pytest.mark.parametrize("command", ["build_index", "check_store", "delete_tracks", "maintain_store", "search"])
def test_a_command_that_computes_no_features_does_not_wait_for_what_does(command: str) -> None:
    loaded = "import sys, jobs.%s; print(sorted({'torch', 'ray', 'torchaudio', 'av'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded % command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_interruption_is_one_line_and_the_code_of_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise KeyboardInterrupt

    assert run_or_explain(OneLineParser("embed", "", ""), run) == 130
    assert (
        capsys.readouterr().err == "embed: interrupted; what was committed is kept: run the same command again\n"
    )


def test_a_package_that_is_missing_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        import faiss  # noqa: F401

        return 0

    monkeypatch.setitem(sys.modules, "faiss", None)
    assert run_or_explain(OneLineParser("musicfm index", "Work.", ""), run) == 2
    error = capsys.readouterr().err
    assert "pip install 'music-feature-store[search]'" in error
    assert error.count("\n") == 1


def test_a_package_that_no_extra_brings_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> int:
        import nowhere  # type: ignore[import-not-found]  # noqa: F401

        return 0

    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        run_or_explain(OneLineParser("musicfm index", "Work.", ""), run)


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_what_a_command_imports_late_is_in_the_extra_that_it_names(package: str, extra: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in extras[extra]}
    brought = names | {part for name in names for part in BROUGHT_ALONG.get(name, ())}
    spellings = {name.replace("-", "_").removesuffix("_cpu").removeprefix("python_") for name in brought}
    assert package.removeprefix("python_") in spellings | ({"sklearn"} if "scikit-learn" in names else set())
