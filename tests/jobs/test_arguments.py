import subprocess
import sys

import pytest

from jobs.arguments import OneLineParser, run_or_explain


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
