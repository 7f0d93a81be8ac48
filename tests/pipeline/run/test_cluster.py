import logging
import threading
import time

import pytest

from pipeline.errors import RunError
from pipeline.run.cluster import quiet_ray, start_ray, take_turn


def test_ray_is_quiet_until_the_last_of_several_runs_is_over() -> None:
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        first, second = quiet_ray(), quiet_ray()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert logger.level == logging.WARNING
        second.__exit__(None, None, None)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_runs_of_a_process_take_turns() -> None:
    inside: list[int] = []
    most: list[int] = []

    def run(number: int) -> None:
        with take_turn(lambda: None):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_who_waits_goes_on_telling_others_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()

    def wait() -> None:
        with take_turn(told.set):
            pass

    monkeypatch.setattr("pipeline.run.cluster._WAIT_S", 0.05)
    with take_turn(lambda: None):
        thread = threading.Thread(target=wait)
        thread.start()
        assert told.wait(5)
        assert thread.is_alive()
    thread.join(5)
    assert not thread.is_alive()


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise Exception("The current node timed out\n during startup.")  # as Ray does it on a busy machine

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(RunError, match="Ray did not start: The current node timed out during startup") as caught:
        start_ray()
    assert "\n" not in str(caught.value)
