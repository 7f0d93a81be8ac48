"""Fine-tuning on labelled tracks: their audio, the group of workers, the checkpoint and the head that come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from musicfm_model.model import MusicFM25Hz
from pipeline.embed.checkpoint import load_checkpoint
from pipeline.errors import UsageError
from pipeline.probing.heads import Head, HeadSpec
from pipeline.probing.splits import SPLITS
from pipeline.storage import Options
from pipeline.training.answers import ANSWERED
from pipeline.training.best import BestWeights, count_since_best
from pipeline.training.corpus import TRAIN, open_corpus
from pipeline.training.course import Course, Intervals
from pipeline.training.frozen_head import begin_with_frozen
from pipeline.training.group import Group, join_group, leave_group, run_group
from pipeline.training.labels import MAIN_METRIC, Labels
from pipeline.training.prepare import CorpusReport, prepare_corpus
from pipeline.training.progress import watch_run
from pipeline.training.step import make_optimizer
from pipeline.training.tuned import RESULT_FILE, write_result
from pipeline.training.tuning import CropSource, Tuning, measure_tracks, select_tracks
from pipeline.training.tuning_recipe import TuningRecipe
from pipeline.training.worker import Figures, Worker, choose_device


@dataclass(frozen=True)
class FinetuneSettings:
    """Where a run lies, what it begins with, and what shares it out.

    Args:
        folder: The run's: log-mels, state and what comes out; one that every node sees.
        name: Of the run; the same folder and name go on where it ended.
        checkpoint: What is fine-tuned: ``msd``, ``fma`` or a URL.
        stats: Its statistics, where they do not lie beside it.
        labels: Of the tracks.
        recipe: How it is trained.
        intervals: How often it does what.
        num_workers: Of Ray Train; 0 trains in this process.
        use_gpu: Whether each of them has a GPU.
        events: Whether the curve goes to TensorBoard, too: into ``events`` of the run's folder.
    """

    folder: Path
    name: str
    checkpoint: str
    stats: str | None
    labels: Labels
    recipe: TuningRecipe
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
        """The tracks' log-mels, which runs of the same folder share."""
        return self.folder / "corpus"


@dataclass(frozen=True)
class FinetuneReport:
    """How a run ended.

    Args:
        corpus: What became of the tracks.
        result: Figures, and the files that came out.
    """

    corpus: CorpusReport
    result: Mapping[str, Any]


def finetune(catalog: pa.Table, settings: FinetuneSettings, options: Options | None = None) -> FinetuneReport:
    """Fine-tune a checkpoint, from the last saved state of the run or from the beginning.

    Args:
        catalog: Rows of ``schema.CATALOG``: the labelled tracks.
        settings: Where and how.
        options: Of the audio's file system.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        UsageError: The settings contradict themselves, or a split has lost all of its tracks.
        RunError: The run broke off; its last whole state stays.
    """
    if settings.recipe.num_slots % max(1, settings.num_workers):
        raise UsageError(
            f"expected micro-batches that {settings.num_workers} workers can share evenly, found "
            f"{settings.recipe.num_slots} a step: give --num-slots a multiple of --num-workers"
        )
    n_mels = load_checkpoint(settings.checkpoint, settings.stats).config.n_mels
    corpus = prepare_corpus(catalog, catalog.slice(0, 0), settings.corpus_folder, n_mels, options)
    labels = settings.labels.select(open_corpus(settings.corpus_folder, TRAIN).track_ids)
    if lost := [split for split in SPLITS if not labels.rows_of(split)]:
        raise UsageError(f"not one of the tracks of split {lost[0]} could be decoded: give others")
    if settings.num_workers == 0:
        tune(settings, Worker(choose_device()), show=True)
    else:
        group = Group(settings.name, settings.folder / "ray", settings.num_workers, settings.use_gpu)
        run_group(run_worker, settings, group)
    return FinetuneReport(corpus, json.loads((settings.run_folder / RESULT_FILE).read_text()))


def run_worker(config: dict[str, Any]) -> None:
    """Do this Ray Train worker's part."""
    tune(config["settings"], join_group())
    leave_group()


def tune(settings: FinetuneSettings, worker: Worker, show: bool = False) -> None:
    """Do one worker's part of a run; the first worker writes checkpoint, head and result.

    Args:
        settings: Of the run.
        worker: Which of the workers this is.
        show: Whether to draw the progress line.
    """
    recipe, folder = settings.recipe, settings.run_folder
    corpus = open_corpus(settings.corpus_folder, TRAIN)
    labels = settings.labels.select(corpus.track_ids)
    metric = MAIN_METRIC[labels.task]
    model = build_tuning(settings).to(worker.device)
    # The other workers' heads become the first one's when the group wraps the model.
    frozen = begin_with_frozen(model, corpus, labels, recipe, folder) if worker.is_first else None
    best = BestWeights(folder, model, metric, repr(recipe))

    def measure(step: int) -> Figures:
        figures = measure_tracks(model, corpus, labels, "valid", recipe.window_s)
        best.offer(step, figures)
        return figures

    events = folder / "events" if settings.events and worker.is_first else None
    with watch_run(recipe.num_steps, show, events) as tell:
        progress = Course(
            model,
            make_optimizer([(model.musicfm, 1.0), (model.head, recipe.head_lr / recipe.peak_lr)], recipe),
            recipe,
            CropSource(corpus, labels, recipe, worker.device).make_batch,
            recipe.window_s * recipe.num_crops * recipe.num_slots,
            folder,
            settings.intervals,
            worker,
            measure,
            measures_start=True,
            on_report=tell,
            should_stop=lambda progress: count_since_best(progress.curve, metric) >= recipe.patience,
        ).run()
    if frozen is not None:
        best_step = best.load()
        tuned = {
            split: model.answer_tracks(select_tracks(corpus, labels.rows_of(split)), recipe.window_s)
            for split in ANSWERED
        }
        write_result(settings, model, labels, {"frozen": frozen, "tuned": tuned}, best_step, progress)


def build_tuning(settings: FinetuneSettings) -> Tuning:
    """Load the checkpoint, and put a fresh head on it."""
    recipe, labels = settings.recipe, settings.labels
    musicfm = MusicFM25Hz.from_checkpoint(load_checkpoint(settings.checkpoint, settings.stats))
    torch.manual_seed(recipe.seed)
    spec = HeadSpec(labels.task, recipe.head_kind, ("",), labels.resolution, musicfm.embed_dim, labels.names)
    return Tuning(musicfm, Head(spec), labels, recipe)
