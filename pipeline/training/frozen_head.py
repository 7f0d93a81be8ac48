"""The head that a fine-tuning begins with and is measured against: a probe of the checkpoint's own features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import RunError
from pipeline.probing.fitting import Targets, fit_head
from pipeline.probing.heads import apply_head
from pipeline.training.answers import ANSWERED, SplitAnswers
from pipeline.training.corpus import Corpus
from pipeline.training.labels import Labels
from pipeline.training.state import write_whole
from pipeline.training.tuning import Tuning
from pipeline.training.tuning_recipe import TuningRecipe

FROZEN_FILE = "frozen.pt"


def begin_with_frozen(
    model: Tuning, corpus: Corpus, labels: Labels, recipe: TuningRecipe, folder: Path
) -> SplitAnswers:
    """Train the head on the features as they are, in place, or find that this was done.

    Args:
        model: With the checkpoint's weights.
        corpus: The tracks.
        labels: Of the tracks.
        recipe: Of the run.
        folder: Of the run: what comes out is kept there.

    Returns:
        What the head answers for the tracks of ``answers.ANSWERED`` splits.

    Raises:
        RunError: It can be neither read nor written.
    """
    path = folder / FROZEN_FILE
    if path.exists():
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RunError(f"cannot read {path} ({error}): name another run") from error
        if content["run"] == repr(recipe):
            model.head.load_state_dict(content["head"])
            kept: SplitAnswers = content["outputs"]
            return kept
    features = model.embed_tracks(corpus, recipe.window_s)
    targets = Targets.join(labels.targets(features.lengths.tolist()))
    head = copy.deepcopy(model.head).cpu()
    fit_head(head, features, targets, labels.rows_of("train"), labels.rows_of("valid"), recipe.seed)
    model.head.load_state_dict(head.state_dict())
    outputs = {
        split: [
            torch.from_numpy(apply_head(head, features.read(row), features.frame_rate_hz))
            for row in labels.rows_of(split)
        ]
        for split in ANSWERED
    }
    content = {"run": repr(recipe), "head": head.state_dict(), "outputs": outputs}
    write_whole(path, content, "the frozen features' head")
    return outputs
