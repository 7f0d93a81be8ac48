from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.without_values import without_values
from tests.checkpoints import TINY, write_random_checkpoint

BUILD = """
import sys
from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import load_checkpoint
checkpoint = load_checkpoint(sys.argv[1])
before = set(sys.modules)
MusicFM25Hz.for_inference(checkpoint)
print(sorted(set(sys.modules) - before))
"""


def test_layers_have_shapes_and_no_values_inside_the_block_only() -> None:
    with without_values():
        layers = [nn.Linear(3, 2), nn.Conv1d(3, 2, 5), nn.LayerNorm(4), nn.BatchNorm1d(4)]
        drawn = nn.init.normal_(torch.empty(3))
    assert all(tensor.is_meta for layer in layers for tensor in (*layer.parameters(), *layer.buffers()))
    assert drawn.is_meta
    assert not nn.Linear(3, 2).weight.is_meta


def test_what_has_values_inside_the_block_is_drawn_as_outside() -> None:
    place, expected = torch.empty(1000, device="cpu"), torch.empty(1000)
    with without_values():
        nn.init.normal_(place, generator=torch.Generator("cpu").manual_seed(1))
    nn.init.normal_(expected, generator=torch.Generator("cpu").manual_seed(1))
    assert torch.equal(place, expected)


def test_building_a_checkpoints_model_loads_next_to_nothing_of_pytorch(tmp_path: Path) -> None:
    """It loaded 880 modules, among them SymPy and Triton, in every process with a model."""
    write_random_checkpoint(tmp_path / "tiny.pt", TINY, seed=1)
    command = [sys.executable, "-c", BUILD, str(tmp_path / "tiny.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split(",")) < 10, done.stdout


def test_every_tensor_of_a_model_comes_from_its_checkpoint(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "tiny.pt", TINY, seed=1)
    model = MusicFM25Hz.from_checkpoint(load_checkpoint(str(tmp_path / "tiny.pt")))
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta]
