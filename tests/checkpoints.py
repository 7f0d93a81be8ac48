"""Checkpoints of the published form with random weights, and small sizes to make them at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from musicfm_model.config import ModelConfig, list_shapes

TINY = ModelConfig(
    embed_dim=32, num_layers=3, num_heads=2, ffn_dim=48, conv_dim=4, codebook_dim=8, codebook_size=64
)
"""Large enough to have every part, small enough to run in milliseconds."""

STATS = {"melspec_2048_mean": 6.5, "melspec_2048_std": 18.25}


def random_state_dict(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Return random tensors of a model, without the ``model.`` prefix and the unused positional convolution.

    Weights are scaled so that activations keep about their size through the layers, and every norm has a
    weight, bias and running statistics of its own, so that a mistake in any of them shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        noise: Tensor = torch.randn(shape, generator=generator)
        if name.endswith("spectrogram.window"):
            return torch.hann_window(shape[0])
        if name.endswith("mel_scale.fb"):
            filter_bank: Tensor = melscale_fbanks(shape[0], 0.0, 12_000.0, shape[1], 24_000)
            return filter_bank
        if name.endswith("inv_freq"):
            return torch.logspace(0, -4 * (1 - 1 / shape[0]), shape[0])
        if name.endswith("num_batches_tracked"):
            return torch.tensor(1000)
        if name.endswith("running_var"):
            return 0.5 + noise.square()
        if name.endswith(("weight", "random_projection")) and len(shape) > 1:
            return noise / math.sqrt(math.prod(shape[1:]))
        if name.endswith("weight"):
            return 1 + 0.2 * noise
        return noise if name.startswith(("quantizer", "cls_token")) else 0.2 * noise

    return {name: draw(name, shape) for name, shape in list_shapes(config).items()}


def write_random_checkpoint(path: Path, config: ModelConfig, seed: int) -> None:
    """Write a checkpoint as the model's authors publish theirs, with random weights and a statistics file.

    The statistics go beside it as ``<stem>_stats.json``.

    Args:
        path: Of the ``.pt`` file; its folder must exist.
        config: Sizes.
        seed: Of the weights.
    """
    tensors = random_state_dict(config, seed)
    positional = "conformer.pos_conv_embed.conv."
    tensors[f"{positional}bias"] = torch.zeros(config.embed_dim)
    tensors[f"{positional}weight_g"] = torch.ones(1, 1, 128)
    tensors[f"{positional}weight_v"] = torch.ones(config.embed_dim, max(1, config.embed_dim // 16), 128)
    content = {
        "epoch": 7,
        "global_step": 1000,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()},
        "hyper_parameters": {},
    }
    torch.save(content, path)
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(STATS))
