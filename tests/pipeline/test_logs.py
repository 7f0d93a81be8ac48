import json
import logging
from collections.abc import Iterator

import pytest

from pipeline.logs import RUN_ID, JsonFormatter, say, start_logging


@pytest.fixture
def clean_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("pipeline")
    before = list(root.handlers), root.level, own.level
    token = RUN_ID.set("0a1b2c")
    yield
    RUN_ID.reset(token)
    root.handlers = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


@pytest.mark.usefixtures("clean_logging")
def test_json_lines_carry_the_run_and_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("json")
    logging.getLogger("pipeline.run.run").info("planned %d", 3, extra={"to_process": 3})
    logging.getLogger("somebody.else").info("left out")
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        logging.getLogger("pipeline.run.run").exception("it failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert {"level": "INFO", "message": "planned 3", "run_id": "0a1b2c", "to_process": 3}.items() <= first.items()
    assert first["logger"] == "pipeline.run.run"
    assert first["time"].endswith("+00:00")
    assert "ValueError: no\nsuch thing" in second["exception"]


def test_what_json_cannot_hold_is_written_as_text() -> None:
    record = logging.makeLogRecord({"msg": "m", "path": {1, 2}.__class__})
    assert json.loads(JsonFormatter().format(record))["path"] == "<class 'set'>"


@pytest.mark.usefixtures("clean_logging")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_run_is_at_is_said_once(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(log_format)
    say("listing the catalog")
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["message"] if log_format == "json" else line) == "listing the catalog"
