"""The commands: every module of ``jobs`` that can be run."""

from importlib import import_module
from pathlib import Path

import jobs

_FOLDER = Path(str(jobs.__file__)).parent
COMMANDS = [
    import_module(f"jobs.{path.stem}")
    for path in sorted(_FOLDER.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]
