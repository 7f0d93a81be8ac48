"""A training job shared out among Ray Train's workers; a group that loses one starts again from the last state."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from pipeline.errors import FeatureStoreError, RunError
from pipeline.run.cluster import quiet_ray, start_ray
from pipeline.training.worker import Figures, Worker

MAX_FAILURES = 3  # how often a group that lost a worker starts again
START_TIMEOUT_S = 300  # a busy machine takes minutes to load PyTorch in every worker


@dataclass(frozen=True)
class Group:
    """The workers that share a job.

    Args:
        name: Of the run.
        folder: Where Ray Train keeps its own records of it; one that every node sees.
        num_workers: One or more.
        use_gpu: Whether each of them has a GPU.
    """

    name: str
    folder: Path
    num_workers: int
    use_gpu: bool


def run_group(work: Callable[[dict[str, Any]], None], settings: object, group: Group) -> None:
    """Do a job with Ray Train's workers.

    Args:
        work: What each worker does, with ``{"settings": settings}``; it begins from the job's last saved state.
        settings: Of the job.
        group: The workers.

    Raises:
        RunError: The group lost too many workers, or the training itself broke off.
    """
    start_ray()
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    trainer = TorchTrainer(
        work,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=group.num_workers, use_gpu=group.use_gpu),
        run_config=RunConfig(
            name=group.name,
            storage_path=str(group.folder.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
        torch_config=TorchConfig(backend="nccl" if group.use_gpu else "gloo"),
    )
    try:
        with quiet_ray():
            trainer.fit()
    except Exception as error:
        raise RunError(f"the group of workers broke off: {find_cause(error)}") from error


def join_group() -> Worker:
    """Return which of the workers this process is."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    return Worker(
        device,
        context.get_world_rank(),
        context.get_world_size(),
        share_model,
        average_figures,
        broadcast_figures,
        ray.train.report,
    )


def leave_group() -> None:
    """Wait until all workers have done their part."""
    dist.barrier()


def share_model(model: nn.Module) -> nn.Module:
    """Wrap a model, which is on its device, so that its gradients are the means over the group."""
    shared: nn.Module = ray.train.torch.prepare_model(model, move_to_device=False)
    return shared


def average_figures(figures: Figures) -> Figures:
    """Return the mean over the group's workers of each figure."""
    names = sorted(figures)
    values = torch.tensor([figures[name] for name in names], dtype=torch.float64)
    values = values.to(choose_exchange_device())
    dist.all_reduce(values)
    means = (values / dist.get_world_size()).tolist()
    return dict(zip(names, means, strict=True))


def broadcast_figures(figures: Figures) -> Figures:
    """Return the first worker's figures."""
    content: list[Any] = [figures]
    dist.broadcast_object_list(content, src=0, device=choose_exchange_device())
    shared: Figures = content[0]
    return shared


def choose_exchange_device() -> torch.device:
    """Return the device whose tensors the group's back end passes on."""
    return ray.train.torch.get_device() if dist.get_backend() == "nccl" else torch.device("cpu")


def find_cause(error: BaseException) -> str:
    """Return one line on the first error of this package behind a failure of the group, or on the failure."""
    failures = getattr(error, "worker_failures", None) or {}
    for candidate in (*failures.values(), error):
        cause: BaseException | None = getattr(candidate, "cause", candidate)
        while cause is not None:
            if isinstance(cause, FeatureStoreError):
                return str(cause)
            cause = cause.__cause__
    return " ".join(str(error).split())[:300]
