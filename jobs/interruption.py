"""How a command is told to end: ^C and SIGTERM are KeyboardInterrupt, but never amid an import."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_RETRY_S = 0.05
_IMPORTING = "<frozen importlib._bootstrap>"


def take_interruptions() -> None:
    """Raise KeyboardInterrupt in the main thread for SIGINT and SIGTERM from here on.

    A signal that is ignored (``nohup``) stays ignored. From another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, at once or when the import that goes on is over.

    Raised amid an import it may be swallowed, and may leave Python's lock on imports held: whatever other threads
    import then waits for ever.
    """
    # While Ray starts, its own handler may stand before this one; it would abort the process in three seconds.
    signal.alarm(0)
    if _is_importing(frame):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
        return
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
