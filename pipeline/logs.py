"""Logs: every record carries the run's id, as text for people or as one JSON object a line for a collector."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

RUN_ID: ContextVar[str] = ContextVar("run_id", default="")
"""The run that this process is at; set where the run gets its id."""

_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "run_id"}  # all else came by `extra=`


def say(words: str) -> None:
    """Tell people what is being done: a line on standard error, or in the log where it is kept at INFO."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(words)
    else:
        print(words, file=sys.stderr, flush=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message, run_id, and the fields given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run_id": RUN_ID.get(),
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(log_format: str = "text") -> None:
    """Send log records to standard error.

    Args:
        log_format: ``text``: warnings and worse, for people. ``json``: from INFO up, the course of the run too.
    """
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # Whoever embeds this in a program of their own keeps the handlers that they chose.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=log_format == "json")
    for name in ("pipeline", "jobs"):
        logging.getLogger(name).setLevel(logging.INFO if log_format == "json" else logging.WARNING)
