"""A command's flags from a file: ``--config FILE.toml``, and the flags as they were in effect.

A key is a flag's long name, with ``-`` or ``_``; the command line overrides the file. Lists stand for
comma-separated values, a table for flags of KEY=VALUE::

    store = "s3://bucket/features"
    layers = [4, 7]
    dry-run = true

    [storage-option]
    endpoint_url = "http://127.0.0.1:8333"
"""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from jobs.flags import FlagTable, KeyValueFlag, is_negation, name_flag
from pipeline.errors import StorageError, UsageError

HIDDEN = "(hidden)"
NOT_KEPT = ("help", "config")
Loading = Callable[[str], AbstractContextManager[None]]


def add_configuration(table: FlagTable, program: str, arguments: Sequence[str], loading: Loading) -> list[str]:
    """Put what a configuration file says in front of a command line, which may override it.

    Args:
        table: The command's flags.
        program: The command's name, for messages.
        arguments: The command line.
        loading: Says what is loaded, where that takes a while.

    Returns:
        The command line with the file's flags in front; ``arguments`` where it names no file.

    Raises:
        UsageError: The file cannot be read, has a key that is no flag of this command, or a value that the flag
            does not take.
    """
    given = [table.find(argument) for argument in arguments]
    positions = [index for index, flag in enumerate(given) if flag is not None and flag.dest == "config"]
    if not positions:
        return list(arguments)
    _, has_value, url = arguments[positions[-1]].partition("=")
    if not has_value:
        url = next(iter(arguments[positions[-1] + 1 :]), "")
    overridden = table.list_rivals(given)
    words: list[str] = []
    for flag, key, value in read_configuration(table, program, url, loading):
        if flag not in overridden:
            words += _as_words(flag, key, value, url)
    return [*words, *arguments]


def read_configuration(
    table: FlagTable, program: str, url: str, loading: Loading
) -> list[tuple[argparse.Action, str, object]]:
    """Read a file's keys and values, each with the flag that it sets.

    Raises:
        UsageError: The file cannot be read, or has a key that is no flag of this command, or one flag twice.
    """
    try:
        content = tomllib.loads(_read(url, loading).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {url}: expected TOML, found {error}") from error
    keys = {name: flag for name, flag in table.name_keys().items() if flag.dest not in NOT_KEPT}
    settings: dict[str, tuple[argparse.Action, str, object]] = {}
    for key, value in content.items():
        flag = keys.get(key) or keys.get(key.replace("_", "-"))
        if flag is None:
            nearest = difflib.get_close_matches(key.replace("_", "-"), keys, n=1, cutoff=0.0)[0]
            raise UsageError(
                f"--config {url}: expected names of flags of {program}, found {key!r}; the nearest is {nearest!r}"
            )
        if flag.dest in settings:
            raise UsageError(f"--config {url}: {settings[flag.dest][1]!r} and {key!r} set the same flag; keep one")
        settings[flag.dest] = (flag, key, value)
    return list(settings.values())


def describe_flags(table: FlagTable, flags: argparse.Namespace) -> dict[str, object]:
    """Return a command's flags as they were in effect, in a form that may be kept and shown.

    Values of file system options are left out, and so are passwords and signatures in URLs.

    Args:
        table: The command's flags.
        flags: What its parser read.

    Returns:
        Flags by their long names, ready for JSON.
    """
    described: dict[str, object] = {}
    for flag in table.flags:
        if flag.dest in NOT_KEPT:
            continue
        value = getattr(flags, flag.dest)
        if isinstance(flag, KeyValueFlag):
            described[name_flag(flag)] = {key: HIDDEN for key, _ in value}
        elif isinstance(value, tuple):
            described[name_flag(flag)] = list(value)
        else:
            described[name_flag(flag)] = hide_credentials(value) if isinstance(value, str) else value
    return described


def hide_credentials(text: str) -> str:
    """Return a URL without the user, password, query and fragment that it may carry; any other text as it is."""
    text = re.sub(r"(?<=://)(?:[^/@]*|[^@]*:[^@]*)@", f"{HIDDEN}@", text, count=1)
    return re.sub(r"[?#].*", f"?{HIDDEN}", text) if text.startswith(("http://", "https://")) else text


def _read(url: str, loading: Loading) -> bytes:
    try:
        if "://" not in url:
            return Path(url).expanduser().read_bytes()
        with loading(hide_credentials(url)):
            from pipeline.storage import read_file  # brings Arrow, for which a file on this machine need not wait

            return read_file(url)
    except OSError as error:
        raise UsageError(f"--config: cannot read {url}: {error.strerror}") from error
    except StorageError as error:
        raise UsageError(f"--config: {error}") from error


def _as_words(flag: argparse.Action, key: str, value: object, url: str) -> list[str]:
    """Return a key and its value as words of a command line, once the flag would take them."""
    name = flag.option_strings[0]
    is_switch = flag.nargs == 0
    if isinstance(value, bool):
        if is_switch:
            return [name] if value else [text for text in flag.option_strings if is_negation(flag, text)]
        if flag.nargs == "?":
            return [name] if value else []
    elif not is_switch:
        texts = _as_texts(flag, value)
        if texts is not None:
            _try_values(flag, texts, f"--config {url}: {key}", isinstance(value, list))
            return [f"{name}={text}" for text in texts]
    is_table = isinstance(flag, KeyValueFlag)
    expected = "true or false" if is_switch else "a table" if is_table else "a text or a number"
    # The value is not shown: it may be a secret in the wrong place.
    raise UsageError(f"--config {url}: {key}: expected {expected}, found {type(value).__name__}")


def _as_texts(flag: argparse.Action, value: object) -> list[str] | None:
    """Return a value as the texts that the flag reads, or None where it is of the wrong kind."""
    if isinstance(flag, KeyValueFlag):
        if not isinstance(value, Mapping) or not all(_is_plain(item) for item in value.values()):
            return None
        return [f"{name}={_as_text(item)}" for name, item in value.items()]
    if isinstance(value, list):
        return [",".join(map(str, value))] if all(_is_plain(item) for item in value) else None
    return [str(value)] if _is_plain(value) else None


def _try_values(flag: argparse.Action, texts: Sequence[str], where: str, is_list: bool) -> None:
    for text in texts:
        try:
            parsed = flag.type(text) if callable(flag.type) else text
        except (argparse.ArgumentTypeError, ValueError) as error:
            told = isinstance(error, argparse.ArgumentTypeError)
            reason = (
                str(error) if told else f"expected a {getattr(flag.type, '__name__', 'value')}, found {text!r}"
            )
            raise UsageError(f"{where}: {reason}") from None
        if is_list and not isinstance(parsed, tuple):
            raise UsageError(f"{where}: expected one value, found a list")
        if flag.choices is not None and parsed not in flag.choices:
            raise UsageError(f"{where}: expected one of {', '.join(map(str, flag.choices))}, found {text!r}")


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
