"""A training run's state on disk: the newest one that is whole, and nothing half written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import RunError

STATE_FILE = "state.pt"


@dataclass
class Progress:
    """How far a run is.

    Args:
        next_step: The step to take next.
        num_skipped: Steps that changed nothing so far.
        curve: What was reported so far, oldest first.
    """

    next_step: int
    num_skipped: int
    curve: list[dict[str, float]]


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, recipe: object
) -> None:
    """Write a state in place of the last one, which stays until the new one is whole.

    Raises:
        RunError: It cannot be written; the last one is still there.
    """
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "recipe": repr(recipe)}
    what = f"a training state before step {progress.next_step}"
    write_whole(folder / STATE_FILE, {**parts, **vars(progress)}, what)


def write_whole(path: Path, content: dict[str, Any], what: str) -> None:
    """Write tensors and plain values in place of the last file, which stays until the new one is whole.

    Args:
        path: The file; its folder is made where it does not exist.
        content: What goes into it.
        what: What to call it in a message.

    Raises:
        RunError: It cannot be written; the last one is still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {what} to {path.parent}: {error}; the last whole one is kept: make room and run the "
            "same command again"
        ) from error


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: object) -> Progress:
    """Put a saved state into a model and its optimiser; a folder without one means the beginning.

    Raises:
        RunError: There is a state, of another model or damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return Progress(0, 0, [])
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["recipe"] != repr(recipe):
            raise ValueError("it was trained by another recipe")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        return Progress(content["next_step"], content["num_skipped"], content["curve"])
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path}: expected the state of a run of the same sizes and recipe, found another or a damaged one "
            f"({first_line}): name another run"
        ) from error
