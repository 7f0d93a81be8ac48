from pipeline.report.words import say_bytes, say_date, say_number, say_time


def test_amounts_are_written_as_people_do() -> None:
    assert [say_time(s) for s in (1.23, 150, 9000)] == ["1.2 s", "2.5 min", "2.5 h"]
    assert [say_bytes(n) for n in (12, 1234, 5.5e6, 2e12)] == ["12 bytes", "1.23 kB", "5.5 MB", "2 TB"]
    assert [say_number(n, "track") for n in (0, 1, 2, 4321)] == ["0 tracks", "1 track", "2 tracks", "4,321 tracks"]
    assert say_number(1, "is", "are") == "1 is"


def test_a_date_is_one_everywhere() -> None:
    assert say_date("2026-11-05T23:30:00-02:00") == "6 November 2026, 01:30 UTC"
