"""The service on Ray Serve: replicas of the application behind one port, until somebody ends it."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from pipeline.logs import say
from pipeline.service.app import create_app
from pipeline.service.port import claim_port
from pipeline.service.state import ServiceSettings, ServiceState, find_locations

logger = logging.getLogger(__name__)

APPLICATION = "musicfm"
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
MAX_ONGOING_REQUESTS = 256  # of a replica; more wait in the proxy


class Replica:
    """One process that answers.

    Args:
        settings: What is served.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        torch.set_num_threads(settings.num_threads)
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # made on the node of the command alone
            os.makedirs(folder, exist_ok=True)
        self.state = ServiceState(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve asks for it by this name once the replica is made."""
        return create_app(self.state)


def run_service(
    settings: ServiceSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    num_replicas: int = 1,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: What is served.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        num_replicas: Processes that answer.
        on_ready: Is called with the service's URL once it answers.

    Raises:
        UsageError: The port is taken, there is no index, or the checkpoint is not its recipe's.
        CheckpointError: The checkpoint is none, or not whole.
    """
    port = claim_port(host, port)
    say(f"opening the index of {settings.store.url}")
    find_locations(settings)  # that there is none is told at once
    if settings.checkpoint is not None:
        say(f"loading the checkpoint {settings.checkpoint}")
    with ThreadPoolExecutor(1) as aside:
        # A mistake is told here, in one line; a replica would tell it in a hundred, three times.
        # On the processor: the GPUs are the replicas'.
        opened = aside.submit(ServiceState, replace(settings, device="cpu"))
        say("starting Ray")
        start_ray()  # in this thread: Ray's processes end with the one that started them
        opened.result()
    ended = threading.Event()
    with start_serve(host, port) as shared_folder:
        say(f"starting {num_replicas} {'process' if num_replicas == 1 else 'processes'} to answer")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        deployment: Any = serve.deployment(
            serve.ingress()(Replica),
            name=APPLICATION,
            num_replicas=num_replicas,
            max_ongoing_requests=MAX_ONGOING_REQUESTS,
            ray_actor_options={
                "num_cpus": 0,  # the machine is shared out by threads, below
                "num_gpus": share_gpus(settings, num_replicas, ray.cluster_resources().get("GPU", 0)),  # type: ignore[no-untyped-call]
                "runtime_env": {"env_vars": {"PROMETHEUS_MULTIPROC_DIR": shared_folder}},
            },
        )
        serve.run(deployment.bind(settings), name=APPLICATION, route_prefix="/", logging_config=QUIET)
        shown = f"[{host}]" if ":" in host else host
        on_ready(f"http://{shown}:{port}/")
        ended.wait()


def share_gpus(settings: ServiceSettings, num_replicas: int, num_gpus: float) -> float:
    """Return the part of a GPU that a replica reserves: Ray shows it that one alone.

    Args:
        settings: What is served; without a model, or with one on the processor, none is needed.
        num_replicas: Processes that answer.
        num_gpus: GPUs of the cluster.

    Returns:
        A whole one, or where there are fewer than replicas the largest part of which each gets one.
    """
    if settings.checkpoint is None or settings.device == "cpu" or num_gpus < 1:
        return 0.0
    return 1 / math.ceil(num_replicas / int(num_gpus))


def start_ray() -> None:
    """Join the Ray that ``RAY_ADDRESS`` names, or start one."""
    if not ray.is_initialized():
        # Ray's notice of a token that it makes and uses by itself, and that a thread cannot have its SIGTERM.
        for name in ("ray._private.authentication", "ray._private.worker"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # Not whatever cluster runs on this machine: it may be another command's, and end with it.
        address = os.environ.get("RAY_ADDRESS", "local")
        ray.init(address=address, logging_level=logging.WARNING, include_dashboard=False)


@contextmanager
def start_serve(host: str, port: int) -> Iterator[str]:
    """Start Serve on the Ray that ``start_ray`` gives, and end both at last.

    Yields:
        A folder that the replicas share, for their metrics.
    """
    start_ray()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="musicfm-metrics-") as folder:
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options=HTTPOptions(host=host, port=port),
                logging_config=QUIET,
            )
            yield folder
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
