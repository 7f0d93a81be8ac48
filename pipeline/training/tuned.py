"""What comes out of a fine-tuning: a checkpoint of the published form, a head on its features, and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe
from pipeline.embed.checkpoint import load_checkpoint
from pipeline.errors import RunError
from pipeline.probing.heads import Head, HeadSpec, save_head
from pipeline.probing.metrics import PROTOCOLS
from pipeline.training.answers import SplitAnswers, fit_decoding, measure_chance, measure_test
from pipeline.training.export import export_checkpoint, write_text_whole
from pipeline.training.labels import Labels
from pipeline.training.state import Progress
from pipeline.training.tuning import Tuning

if TYPE_CHECKING:
    from pipeline.training.finetune import FinetuneSettings

RESULT_FILE = "result.json"


def write_result(
    settings: FinetuneSettings,
    model: Tuning,
    labels: Labels,
    outputs: Mapping[str, SplitAnswers],
    best_step: int,
    progress: Progress,
) -> None:
    """Write checkpoint, head and ``result.json`` of a run that has ended.

    Weights stay in float32: in half precision the small steps of a fine-tuning would be lost.

    Args:
        settings: Of the run.
        model: With its best weights.
        labels: Of the tracks.
        outputs: ``frozen``, of the head at the start, and ``tuned``.
        best_step: That the weights are of.
        progress: Of the run.

    Raises:
        RunError: A file cannot be written.
    """
    folder, recipe = settings.run_folder, settings.recipe
    checkpoint, head_file = (folder / f"{settings.name}{ending}" for ending in (".pt", "_head.safetensors"))
    specs = {name: fit_decoding(labels, model.head.spec, answers["valid"]) for name, answers in outputs.items()}
    durations_s = [len(rows) / (labels.frame_rate_hz or 1.0) for rows in outputs["tuned"]["test"]]
    estimates = {
        name: measure_test(labels, specs[name], answers["test"], recipe.seed) for name, answers in outputs.items()
    }
    estimates["chance"] = measure_chance(labels, durations_s, recipe.seed)
    figures = {
        name: {metric: estimate.as_row() for metric, estimate in measured.items()}
        for name, measured in estimates.items()
    }
    try:
        export_checkpoint(model.musicfm, checkpoint, half=False)
        recipe_id = Recipe(load_checkpoint(str(checkpoint)).sha256, recipe.layer).recipe_id
        head = describe_head(model, labels, specs["tuned"], recipe_id, figures["tuned"])
        save_head(head, str(head_file))
        result: dict[str, Any] = {
            "task": labels.task,
            "head": head.spec.kind,
            "recipe": recipe_id,
            "resolution": head.spec.resolution,
            **{f"num_{split}": len(labels.rows_of(split)) for split in ("train", "valid", "test")},
            "metrics": figures["tuned"],
            "baselines": {name: figures[name] for name in ("frozen", "chance")},
            "head_id": head.head_id,
            "protocol": PROTOCOLS[labels.task],
            "steps": progress.next_step,
            "best_step": best_step,
            "skipped": progress.num_skipped,
            "checkpoint": str(checkpoint),
            "head_file": str(head_file),
        }
        write_text_whole(folder / RESULT_FILE, json.dumps(result) + "\n")
    except (OSError, RuntimeError) as error:
        raise RunError(f"cannot write to {folder}: {error}; the run's state is kept") from error


def describe_head(
    model: Tuning, labels: Labels, spec: HeadSpec, recipe_id: str, metrics: Mapping[str, Any]
) -> Head:
    """Return a copy of a model's head that answers in the annotations' unit and says what it is for."""
    spec = replace(
        spec,
        recipes=(recipe_id,),
        metrics=metrics,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    head = Head(spec)
    head.load_state_dict({name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()})
    mean, deviation = labels.scale()
    last: Any = head.layers[-1]
    last.weight.data.mul_(deviation)
    last.bias.data.mul_(deviation).add_(mean)
    return head.eval()
