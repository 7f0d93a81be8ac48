"""The commands: the modules behind every name that ``musicfm`` knows."""

from importlib import import_module

from jobs.__main__ import COMMANDS as TABLE

COMMANDS = {name: import_module(f"jobs.{module}") for name, (module, _) in TABLE.items()}
