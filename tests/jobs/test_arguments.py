import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["build_index", "check_store", "delete_tracks", "maintain_store", "search"])
def test_a_command_that_computes_no_features_does_not_wait_for_what_does(command: str) -> None:
    loaded = "import sys, jobs.%s; print(sorted({'torch', 'ray', 'torchaudio', 'av'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded % command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
