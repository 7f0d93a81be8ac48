from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.config import ModelConfig, check_sizes, infer_config, list_shapes
from musicfm_model.errors import CheckpointError
from musicfm_model.model import MusicFM25Hz
from tests.checkpoints import TINY

CONFIGS = st.builds(
    lambda heads, half_head, layers, ffn, kernel, channels, bands, width, entries, codebooks: ModelConfig(
        embed_dim=2 * heads * half_head,
        num_layers=layers,
        num_heads=heads,
        ffn_dim=ffn,
        depthwise_kernel_size=2 * kernel + 1,
        conv_dim=channels,
        n_mels=4 * bands,
        codebook_dim=width,
        codebook_size=entries,
        num_codebooks=codebooks,
    ),
    *[st.integers(1, 12)] * 9,
    st.integers(1, 3),
)


@given(CONFIGS)
@settings(deadline=None, max_examples=50)
def test_sizes_are_read_back_from_the_shapes(config: ModelConfig) -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in list_shapes(config).items()}

    assert infer_config(tensors) == config


def test_listed_shapes_are_those_of_the_modules(tiny_path: Path) -> None:
    stats = str(tiny_path.with_name("tiny_stats.json"))
    model = MusicFM25Hz(
        2, 8, 64, n_mels=16, conv_dim=4, encoder_dim=32, encoder_depth=2, stat_path=stats, model_path=None
    )

    config = ModelConfig(
        num_codebooks=2, codebook_dim=8, codebook_size=64, n_mels=16, conv_dim=4, embed_dim=32, num_layers=2
    )
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == list_shapes(config)


def test_listed_shapes_are_those_of_the_published_form(golden_checkpoint: Checkpoint) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in golden_checkpoint.state_dict.items()}

    assert found == list_shapes(golden_checkpoint.config)


def test_published_size_has_the_published_number_of_parameters() -> None:
    shapes = list_shapes(ModelConfig())

    # "330m" in the name of the authors' first file counts the positional convolution as well (8.4 million).
    assert 315e6 < sum(torch.Size(shape).numel() for shape in shapes.values()) < 330e6


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conformer.embed_positions.inv_freq", (5,), "heads of 10 dimensions: expected a divisor of .* 32"),
        ("conformer.embed_positions.inv_freq", (0,), "expected a divisor"),
        ("conformer.layers.0.conv_module.depthwise_conv.weight", (32, 1, 30), "an odd kernel, found 30"),
        ("conv.conv.0.conv1.weight", (4, 9), r"conv1.weight: expected 4 dimensions, found shape \(4, 9\)"),
    ],
)
def test_impossible_sizes_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in list_shapes(TINY).items()}
    tensors[name] = torch.empty(shape)

    with pytest.raises(CheckpointError, match=message):
        infer_config(tensors)


def test_foreign_tensors_are_named_as_such() -> None:
    with pytest.raises(CheckpointError, match="expected the tensors of a MusicFM 25 Hz model, found no tensor"):
        infer_config({"encoder.weight": torch.ones(3)})


def test_a_size_asked_for_on_purpose_must_be_the_checkpoints() -> None:
    check_sizes(ModelConfig(), TINY)
    check_sizes(ModelConfig(embed_dim=TINY.embed_dim), TINY)
    with pytest.raises(ValueError, match="embed_dim 64 asked for, the checkpoint has 32"):
        check_sizes(ModelConfig(embed_dim=64), TINY)
