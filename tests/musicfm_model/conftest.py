from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.model import MusicFM25Hz
from tests.checkpoints import TINY, write_random_checkpoint

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """What the published code computes, by the names that tests/golden/README.md lists."""
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="session")
def golden_checkpoint() -> Checkpoint:
    return load_checkpoint(str(GOLDEN / "checkpoint.pt"))


@pytest.fixture
def golden_model(golden_checkpoint: Checkpoint) -> MusicFM25Hz:
    return MusicFM25Hz.from_checkpoint(golden_checkpoint).requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return path


@pytest.fixture
def tiny_checkpoint(tiny_path: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_path))


@pytest.fixture
def tiny_model(tiny_checkpoint: Checkpoint) -> MusicFM25Hz:
    return MusicFM25Hz.from_checkpoint(tiny_checkpoint).requires_grad_(False)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20240213)
