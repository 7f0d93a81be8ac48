"""The sizes of a MusicFM 25 Hz model, and the tensors that a checkpoint of those sizes holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from musicfm_model.constants import MEL_FRAMES_PER_TOKEN, N_FFT
from musicfm_model.errors import CheckpointError

DROPOUT = 0.1
"""Activation, attention, hidden and convolution dropout in training.

The published code takes all four from the configuration of
``facebook/wav2vec2-conformer-rope-large-960h-ft``, whose layer drop is 0.
"""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; the defaults are those of the published checkpoints.

    Args:
        embed_dim: Width of the Conformer and of its hidden states.
        num_layers: Conformer layers.
        num_heads: Attention heads of a layer.
        ffn_dim: Inner width of the feed-forward modules.
        depthwise_kernel_size: Frames that the depthwise convolution spans.
        conv_dim: Channels of the two residual convolutions.
        n_mels: Mel bands of the input.
        codebook_dim: Width of a codebook entry.
        codebook_size: Entries of a codebook, hence classes of the prediction.
        num_codebooks: Codebooks that the checkpoint holds; only the first one gives targets.
    """

    embed_dim: int = 1024
    num_layers: int = 12
    num_heads: int = 16
    ffn_dim: int = 4096
    depthwise_kernel_size: int = 31
    conv_dim: int = 512
    n_mels: int = 128
    codebook_dim: int = 16
    codebook_size: int = 4096
    num_codebooks: int = 1

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


def infer_config(state_dict: Mapping[str, Tensor]) -> ModelConfig:
    """Read the sizes off a checkpoint's tensors.

    Args:
        state_dict: Tensors by published name, without the ``model.`` prefix.

    Returns:
        The sizes. Whether every tensor fits them is another question: compare with ``list_shapes``.

    Raises:
        CheckpointError: A tensor that tells a size is missing, has another number of dimensions, or tells a
            size that no such model can have.
    """
    layer = "conformer.layers.0."
    embed_dim, ffn_dim = _read_shape(state_dict, f"{layer}ffn1.output_dense.weight", 2)
    head_dim = 2 * _read_shape(state_dict, "conformer.embed_positions.inv_freq", 1)[0]
    if head_dim == 0 or embed_dim % head_dim:
        raise CheckpointError(
            f"tensor conformer.embed_positions.inv_freq of length {head_dim // 2} means heads of {head_dim} "
            f"dimensions: expected a divisor of the embedding's {embed_dim}"
        )
    kernel_size = _read_shape(state_dict, f"{layer}conv_module.depthwise_conv.weight", 3)[2]
    if kernel_size % 2 == 0:
        raise CheckpointError(
            f"tensor {layer}conv_module.depthwise_conv.weight: expected an odd kernel, found {kernel_size}"
        )
    codebook_size, codebook_dim = _read_shape(state_dict, "quantizer_melspec_2048_0.codebook", 2)
    return ModelConfig(
        embed_dim=embed_dim,
        num_layers=_count(state_dict, r"conformer\.layers\.(\d+)\."),
        num_heads=embed_dim // head_dim,
        ffn_dim=ffn_dim,
        depthwise_kernel_size=kernel_size,
        conv_dim=_read_shape(state_dict, "conv.conv.0.conv1.weight", 4)[0],
        n_mels=_read_shape(state_dict, "preprocessor_melspec_2048.mel_stft.mel_scale.fb", 2)[1],
        codebook_dim=codebook_dim,
        codebook_size=codebook_size,
        num_codebooks=_count(state_dict, r"quantizer_melspec_2048_(\d+)\."),
    )


def resolve_layer(layer: int, num_layers: int) -> int:
    """Return the index of a hidden state, 0 to ``num_layers``, where negative ones count from the end.

    Raises:
        ValueError: There is no such hidden state.
    """
    num_states = num_layers + 1
    if not -num_states <= layer < num_states:
        raise ValueError(
            f"no layer {layer}: the model has {num_layers}, so expected 0 to {num_layers}, or -1 to "
            f"{-num_states} counted from the end"
        )
    return layer % num_states


def list_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by published name, without the ``model.`` prefix.

    Written out rather than asked from the modules, so that the format of the published files stands on its
    own. The names are those of the published code (``model/musicfm_25hz.py``) with the encoder of
    ``transformers``' Wav2Vec2-Conformer.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (config.embed_dim,),
        "preprocessor_melspec_2048.mel_stft.spectrogram.window": (N_FFT,),
        "preprocessor_melspec_2048.mel_stft.mel_scale.fb": (N_FFT // 2 + 1, config.n_mels),
    }
    for index in range(config.num_codebooks):
        quantizer = f"quantizer_melspec_2048_{index}."
        shapes[f"{quantizer}random_projection"] = (MEL_FRAMES_PER_TOKEN * config.n_mels, config.codebook_dim)
        shapes[f"{quantizer}codebook"] = (config.codebook_size, config.codebook_dim)
    for block, in_channels in enumerate((1, config.conv_dim)):
        shapes |= _residual_block_shapes(f"conv.conv.{block}.", in_channels, config.conv_dim)
    shapes |= _linear_shapes("conv.linear", config.conv_dim * (config.n_mels // 4), config.embed_dim)
    shapes["conformer.embed_positions.inv_freq"] = (config.head_dim // 2,)
    shapes |= _norm_shapes("conformer.layer_norm", config.embed_dim)
    for layer in range(config.num_layers):
        shapes |= _conformer_layer_shapes(f"conformer.layers.{layer}.", config)
    return shapes | _linear_shapes("linear", config.embed_dim, config.codebook_size)


def check_sizes(asked: ModelConfig, found: ModelConfig) -> None:
    """Check that no size was asked for on purpose that a checkpoint does not have.

    Args:
        asked: The constructor's arguments; one that has its default counts as not asked for.
        found: The checkpoint's sizes.

    Raises:
        ValueError: A size differs.
    """
    default = ModelConfig()
    for field in fields(ModelConfig):
        value, actual = getattr(asked, field.name), getattr(found, field.name)
        if value not in (getattr(default, field.name), actual):
            raise ValueError(f"{field.name} {value} asked for, the checkpoint has {actual}: leave it out")


def _conformer_layer_shapes(prefix: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width = config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}conv_module.pointwise_conv1.weight": (2 * width, width, 1),
        f"{prefix}conv_module.depthwise_conv.weight": (width, 1, config.depthwise_kernel_size),
        f"{prefix}conv_module.pointwise_conv2.weight": (width, width, 1),
    }
    shapes |= _batch_norm_shapes(f"{prefix}conv_module.batch_norm", width)
    for norm in ("ffn1_layer_norm", "self_attn_layer_norm", "conv_module.layer_norm"):
        shapes |= _norm_shapes(prefix + norm, width)
    for norm in ("ffn2_layer_norm", "final_layer_norm"):
        shapes |= _norm_shapes(prefix + norm, width)
    for feed_forward in ("ffn1", "ffn2"):
        shapes |= _linear_shapes(f"{prefix}{feed_forward}.intermediate_dense", width, config.ffn_dim)
        shapes |= _linear_shapes(f"{prefix}{feed_forward}.output_dense", config.ffn_dim, width)
    for projection in ("linear_q", "linear_k", "linear_v", "linear_out"):
        shapes |= _linear_shapes(f"{prefix}self_attn.{projection}", width, width)
    return shapes


def _residual_block_shapes(prefix: str, in_channels: int, channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, inputs in ((1, in_channels), (2, channels), (3, in_channels)):
        shapes[f"{prefix}conv{index}.weight"] = (channels, inputs, 3, 3)
        shapes[f"{prefix}conv{index}.bias"] = (channels,)
        shapes |= _batch_norm_shapes(f"{prefix}bn{index}", channels)
    return shapes


def _linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _batch_norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    running: dict[str, tuple[int, ...]] = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return _norm_shapes(name, width) | running | {f"{name}.num_batches_tracked": ()}


def _read_shape(state_dict: Mapping[str, Tensor], name: str, num_dims: int) -> tuple[int, ...]:
    if name not in state_dict:
        raise CheckpointError(f"expected the tensors of a MusicFM 25 Hz model, found no tensor {name}")
    shape = tuple(state_dict[name].shape)
    if len(shape) != num_dims:
        raise CheckpointError(f"tensor {name}: expected {num_dims} dimensions, found shape {shape}")
    return shape


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the highest index that the pattern's group finds among the names."""
    matches = (re.match(pattern, name) for name in state_dict)
    return 1 + max(int(match[1]) for match in matches if match)
