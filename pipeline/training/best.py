"""The best weights of a fine-tuning so far, by its validation tracks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import RunError
from pipeline.training.state import write_whole

BEST_FILE = "best.pt"


def rank_figures(figures: Mapping[str, float], metric: str) -> tuple[float, float]:
    """Return what is greater for better figures: the metric and, where that is the same, a loss lower by 0.001."""
    score, loss = figures[f"valid.{metric}"], figures["valid.loss"]
    return (-math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else -round(loss, 3))


def count_since_best(curve: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return how many measurements of a curve have come since the best one."""
    ranks = [rank_figures(line, metric) for line in curve if f"valid.{metric}" in line]
    return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0


class BestWeights:
    """Keeps the best weights in a run's folder.

    Args:
        folder: Of the run.
        model: Whose weights they are.
        metric: That they are the best by.
        run: Tells runs apart: weights of another one do not count.
    """

    def __init__(self, folder: Path, model: nn.Module, metric: str, run: str) -> None:
        self._path, self._model, self._metric, self._run = folder / BEST_FILE, model, metric, run
        self._rank: tuple[float, ...] | None = None

    def offer(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the model's weights, if they are better than those that are kept.

        Raises:
            RunError: They cannot be written.
        """
        if self._rank is None and (kept := self._read()) is not None:
            self._rank = tuple(kept["rank"])
        rank = rank_figures(figures, self._metric)
        if self._rank is None or rank > self._rank:
            content = {"run": self._run, "step": step, "rank": list(rank), "model": self._model.state_dict()}
            write_whole(self._path, content, "the best weights")
            self._rank = rank

    def load(self) -> int:
        """Put the best weights into the model, and return the step that they are of.

        Raises:
            RunError: There are none.
        """
        kept = self._read()
        if kept is None:
            raise RunError(f"expected the best weights in {self._path}, found none: name another run")
        self._model.load_state_dict(kept["model"])
        step: int = kept["step"]
        return step

    def _read(self) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise RunError(f"cannot read {self._path} ({error}): name another run") from error
        return content if content["run"] == self._run else None
