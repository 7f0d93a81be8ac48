from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.progress import STAGES, Work, WorkBook

NODES = ("10.0.0.1/aaaa", "10.0.0.2/bbbb")
works = st.builds(
    Work,
    num_tasks=st.integers(0, 3),
    num_tracks=st.integers(0, 9),
    seconds=st.integers(0, 100).map(float),
    audio_s=st.integers(0, 100).map(float),
    bytes_written=st.dictionaries(st.sampled_from(["8hz", "16hz"]), st.integers(0, 99)),
)


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.sampled_from(NODES), works), max_size=20))
def test_the_books_are_the_sum_of_what_tasks_told(told: list[tuple[str, str, Work]]) -> None:
    book = WorkBook(0.0)
    for number, (stage, node, work) in enumerate(told):
        book.end(str(number), stage, node, work, work.num_tracks, 1.0)
    placement = book.read()["placement"]
    for stage in STAGES:
        own = [(node, work) for other, node, work in told if other == stage]
        assert set(placement[stage]) == {node for node, _ in own}
        assert book.count_tracks(stage) == sum(work.num_tracks for _, work in own)
        for name in ("num_tasks", "num_tracks", "seconds", "audio_s"):
            found = sum(work[name] for work in placement[stage].values())
            assert found == sum(getattr(work, name) for _, work in own)
        for resolution in ("8hz", "16hz"):
            found = sum(work["bytes_written"].get(resolution, 0) for work in placement[stage].values())
            assert found == sum(work.bytes_written.get(resolution, 0) for _, work in own)


def decode(book: WorkBook, task_id: str, num_tracks: int, now_s: float) -> None:
    book.begin(task_id, "decode", NODES[0], num_tracks, "a", now_s)
    book.end(task_id, "decode", NODES[0], Work(1, num_tracks), num_tracks, now_s)


def test_before_anything_began_decoding_is_what_is_waited_for() -> None:
    assert "decode: none of its tasks has begun" in WorkBook(0.0).describe_standstill(60.0)


def test_a_file_that_a_decoder_never_ends_is_named() -> None:
    book = WorkBook(0.0)
    book.begin("t1", "decode", NODES[1], 8, "first", 10.0)
    book.advance("t1", "decode", NODES[1], Work(num_tracks=3), "fourth", 20.0)
    said = book.describe_standstill(320.0)
    assert "does not advance is decode" in said
    assert NODES[1] in said
    assert "'fourth' since 300 s" in said


def test_tracks_that_no_model_takes_are_told() -> None:
    book = WorkBook(0.0)
    decode(book, "t1", 8, 10.0)
    said = book.describe_standstill(100.0)
    assert said == "the stage that does not advance is embed: 8 tracks wait, none of its tasks runs"
    assert book.count_waiting("embed") == 8
    assert book.idle_s("decode", 100.0) == 90.0


def test_the_last_stage_with_work_is_the_one_that_holds_the_others_up() -> None:
    book = WorkBook(0.0)
    decode(book, "t1", 8, 10.0)
    decode(book, "t2", 8, 11.0)
    book.begin("e1", "embed", NODES[0], 8, "a", 12.0)
    book.begin("t3", "decode", NODES[1], 8, "q", 13.0)
    said = book.describe_standstill(62.0)
    assert "does not advance is embed: 1 of its tasks" in said
    assert "'a' since 50 s, and 8 more tracks wait" in said
    assert book.count_running() == {("decode", NODES[0]): 0, ("embed", NODES[0]): 1, ("decode", NODES[1]): 1}


def test_tasks_that_never_said_that_they_began_count_as_well() -> None:
    book = WorkBook(0.0)
    book.end("t1", "decode", NODES[0], Work(1, 8), 8, 1.0)
    assert (book.count_waiting("embed"), book.count_running()) == (8, {("decode", NODES[0]): 0})
    book.end("e1", "embed", NODES[0], Work(1, 3), 8, 2.0)  # broke off after three
    assert (book.count_waiting("embed"), book.count_waiting("write")) == (0, 8)


def test_a_task_that_is_tried_again_counts_as_one() -> None:
    book = WorkBook(0.0)
    book.begin("t1", "decode", NODES[0], 8, "a", 1.0)
    book.begin("t1", "decode", NODES[1], 8, "a", 2.0)
    assert book.count_running() == {("decode", NODES[1]): 1}
    book.forget_running()
    assert book.count_running() == {}
    assert book.count_waiting("embed") == 0
