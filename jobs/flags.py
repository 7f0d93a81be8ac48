"""A command's flags as a table: what its parser, a configuration file and a run's record all go by.

The table is filled from what ``argparse`` returns for each flag that is added (an ``argparse.Action``, whose
attributes its documentation lists), so nothing here looks into a parser.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


class KeyValueFlag(argparse.Action):
    """A repeatable flag of KEY=VALUE; its value is the list of all pairs."""

    def __call__(self, _: object, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        """Add one pair."""
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


@dataclass
class FlagTable:
    """The flags of one command.

    Args:
        flags: All of them, in the order of ``--help``.
        exclusive: Groups of flags of which a command line may have one.
    """

    flags: list[argparse.Action] = field(default_factory=list)
    exclusive: list[list[argparse.Action]] = field(default_factory=list)

    def add(self, flag: argparse.Action, text: str | None) -> None:
        """Enter a flag; its help says the default where there is one that tells a reader something."""
        flag.help = text
        if text is not None and flag.default not in (None, False, [], (), argparse.SUPPRESS):
            flag.help = f"{text} (default: %(default)s)"
        self.flags.append(flag)

    def find(self, word: str) -> argparse.Action | None:
        """Return the flag that a word of a command line names, in full or by an unambiguous beginning."""
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "--":
            return None
        exact = [flag for flag in self.flags if name in flag.option_strings]
        if exact or not name.startswith("--"):
            return next(iter(exact), None)
        begun = [flag for flag in self.flags if any(text.startswith(name) for text in flag.option_strings)]
        return begun[0] if len(begun) == 1 else None

    def list_unknown(self, words: Iterable[str]) -> list[str]:
        """List words of a command line that look like long flags and are none, not even the beginning of one."""
        names = [name for flag in self.flags for name in flag.option_strings]
        unknown = []
        for word in words:
            if word == "--":  # what follows are values
                break
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and not any(text.startswith(name) for text in names):
                unknown.append(word)
        return unknown

    def find_nearest(self, name: str) -> str:
        """Return the long flag that a mistyped one comes nearest to."""
        names = [text for flag in self.flags for text in flag.option_strings if text.startswith("--")]
        return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]

    def list_rivals(self, given: Sequence[argparse.Action | None]) -> list[argparse.Action]:
        """List flags that exclude one that is given."""
        return [rival for group in self.exclusive if any(flag in given for flag in group) for rival in group]

    def name_keys(self) -> dict[str, argparse.Action]:
        """Return the flags by their names without dashes in front, all spellings; a negation is not one."""
        return {
            name.lstrip("-"): flag
            for flag in self.flags
            for name in flag.option_strings
            if not is_negation(flag, name)
        }


def name_flag(flag: argparse.Action) -> str:
    """Return a flag's first long name without its dashes; of a positional its name."""
    names = [name for name in flag.option_strings if name.startswith("--")] or list(flag.option_strings)
    return names[0].lstrip("-") if names else flag.dest


def is_negation(flag: argparse.Action, name: str) -> bool:
    """Say whether a name is the one that turns a switch off."""
    return isinstance(flag, argparse.BooleanOptionalAction) and name.startswith("--no-")
