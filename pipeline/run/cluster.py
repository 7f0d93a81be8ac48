"""The cluster that a run works on: joined, or started here, without a trace in the process that asks for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray

from pipeline.errors import RunError
from pipeline.run.placement import WORKER_ENVIRONMENT

if TYPE_CHECKING:  # it takes a second to import, in which Ray may start already
    import ray.data

# A Ray on one machine has no use for its autoscaler. Of the two versions the newer one ends when it is told to;
# the older asks processes that have ended first, and every command's end waits a second for it.
_START_ENVIRONMENT = {**WORKER_ENVIRONMENT, "RAY_enable_autoscaler_v2": "1"}

# What Ray says at its start: "authentication" that local connections need a token, which it makes and uses by
# itself; "worker" that a thread cannot have its SIGTERM. And in a run: "progress" that its bars are off;
# "exceptions" that a pass which was ended on purpose is a fault of Ray's (what is one becomes a RunError).
_START_LEVELS = {
    "ray": logging.WARNING,
    "ray._private.authentication": logging.ERROR,
    "ray._private.worker": logging.ERROR,
}
_RUN_LEVELS = {
    "ray": logging.WARNING,
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    "ray.data.exceptions": logging.CRITICAL,
}
# And at an end before any work began: that the tasks that warm workers up, which nobody waits for, were cut short.
_END_LEVELS = {"ray._private.worker": logging.CRITICAL}

_MAX_WARMED = 8  # a first block keeps no more of them busy
_UNWARMED = 2  # CPUs that start the model and Ray's own actors, which everything waits for

_WAIT_S = 5.0
_turn = threading.Lock()
_starting = threading.Lock()
_num_asked = 0  # how often Ray was asked for
_hushing = threading.Lock()
_hushed: dict[str, tuple[int, int]] = {}  # loggers by name: how many blocks go on, and the level before them


def start_ray() -> None:
    """Join the cluster that the environment names, or start one on this machine.

    Under ``ray job submit`` the address is set; on a laptop nothing is, and Ray starts by itself. It then stays up
    for whoever calls next, and ends with the process or by ``ray.shutdown()``. The process's signal handlers,
    environment and loggers are left as they were.

    Raises:
        RunError: Ray does not start, or the cluster does not answer.
    """
    global _num_asked
    with _starting:
        _num_asked += 1
        ended_by = signal.getsignal(signal.SIGTERM)
        if not ray.is_initialized():
            with _hush(_START_LEVELS), _set_environment(_START_ENVIRONMENT):
                try:
                    ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
                except Exception as error:  # Ray raises exceptions of every kind there, bare ones among them
                    said = " ".join(str(error).split())[:300]
                    raise RunError(f"Ray did not start: {said}; {_advise(error)}") from error
        if threading.current_thread() is threading.main_thread() and ended_by is not None:
            # Ray put its own in its place, in Python or, where it was started in a thread, below it: that one
            # prints a stack and aborts the process three seconds later, whatever it is at.
            signal.signal(signal.SIGTERM, ended_by)


def _advise(error: Exception) -> str:
    if "/.ray" in str(error):  # where Ray keeps the token that it makes for local connections
        return "let HOME name a folder that can be written, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    return "see that the machine has time and memory to spare, and that RAY_ADDRESS, where it is set, is right"


def start_ray_early() -> Callable[[], None]:
    """Start Ray as ``start_ray`` does, for a run that may turn out not to begin.

    Returns:
        Ends the Ray that was started here, unless somebody has asked for it since.
    """
    was_there = ray.is_initialized()
    start_ray()
    asked_before = _num_asked

    def end() -> None:
        with _starting:
            if not was_there and _num_asked == asked_before:
                with _hush(_END_LEVELS):
                    ray.shutdown()

    return end


def warm_workers() -> None:
    """Let the workers of a Ray on this machine load what tasks need, while the driver still plans.

    It takes each of them seconds of a CPU: on a machine with no more than two, the model's start would wait for
    them. On a cluster it would take CPUs from others, and autoscalers would answer.
    """
    if len(ray.nodes()) == 1:  # type: ignore[no-untyped-call]
        num_cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        warm: Any = ray.remote(num_cpus=1, max_retries=0)(_load_steps)
        for _ in range(min(_MAX_WARMED, num_cpus - _UNWARMED)):
            warm.remote()


def _load_steps() -> None:
    import_module("pipeline.run.dataflow")


@contextmanager
def take_turn(while_waiting: Callable[[], object]) -> Iterator[None]:
    """Have the cluster to oneself inside the block, among the runs of this process.

    Each run is laid out for the whole cluster: of two at once either could hold the CPUs that the other's tasks
    wait for, and neither would end.

    Args:
        while_waiting: Is called every few seconds until it is this run's turn.
    """
    while not _turn.acquire(timeout=_WAIT_S):
        while_waiting()
    try:
        yield
    finally:
        _turn.release()


def set_up(dataset: ray.data.Dataset, keeps_order: bool = True) -> None:
    """Set how a dataset is run; the settings are its own, and those of what is made of it, not the process's.

    Args:
        dataset: What is to be run.
        keeps_order: Rows come out in the order in which they went in: one that takes long holds up all behind it.
    """
    context = dataset.context
    context.enable_progress_bars = False  # one line of our own counts tracks, not blocks
    context.print_on_execution_start = False
    context.execution_options.preserve_order = keeps_order


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Let Ray say only what is wrong inside the block: the run has words of its own."""
    with _hush(_RUN_LEVELS):
        yield


@contextmanager
def _hush(levels: Mapping[str, int]) -> Iterator[None]:
    """Set levels of loggers inside the block; of several blocks at once the last puts back what was before."""
    with _hushing:
        for name, level in levels.items():
            logger = logging.getLogger(name)
            num_blocks, before = _hushed.get(name, (0, logger.level))
            _hushed[name] = (num_blocks + 1, before)
            logger.setLevel(level)
    try:
        yield
    finally:
        with _hushing:
            for name in levels:
                num_blocks, before = _hushed.pop(name)
                if num_blocks > 1:
                    _hushed[name] = (num_blocks - 1, before)
                else:
                    logging.getLogger(name).setLevel(before)


@contextmanager
def _set_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that have no value, for processes started inside the block; put back what Ray sets besides."""
    before = {name: os.environ.get(name) for name in (*values, "PYTHONBREAKPOINT")}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
