"""What all commands have in common: flags, one line for a mistake, first words, exit codes.

Nothing here is slow to import, and nothing at the head of a command's file: what a command works with is imported
where it begins to work, so that ``--help`` and mistakes are told at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jobs.configuration import add_configuration
from jobs.flags import FlagTable, KeyValueFlag
from jobs.interruption import take_interruptions
from jobs.program import EXIT_INTERRUPTED, EXIT_OPEN_BOOKS, EXIT_USAGE
from pipeline.config import RESOLUTIONS
from pipeline.errors import FeatureStoreError, StorageError, UsageError
from pipeline.logs import start_logging

logger = logging.getLogger(__name__)

EXTRAS = {
    **dict.fromkeys(("duckdb", "faiss"), "search"),
    **dict.fromkeys(("fastapi", "multipart", "python_multipart", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(("jams", "mir_eval", "scipy", "sklearn"), "probe"),
}
"""The extra of the project that brings a package which commands import only where they need it."""


class FlagGroup:
    """Flags under one heading of ``--help``, or flags that exclude each other.

    Args:
        table: The command's flags.
        group: The group of ``argparse``.
        members: Takes the flags that exclude each other.
    """

    def __init__(self, table: FlagTable, group: Any, members: list[argparse.Action] | None = None) -> None:
        self._table, self._group, self._members = table, group, members

    def add_argument(self, *names: str, **settings: Any) -> None:
        """Add a flag, as ``argparse.ArgumentParser.add_argument`` does."""
        flag = self._group.add_argument(*names, **settings)
        self._table.add(flag, settings.get("help"))
        if self._members is not None:
            self._members.append(flag)

    def add_exclusive_group(self) -> FlagGroup:
        """Return a group of flags of which exactly one must be given."""
        members: list[argparse.Action] = []
        self._table.exclusive.append(members)
        return FlagGroup(self._table, self._group.add_mutually_exclusive_group(required=True), members)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line (the flags are in ``--help``), and that takes flags from a file.

    Args:
        program: The name under which a process runs the command; None where a function calls it, which then says
            nothing of its course.
        description: What the command does.
        example: A command line without the program's name.
    """

    def __init__(self, program: str | None, description: str | None, example: str) -> None:
        self.table = FlagTable()
        super().__init__(
            prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.epilog = f"example:\n  {self.prog} {example}"
        self.is_program = program is not None
        self.add_argument("--config", metavar="FILE.toml", help="flags by name; the command line overrides them")

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add a flag, as ``argparse`` does; ``--help`` says its default if it has one."""
        flag = super().add_argument(*names, **settings)
        self.table.add(flag, settings.get("help"))
        return flag

    def add_group(self, title: str) -> FlagGroup:
        """Return a group of flags under a heading of ``--help``."""
        return FlagGroup(self.table, self.add_argument_group(title))

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse a command line, with what its ``--config`` says in front of it."""
        words = sys.argv[1:] if args is None else args
        unknown = self.table.list_unknown(words)
        if unknown:
            nearest = self.table.find_nearest(unknown[0].partition("=")[0])
            self.error(f"unrecognized arguments: {' '.join(unknown)}; the nearest is {nearest}")
        try:
            arguments = add_configuration(self.table, self.prog, words, self.loading)
        except UsageError as error:
            self.error(str(error))
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with 2; a flag that is not known may carry a secret, which is left out."""
        if message.startswith("unrecognized arguments"):
            message = re.sub(r"=\S+", "=…", message)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Say what a process is loading, while imports that take seconds run in the block.

        ^C and SIGTERM end the process at once there, with a line: nothing was begun, and an exception that is
        raised amid other packages' imports may come out as any other.

        Args:
            what: For people: what is loaded.
        """
        if not self.is_program:
            yield
            return

        def end(*_: object) -> None:
            os.write(2, f"{self.prog}: interrupted; nothing was begun\n".encode())
            os._exit(EXIT_INTERRUPTED)

        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, end) for number in numbers}
        if logger.isEnabledFor(logging.INFO):  # the log is for programs
            logger.info("loading %s", what)
        else:
            print(f"{self.prog}: loading {what}", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


Flags = FlagGroup | OneLineParser


def add_switch(flags: Flags, name: str, what: str) -> None:
    """Add a flag that is on or off: ``--name``, and ``--no-name`` for where a file has turned it on."""
    flags.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=what)


def add_storage_option(flags: Flags, name: str, what: str) -> None:
    """Add a repeatable KEY=VALUE flag for a file system's options."""
    flags.add_argument(
        name,
        type=_key_value,
        action=KeyValueFlag,
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
        What ``run`` returns, 2 for a mistake in the call or a missing extra, 1 for work that broke off, 130 where
        it was interrupted (SIGINT, SIGTERM).
    """
    start_logging(log_format)
    take_interruptions()
    try:
        return run()
    except (UsageError, StorageError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FeatureStoreError as error:
        print(f"{parser.prog}: broke off: {error}", file=sys.stderr)
        return EXIT_OPEN_BOOKS
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        needed = f"this needs more packages: pip install 'music-feature-store[{extra}]' ({error})"
        print(f"{parser.prog}: error: {needed}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(
            f"{parser.prog}: interrupted; what was committed is kept: run the same command again", file=sys.stderr
        )
        return EXIT_INTERRUPTED


def readable_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Return a check of a flag's text by what reads it later."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def parse_layers(text: str) -> tuple[int, ...]:
    """Read comma-separated layer numbers."""
    try:
        layers = tuple(dict.fromkeys(int(item) for item in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 7 or 4,7,12; found {text!r}") from None
    return layers


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
