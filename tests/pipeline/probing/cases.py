"""Stores, heads and annotation files for the tests of probing, made without audio or a model."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.location import StoreLocation
from pipeline.probing.heads import Head, HeadSpec, save_head
from tests.stores import EMBED_DIM, KnownStore, make_features, make_recipe

RECIPE = make_recipe().recipe_id


def make_store(folder: Path, num_tracks: int = 40, resolutions: Sequence[str] = ("global",)) -> KnownStore:
    """Make a store of random features; nobody knows its tracks' artists."""
    known = KnownStore(StoreLocation(str(folder / "store")))
    contents = {f"track {number:03}": f"content {number}" for number in range(num_tracks)}
    known.run(contents, resolutions=resolutions, tracks_per_part=16)
    return known


def is_positive(known: KnownStore, track_id: str, value: int = 0) -> bool:
    """Say whether a value of a track's global vector is over 0: what can be read off it."""
    return bool(make_features(known.contents[RECIPE][track_id], RECIPE, "global")[0, value] > 0)


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a CSV file; return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return str(path)


def make_head(
    task: str = "tagging",
    labels: Sequence[str] = ("piano", "it's rock"),
    resolution: str = "global",
    bias: float = 0.0,
) -> Head:
    """Make a head with random weights; more bias makes every output larger."""
    torch.manual_seed(3)
    head = Head(HeadSpec(task, "linear", (RECIPE,), resolution, EMBED_DIM, tuple(labels), date="2024"))
    with torch.no_grad():
        list(head.layers.parameters())[-1].add_(bias)
    return head.eval()


def write_head(folder: Path, head: Head) -> str:
    """Write a head to a file; return its path."""
    path = str(folder / f"{head.head_id}.safetensors")
    save_head(head, path)
    return path


def expect_scores(head: Head, known: KnownStore, track_id: str) -> list[float]:
    """Compute a tagging head's scores of a track with NumPy alone."""
    [vector] = make_features(known.contents[RECIPE][track_id], RECIPE, "global")
    weight, bias = (value.detach().numpy() for value in head.layers.parameters())
    return [float(score) for score in 1 / (1 + np.exp(-(weight @ vector + bias)))]
