"""A trained model as a file of the published form, without the heads that only training needs."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import torch

from musicfm_model.checkpoint_files import MEAN_KEY, STD_KEY
from musicfm_model.model import MusicFM25Hz


def export_checkpoint(model: MusicFM25Hz, path: Path, half: bool = True) -> None:
    """Write weights and, beside them, their statistics as ``<stem>_stats.json``.

    Args:
        model: What was trained.
        path: Ends in ``.pt``; its folder exists.
        half: Whether weights are written in half precision, which halves the file. What must be exact (the
            codebook and its projection, the filter bank, the running statistics) keeps its float32.
    """
    trained = {name for name, _ in model.named_parameters()}
    state_dict = {
        f"model.{name}": tensor.detach().cpu().half() if half and name in trained else tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
    }
    part = path.with_suffix(".part")
    torch.save({"state_dict": state_dict}, part)
    write_stats(path.with_name(f"{path.stem}_stats.json"), model.stat[MEAN_KEY], model.stat[STD_KEY])
    part.replace(path)


def write_stats(path: Path, mean: float, std: float) -> None:
    """Write a statistics file."""
    write_text_whole(path, json.dumps({MEAN_KEY: mean, STD_KEY: std}) + "\n")


def write_text_whole(path: Path, text: str) -> None:
    """Write a file that is whole at every moment, though several workers may write it at once."""
    part = path.with_name(f"{path.name}.{uuid4().hex}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
