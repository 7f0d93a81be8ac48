"""What all commands have in common: flags, one line for a mistake, exit codes.

Nothing here is slow to import: a search should not wait for what embeds.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs.configuration import add_configuration
from pipeline.config import RESOLUTIONS
from pipeline.errors import FeatureStoreError, StorageError, UsageError
from pipeline.logs import start_logging

EXIT_OPEN_BOOKS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as shells count a SIGINT


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line (the flags are in ``--help``), and that takes flags from a file."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--config", metavar="FILE.toml", help="flags by name; the command line overrides them")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse a command line, with what its ``--config`` says in front of it."""
        try:
            arguments = add_configuration(self, sys.argv[1:] if args is None else args)
        except UsageError as error:
            self.error(str(error))
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with 2; a flag that is not known may carry a secret, which is left out."""
        if message.startswith("unrecognized arguments"):
            message = re.sub(r"=\S+", "=…", message)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_switch(parser: argparse._ActionsContainer, name: str, what: str) -> None:
    """Add a flag that is on or off: ``--name``, and ``--no-name`` for where a file has turned it on."""
    parser.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=what)


def add_storage_option(parser: argparse._ActionsContainer, name: str, what: str) -> None:
    """Add a repeatable KEY=VALUE flag for a file system's options."""
    parser.add_argument(
        name,
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"file system option for {what}; repeatable",
    )


def run_or_explain(parser: OneLineParser, run: Callable[[], int], log_format: str = "text") -> int:
    """Do a command's work; what goes wrong in it becomes one line on standard error and an exit code.

    Args:
        parser: The command's parser, for its name.
        run: The work; returns the exit code.
        log_format: ``text`` for people or ``json`` for programs.

    Returns:
        What ``run`` returns, 2 for a mistake in the call, 1 for work that broke off, 130 where it was interrupted
        (SIGINT, SIGTERM).
    """
    start_logging(log_format)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # from schedulers, as ^C from people
    try:
        return run()
    except (UsageError, StorageError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FeatureStoreError as error:
        print(f"{parser.prog}: broke off: {error}", file=sys.stderr)
        return EXIT_OPEN_BOOKS
    except KeyboardInterrupt:
        print(
            f"{parser.prog}: interrupted; what was committed is kept: run the same command again", file=sys.stderr
        )
        return EXIT_INTERRUPTED


def parse_resolutions(text: str) -> tuple[str, ...]:
    """Read comma-separated names of resolutions."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in RESOLUTIONS]
    if unknown or not names:
        found = ", ".join(unknown) or "none"
        raise argparse.ArgumentTypeError(f"expected names of {', '.join(RESOLUTIONS)}; found {found}")
    return names


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number of some span."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
        if value < least or (most is not None and value > most):
            span = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"expected {span}, found {value}")
        return value

    return parse


def positive_number(text: str) -> float:
    """Read a number over 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number over 0, found {text}")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError("expected KEY=VALUE")  # the text may hold a secret: not repeated
    return key, value
