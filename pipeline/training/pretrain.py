"""A pretraining run on Ray Train: the corpus, the group of workers, the checkpoint that comes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from musicfm_model.config import ModelConfig
from pipeline.errors import FeatureStoreError, RunError, UsageError
from pipeline.run.cluster import start_ray
from pipeline.storage import Options
from pipeline.training.corpus import HELD_OUT, TRAIN, open_corpus
from pipeline.training.export import export_checkpoint
from pipeline.training.loop import Intervals, TrainingRun, Worker, build_model
from pipeline.training.prepare import CorpusReport, prepare_corpus
from pipeline.training.progress import ProgressLine
from pipeline.training.recipe import Recipe
from pipeline.training.state import Progress


@dataclass(frozen=True)
class PretrainSettings:
    """Where a run lies and what shares it out.

    Args:
        folder: The run's: corpus, state and checkpoint; one that every node sees.
        name: Of the run; the same folder and name go on where it ended.
        config: Sizes of the model.
        recipe: What it is trained by.
        intervals: How often it does what.
        num_workers: Of Ray Train; 0 trains in this process.
        use_gpu: Whether each of them has a GPU.
        max_failures: How often a group that lost a worker starts again.
    """

    folder: Path
    name: str
    config: ModelConfig
    recipe: Recipe
    intervals: Intervals
    num_workers: int = 0
    use_gpu: bool = False
    max_failures: int = 3

    @property
    def run_folder(self) -> Path:
        """The run's own folder."""
        return self.folder / self.name

    @property
    def corpus_folder(self) -> Path:
        """The corpus, which runs of the same folder share."""
        return self.folder / "corpus"

    @property
    def checkpoint(self) -> Path:
        """What comes out."""
        return self.run_folder / f"{self.name}.pt"


@dataclass(frozen=True)
class PretrainReport:
    """How a run ended.

    Args:
        corpus: What became of the catalog's tracks.
        progress: Steps, and the curve.
        checkpoint: The file that came out.
    """

    corpus: CorpusReport
    progress: Progress
    checkpoint: Path


def pretrain(
    train: pa.Table, held_out: pa.Table, settings: PretrainSettings, options: Options | None = None
) -> PretrainReport:
    """Train a model on a catalog, from the last saved state of the run or from the beginning.

    Args:
        train: Rows of ``schema.CATALOG`` to train on.
        held_out: Rows to measure on.
        settings: Where and how.
        options: Of the audio's file system.

    Raises:
        UsageError: The settings contradict themselves, or no track is long enough.
        RunError: The run broke off; its last whole state stays.
    """
    if settings.recipe.num_slots % max(1, settings.num_workers):
        raise UsageError(
            f"expected micro-batches that {settings.num_workers} workers can share evenly, found "
            f"{settings.recipe.num_slots} a step: give --num-slots a multiple of --num-workers"
        )
    corpus = prepare_corpus(train, held_out, settings.corpus_folder, settings.config.n_mels, options)
    if settings.num_workers == 0:
        progress = train_worker(settings, Worker(), choose_device(), lambda model: model, show=True)
    else:
        train_group(settings)
        progress = train_worker(settings, Worker(), torch.device("cpu"), lambda model: model, only_load=True)
    return PretrainReport(corpus, progress, settings.checkpoint)


def train_worker(
    settings: PretrainSettings,
    worker: Worker,
    device: torch.device,
    share_out: Callable[[nn.Module], nn.Module],
    show: bool = False,
    only_load: bool = False,
    tell: Callable[[dict[str, float]], None] | None = None,
    combine: Callable[[dict[str, float]], dict[str, float]] = lambda figures: figures,
) -> Progress:
    """Do one worker's part of a run, and write the checkpoint where it is the first worker.

    Args:
        settings: Of the run.
        worker: Which of the workers this is.
        device: Its own.
        share_out: Wraps the model for a group.
        show: Whether to draw the progress line.
        only_load: Whether only to read how the run ended.
        tell: Gets every line of the curve.
        combine: Makes the workers' figures one.
    """
    corpus, held_out = (open_corpus(settings.corpus_folder, part) for part in (TRAIN, HELD_OUT))
    stats = corpus.measure_stats()
    recipe = settings.recipe
    model = build_model(settings.config, recipe, stats, settings.run_folder).to(device)
    line = ProgressLine(recipe.num_steps) if show else None

    def on_report(figures: dict[str, float]) -> None:
        if line is not None:
            line.show(figures)
        if tell is not None:
            tell(figures)

    intervals = Intervals(0, 0, 0) if only_load else settings.intervals
    run = TrainingRun(
        model,
        share_out(model),
        corpus,
        held_out,
        settings.run_folder,
        intervals,
        worker,
        on_report=on_report,
        combine=combine,
    )
    progress = run.run()
    if line is not None:
        line.close()
    if worker.rank == 0:
        try:
            export_checkpoint(model.musicfm, settings.checkpoint)
        except (OSError, RuntimeError) as error:
            raise RunError(f"cannot write {settings.checkpoint}: {error}; the run's state is kept") from error
    return progress


def train_group(settings: PretrainSettings) -> None:
    """Train with Ray Train's workers; a group that loses one starts again from the last saved state.

    Raises:
        RunError: It lost too many, or the training itself broke off.
    """
    start_ray()
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # loading torch on a busy machine
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=settings.num_workers, use_gpu=settings.use_gpu),
        run_config=RunConfig(
            name=settings.name,
            storage_path=str((settings.folder / "ray").resolve()),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RunError(f"the group of workers broke off: {find_cause(error)}") from error


def run_worker(config: dict[str, Any]) -> None:
    """Do this Ray Train worker's part."""
    settings: PretrainSettings = config["settings"]
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)

    def share_out(model: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(model, move_to_device=False)

    train_worker(settings, worker, device, share_out, tell=ray.train.report, combine=average_figures)
    dist.barrier()


def average_figures(figures: dict[str, float]) -> dict[str, float]:
    """Return the mean over the group's workers of each figure."""
    names = sorted(figures)
    values = torch.tensor([figures[name] for name in names], dtype=torch.float64)
    device = ray.train.torch.get_device() if dist.get_backend() == "nccl" else torch.device("cpu")
    values = values.to(device)
    dist.all_reduce(values)
    means = (values / dist.get_world_size()).tolist()
    return dict(zip(names, means, strict=True))


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


def choose_device() -> torch.device:
    """Return a GPU where this process has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
