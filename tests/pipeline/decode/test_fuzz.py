"""A short turn of ``make fuzz``: the first files of a seed, on fewer kinds of files."""

import pytest

from tests.fuzz.judge import FAULTS, Judge, Verdict
from tests.fuzz.recordings import encode_recordings

# Files by seed: joints in flac, an index of tta over tags, aac of 40,000 times full scale, headers of aiff and wav
# that contradict themselves, streams that are none, a tag whose size reaches into the music, voc behind voc
# and with another start, text in a tag that looks like audio, packets that look like an Akai sample.
ONCE_WRONG = {
    7: (669, 2617, 2986, 3737, 3812, 3832, 4346, 5579, 5712, 6044, 7264, 9039),
    8: (1286, 2087),
    1: (745, 8794),
    9: (3344, 5525),
    17: (189, 3610),
    19: (7051, 9124),
    23: (1434,),
}


@pytest.mark.slow
def test_no_damaged_file_is_silently_wrong() -> None:
    judge = Judge(encode_recordings()[::3], seed=2, oracle="library")
    try:
        outcomes = [judge.judge(number) for number in range(120)]
    finally:
        judge.stop()
    assert not [(outcome.name, outcome.detail) for outcome in outcomes if outcome.verdict in FAULTS]
    found = {outcome.verdict for outcome in outcomes}
    assert {Verdict.REFUSED, Verdict.EQUAL} <= found


@pytest.mark.slow
def test_files_that_were_once_silently_wrong_are_not_again() -> None:
    recordings = encode_recordings()
    outcomes = []
    for seed, numbers in ONCE_WRONG.items():
        judge = Judge(recordings, seed, oracle="library")
        try:
            outcomes += [judge.judge(number) for number in numbers]
        finally:
            judge.stop()
    assert not [(outcome.name, outcome.detail) for outcome in outcomes if outcome.verdict in FAULTS]
