"""A short turn of ``make fuzz``: the first files of a seed, on fewer kinds of files."""

import pytest

from tests.fuzz.judge import FAULTS, Judge, Verdict
from tests.fuzz.recordings import encode_recordings


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_damaged_file_is_silently_wrong() -> None:
    judge = Judge(encode_recordings()[::3], seed=2, oracle="library")
    try:
        outcomes = [judge.judge(number) for number in range(120)]
    finally:
        judge.stop()
    assert not [(outcome.name, outcome.detail) for outcome in outcomes if outcome.verdict in FAULTS]
    found = {outcome.verdict for outcome in outcomes}
    assert {Verdict.REFUSED, Verdict.EQUAL} <= found
