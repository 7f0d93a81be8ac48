"""A model for inference alone: the same function in fewer operations, as its device computes it fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from musicfm_model.conformer import ConformerLayer
from musicfm_model.cpu.packed_linear import pack_linears
from musicfm_model.folded_conformer import fold_conformer
from musicfm_model.folded_frontend import FoldedFrontend
from musicfm_model.frontend import ConvFrontend
from musicfm_model.gpu.fused_frontend import FusedFrontend
from musicfm_model.precision import compute_dtype

if TYPE_CHECKING:
    from musicfm_model.model import MusicFM25Hz


def optimize(model: MusicFM25Hz, device: torch.device, attention: str) -> None:
    """Change a model in place to one that can neither be trained nor saved.

    Batch norms are folded into their convolutions, in float64 and rounded once. On CUDA the front end's
    convolutions run channels last, their biases and rectifiers fused; on a processor in float32 by Winograd's
    algorithm, with all large weights packed for oneDNN.

    Args:
        model: In evaluation mode, its weights in float32 on the processor; ``precision`` says what it is to
            compute in. What is to stay in float32 does.
        device: Where it is to compute; it is not moved there yet.
        attention: Back end, as ``check_attention`` took it.
    """
    dtype = compute_dtype(model.precision)
    packs = device.type == "cpu" and dtype == torch.float32
    assert isinstance(model.conv, ConvFrontend)
    if device.type == "cpu":
        model.conv = FoldedFrontend(model.conv, winograd=packs)
    else:
        model.conv = FusedFrontend(model.conv, exact=model.precision == "float32")
    fold_conformer(model.conformer, dtype, few_shapes=device.type == "cuda")
    for layer in model.conformer.layers:
        assert isinstance(layer, ConformerLayer)
        layer.self_attn.attention = attention
    model.to(dtype)
    if packs:
        pack_linears(model.conv)
        pack_linears(model.conformer)
