"""Commands as processes: their first words, and how they end when something cuts them short."""

import gc
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jobs.arguments import OneLineParser
from jobs.program import run_program
from pipeline.logs import JsonFormatter

ROOT = Path(__file__).resolve().parents[2]
SEARCH = ["--store", "store", "--track", "caves"]


def end_with(work: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.program._leave", sys.exit)  # this process goes on
        with pytest.raises(SystemExit) as caught:
            run_program("musicfm", work)  # type: ignore[arg-type]
    return caught.value.code


@pytest.mark.parametrize(
    ("command", "program", "words"),
    [
        (["-m", "jobs", "convert", "a.pt", "b.safetensors"], "musicfm convert", "loading PyTorch"),
        (["jobs/search.py", *SEARCH], "search.py", "loading the index"),
        (["-m", "jobs", "serve", "--store", "store", "--port", "0"], "musicfm serve", "loading PyTorch, Ray and"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_says_at_once_what_it_does_and_may_be_ended_amid_imports(
    command: list[str], program: str, words: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(number)
    output, rest = process.communicate(timeout=60)
    assert first.startswith(f"{program}: {words}")
    assert (rest, output, process.returncode) == (f"{program}: interrupted; nothing was begun\n", "", 130)


@pytest.mark.parametrize("command", [["-m", "jobs", "embed"], ["jobs/embed_msd.py"]])
@pytest.mark.parametrize("wait_s", [0.0, pytest.param(0.3, marks=pytest.mark.ray)])
def test_an_embedding_that_only_begins_ends_without_a_traceback(
    command: list[str], wait_s: float, tmp_path: Path
) -> None:
    flags = ["--audio", str(tmp_path), "--store", str(tmp_path / "store"), "--checkpoint", "msd"]
    process = subprocess.Popen(
        [sys.executable, *command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().strip()
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    output, rest = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert rest.splitlines()[-1].split(": ", 1)[1].startswith("interrupted; ")
    assert "Traceback" not in rest


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["--version"]])
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_is_dropped_in_silence(words: list[str], buffered: bool) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "jobs", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    # Of an unbuffered output that broke argparse itself says nothing.
    assert done.returncode == 141 or (not buffered and done.returncode == 0)


def test_a_pipe_that_breaks_elsewhere_is_not_hidden() -> None:
    def work() -> int:
        raise BrokenPipeError("a server closed its connection")

    with pytest.raises(BrokenPipeError, match="a server"):
        run_program("musicfm", work)


def test_an_early_interruption_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)  # which ends a process whatever its threads do, and this one too

    def work() -> int:
        raise KeyboardInterrupt

    assert end_with(work) == 130
    assert capsys.readouterr().err == "musicfm: interrupted\n"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_process_ends_with_the_code_of_its_work(code: int) -> None:
    assert end_with(lambda: code) == code
    assert end_with(lambda: sys.exit(code)) == code


def run_as_program(work: str, shell: str = "{python}", before: str = "") -> "subprocess.CompletedProcess[str]":
    script = f"""
import atexit, os, signal, sys, threading, time
from jobs.program import run_program

{before}
def work():
{textwrap.indent(textwrap.dedent(work), "    ")}

run_program("musicfm", work)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = shell.format(python=f"{sys.executable} -c {shlex.quote(script)}")
    return subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_all_that_was_begun_is_done_before_a_process_ends() -> None:
    done = run_as_program("""
        atexit.register(lambda: print("at exit"))
        threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
        print("o" * 100_000)
        print("e" * 100_000, file=sys.stderr)
        return 3
    """)
    assert done.returncode == 3
    assert done.stdout == "o" * 100_000 + "\nthread\nat exit\n"
    assert done.stderr == "e" * 100_000 + "\n"


def test_what_goes_wrong_at_the_end_changes_no_outcome() -> None:
    interrupted = run_as_program("""
        threading.Thread(target=lambda: time.sleep(0.5)).start()
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return 3
    """)
    assert (interrupted.returncode, interrupted.stderr) == (3, "")
    failed = run_as_program("""
        threading._register_atexit(lambda: 1 / 0)
        atexit.register(lambda: print("at exit"))
        return 3
    """)
    assert (failed.returncode, failed.stdout) == (3, "at exit\n")
    assert "ZeroDivisionError" in failed.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("code", [0, 2, 130])
def test_closed_output_changes_no_outcome(closed: str, code: int) -> None:
    work = f"""
        from pipeline.run.watch import ProgressLine
        print("done", flush=True)
        print("failed", file=sys.stderr, flush=True)
        ProgressLine(3).close()
        return {code}
    """
    done = run_as_program(work, "{python} " + closed)
    assert done.returncode == code
    assert done.stdout == ("done\n" if closed == "2>&-" else "")
    assert done.stderr.partition("\n")[0] == ("failed" if closed == ">&-" else "")


def test_late_output_that_finds_no_room_is_told_by_the_code() -> None:
    late = 'atexit.register(lambda: print("late")); return 0'
    assert run_as_program(late, "{python} > /dev/full").returncode == 120
    assert run_as_program(late, "{python} > /dev/null").returncode == 0


def test_a_profiler_gets_its_word() -> None:
    done = run_as_program("return 3", before="sys.setprofile(lambda *_: None)")
    assert done.returncode == 3
    hosted = """
import sys
sys.ps1 = "> "
from jobs.program import run_program
try:
    run_program("musicfm", lambda: 3)
except SystemExit as end:
    print("goes on after", end.code)
"""
    shell = subprocess.run([sys.executable, "-c", hosted], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shell.stdout == "goes on after 3\n"


def test_a_last_word_in_place_of_a_code_is_told() -> None:
    done = run_as_program('sys.exit("no such thing")')
    assert (done.returncode, done.stderr) == (1, "no such thing\n")


def test_a_function_call_says_nothing_and_leaves_signals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with OneLineParser(None, "", "").loading("nothing"):
        assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr() == ("", "")


def test_signals_are_as_before_once_all_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)  # a test run in the background may have it ignored
    with OneLineParser("musicfm embed", "", "").loading("something"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "musicfm embed: loading something\n"


def test_the_first_words_are_a_record_where_the_log_is_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("jobs")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with OneLineParser("musicfm embed", "", "").loading("something"):
            pass
    finally:
        logger.setLevel(level)
    assert json.loads(capsys.readouterr().err)["message"] == "loading something"


def test_what_ends_ray_at_last_changes_no_outcome() -> None:
    script = """
import os, signal, sys, types
from jobs.program import run_program

def shut_down():
    os.kill(os.getpid(), signal.SIGTERM)
    print("shut down")
    raise ConnectionError("the cluster is gone")

def work():
    sys.modules["ray"] = types.SimpleNamespace(is_initialized=lambda: True, shutdown=shut_down)
    return 3

run_program("musicfm", work)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "shut down\n", "")


def test_garbage_is_looked_for_as_usual_once_modules_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = gc.get_threshold()
    monkeypatch.setattr("jobs.program._LOADING_S", 0.05)

    def work() -> int:
        assert gc.get_threshold()[0] == 200_000
        return 0

    assert end_with(work) == 0
    deadline_s = time.monotonic() + 10
    while gc.get_threshold() != usual and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert gc.get_threshold() == usual
