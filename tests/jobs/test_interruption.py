"""How a command is told to end, whatever it is at."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from jobs.arguments import OneLineParser, run_or_explain

def run():
    print("running", flush=True)
    import takes_long
    print("imported", flush=True)
    time.sleep(30)
    return 0

sys.exit(run_or_explain(OneLineParser("embed", "", ""), run))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_goes_on_is_not_interrupted_but_what_follows_it_is(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "takes_long.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(1.0)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "importing":
            break
    time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)  # not the 30 s that it would sleep
    assert (process.returncode, output.strip()) == (130, "imported")
    assert errors == "embed: interrupted; what was committed is kept: run the same command again\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from jobs.interruption import take_interruptions; take_interruptions();"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN;"
        "assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
