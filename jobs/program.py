"""A command as a process of its own: how it ends, whatever cuts it short.

Imports next to nothing: until it has, ^C would end in a traceback.
"""

from __future__ import annotations

import atexit
import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

EXIT_OPEN_BOOKS = 1
EXIT_USAGE = 2
EXIT_NOT_PRUNED = 3
EXIT_INTERRUPTED = 130  # as shells count a SIGINT
EXIT_NO_READER = 141  # as shells count a SIGPIPE
EXIT_OUTPUT_LOST = 120  # as Python has it

# By default Python looks for garbage after every 700 new objects. Modules make hundreds of thousands, all of which
# stay: of the eleven seconds of the smallest run one went into looking through them. Later, garbage may hold much.
_COLLECT_AFTER_OBJECTS = 200_000
_LOADING_S = 15.0


def run_script(main: Callable[[Sequence[str] | None, str | None], int]) -> NoReturn:
    """Run a command's ``main`` as the process that a file of ``jobs`` was started as, and end it."""
    program = os.path.basename(sys.argv[0])
    run_program(program, lambda: main(None, program))


def run_program(program: str, work: Callable[[], int]) -> NoReturn:
    """Do the work of a process and end it: by its exit code, or quietly where it was cut short.

    Args:
        program: The process's name, for messages.
        work: Returns the exit code, or raises SystemExit as ``argparse`` does.
    """
    _open_closed_output()
    _put_collections_off()
    try:
        try:
            code = work()
        except SystemExit as end:
            code = _read_code(end)
        sys.stdout.flush()
    except KeyboardInterrupt:  # so early that the command does not see to it itself
        print(f"{program}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _drop_output_without_reader():
            raise
        code = EXIT_NO_READER
    if code == EXIT_INTERRUPTED:
        # A thread that was left amid its work may ask Ray for more while Ray is taken down: that ends the process
        # with a code of Ray's. Nobody waits for it; Ray's own processes end with this one.
        sys.stderr.flush()
        os._exit(code)
    _end_ray()
    _leave(code)


def _open_closed_output() -> None:
    """Let what is written go nowhere where there is nothing to write to, as under some schedulers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _put_collections_off() -> None:
    """Look for garbage less often while modules are loaded."""
    usual = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, *usual[1:])
    end = threading.Timer(_LOADING_S, gc.set_threshold, usual)
    end.daemon = True
    end.start()


def _end_ray() -> None:
    """End the Ray that the work left running, or leave the cluster that it joined.

    At the interpreter's end Ray would do so itself, after half a second's wait for workers' output, which is off.
    """
    ray = sys.modules.get("ray")
    is_initialized = getattr(ray, "is_initialized", None)  # it may still be amid its import, in a thread
    if ray is not None and is_initialized is not None and is_initialized():
        for number in (signal.SIGINT, signal.SIGTERM):  # the work is done, and how it ended is said
            signal.signal(number, signal.SIG_IGN)
        with suppress(Exception):  # such as that the cluster is gone
            ray.shutdown()


def _read_code(end: SystemExit) -> int:
    """Return the exit code that Python gives a process which ends so; a message is told, as Python would."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _leave(code: int) -> NoReturn:
    """End the process as Python does, in the same order, but leave its modules whole.

    Taking those of PyTorch and Ray apart takes up to half a second, for memory that the system takes back at once.
    """
    if _has_company():
        sys.exit(code)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are not daemons
    except KeyboardInterrupt:
        pass  # the work is done: its code stands
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # nobody reads any more; it was closed
            pass
        except OSError:
            code = code or EXIT_OUTPUT_LOST
    os._exit(code)


def _has_company() -> bool:
    """Say whether somebody goes on in this process: a shell, a notebook, a debugger, a profiler."""
    if hasattr(sys, "ps1") or sys.flags.interactive or sys.gettrace() or sys.getprofile():
        return True
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    return monitoring is not None and any(monitoring.get_tool(number) for number in range(6))


def _drop_output_without_reader() -> bool:
    """Say whether standard output has lost its reader, as under ``| head``; what it still holds is then dropped.

    Otherwise Python would try once more to write it at the very end, and complain.
    """
    try:
        output = sys.stdout.fileno()
    except OSError:  # it is no file at all
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
