"""A pretraining run on Ray Train: the corpus, the group of workers, the checkpoint that comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from musicfm_model.config import ModelConfig
from pipeline.errors import RunError, UsageError
from pipeline.storage import Options
from pipeline.training.corpus import HELD_OUT, TRAIN, open_corpus
from pipeline.training.course import Intervals
from pipeline.training.export import export_checkpoint, write_text_whole
from pipeline.training.group import Group, join_group, leave_group, run_group
from pipeline.training.loop import TrainingRun, build_model
from pipeline.training.prepare import CorpusReport, prepare_corpus
from pipeline.training.progress import watch_run
from pipeline.training.recipe import Recipe
from pipeline.training.run_page import build_run_page
from pipeline.training.state import Progress
from pipeline.training.worker import Worker, choose_device


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
        events: Whether the curve goes to TensorBoard, too: into ``events`` of the run's folder.
    """

    folder: Path
    name: str
    config: ModelConfig
    recipe: Recipe
    intervals: Intervals
    num_workers: int = 0
    use_gpu: bool = False
    events: bool = False

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

    @property
    def page(self) -> Path:
        """Its page for people."""
        return self.run_folder / f"{self.name}.html"


@dataclass(frozen=True)
class PretrainReport:
    """How a run ended.

    Args:
        corpus: What became of the catalog's tracks.
        progress: Steps, and the curve.
        checkpoint: The file that came out.
        page: The run's page.
    """

    corpus: CorpusReport
    progress: Progress
    checkpoint: Path
    page: Path


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
        progress = train_worker(settings, Worker(choose_device()), show=True)
    else:
        group = Group(settings.name, settings.folder / "ray", settings.num_workers, settings.use_gpu)
        run_group(run_worker, settings, group)
        progress = train_worker(settings, Worker(torch.device("cpu")), only_load=True)
    return PretrainReport(corpus, progress, settings.checkpoint, settings.page)


def run_worker(config: dict[str, Any]) -> None:
    """Do this Ray Train worker's part."""
    train_worker(config["settings"], join_group())
    leave_group()


def train_worker(
    settings: PretrainSettings, worker: Worker, show: bool = False, only_load: bool = False
) -> Progress:
    """Do one worker's part of a run, and write the checkpoint where it is the first worker.

    Args:
        settings: Of the run.
        worker: Which of the workers this is.
        show: Whether to draw the progress line.
        only_load: Whether only to read how the run ended.
    """
    corpus, held_out = (open_corpus(settings.corpus_folder, part) for part in (TRAIN, HELD_OUT))
    stats = corpus.measure_stats()
    recipe = settings.recipe
    model = build_model(settings.config, recipe, stats, settings.run_folder).to(worker.device)
    intervals = Intervals(0, 0, 0) if only_load else settings.intervals
    events = settings.run_folder / "events" if settings.events and worker.is_first and not only_load else None
    with watch_run(recipe.num_steps, show, events) as tell:
        run = TrainingRun(model, corpus, held_out, settings.run_folder, intervals, worker, tell)
        progress = run.run()
    if worker.is_first:
        try:
            export_checkpoint(model.musicfm, settings.checkpoint)
            page = build_run_page(settings.name, settings.config, recipe, progress)
            write_text_whole(settings.page, page)
        except (OSError, RuntimeError) as error:
            raise RunError(f"cannot write {settings.checkpoint}: {error}; the run's state is kept") from error
    return progress
