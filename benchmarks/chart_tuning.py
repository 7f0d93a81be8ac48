"""Fine-tuning of the model in the box on the chords of charts, beside a head on its features as they are.

``benchmarks.probes --finetune`` runs it. Killed and started again with the same folder it goes on where it was;
two workers take the steps of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog.load import load_catalog
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.training.course import Intervals
from pipeline.training.finetune import FinetuneSettings, finetune
from pipeline.training.labels import match_labels
from pipeline.training.tuning_recipe import TuningRecipe
from pipeline.training.worker import choose_device

TASK = "chord"
# The rates of a small model; those of the published size are finetune's own.
ENCODER_LR, HEAD_LR = 1e-3, 1e-3
NUM_STEPS, NUM_WARMUP_STEPS, MEASURE_EVERY, SAVE_EVERY = 80, 8, 20, 5
WINDOW_S, NUM_CROPS, NUM_SLOTS = 6.0, 4, 2


def tune_on_charts(
    audio: Path,
    said: Mapping[str, Annotation],
    folder: Path,
    checkpoint: Path,
    layer: int,
    num_steps: int,
    num_workers: int,
) -> dict[str, Any]:
    """Fine-tune on charts that have been played.

    Args:
        audio: Folder of the charts' audio, a file each.
        said: What is known of each by its file's name, splits included.
        folder: Of the run.
        checkpoint: What is fine-tuned.
        layer: Hidden state that the head gets.
        num_steps: Of the run.
        num_workers: Of Ray Train; 0 trains in this process.

    Returns:
        The run's result: ``metrics`` of the fine-tuned, ``baselines`` of the frozen and of chance.

    Raises:
        RunError: The run broke off; its last whole state stays.
    """
    labels, catalog = match_labels(Annotations(TASK, tracks=dict(said)), load_catalog(str(audio)), seed=0)
    recipe = TuningRecipe(
        load_checkpoint(str(checkpoint)).sha256,
        labels.sha256,
        layer,
        num_steps=num_steps,
        peak_lr=ENCODER_LR,
        head_lr=HEAD_LR,
        num_warmup_steps=NUM_WARMUP_STEPS,
        window_s=WINDOW_S,
        num_crops=NUM_CROPS,
        num_slots=NUM_SLOTS,
        patience=num_steps,
    )
    settings = FinetuneSettings(
        folder.absolute(),
        TASK,
        str(checkpoint.absolute()),
        None,
        labels,
        recipe,
        Intervals(MEASURE_EVERY, MEASURE_EVERY, SAVE_EVERY),
        num_workers,
        choose_device().type == "cuda",
    )
    return dict(finetune(catalog, settings).result)
