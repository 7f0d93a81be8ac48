"""The model on a real GPU: golden figures in every precision. Without one, ``test_fake_gpu`` is what there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]

# Relative errors of hidden states against the published model's float32 on a processor. Half types round each
# activation: on a processor they are 8e-3 and 1e-3 away.
BOUNDS = {"float32": 1e-4, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 3e-3}


def compare(found: Tensor, expected: Tensor) -> float:
    difference = found.double().cpu() - expected.double().cpu()
    return float(difference.norm() / expected.double().norm())


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("inference", [False, True], ids=["as published", "for inference"])
@torch.inference_mode()
def test_golden_hidden_states(
    golden: dict[str, Tensor], golden_checkpoint: Checkpoint, inference: bool, precision: str, attention: str
) -> None:
    if attention == "flash":
        pytest.importorskip("flash_attn")
        if precision in ("float32", "tf32"):
            pytest.skip("flash-attn computes in half types only")
    if inference:
        model = MusicFM25Hz.for_inference(golden_checkpoint, "cuda", attention, precision)
    else:
        model = MusicFM25Hz.from_checkpoint(golden_checkpoint, attention, precision).cuda()
    found = model.get_hidden_states(golden["wav"].cuda(), range(4))
    errors = {index: compare(state, golden[f"hidden_{index}"]) for index, state in found.items()}
    print(precision, attention, errors)
    assert max(errors.values()) < BOUNDS[precision]


@torch.inference_mode()
def test_golden_tokens_are_those_of_a_processor(golden: dict[str, Tensor], golden_checkpoint: Checkpoint) -> None:
    model = MusicFM25Hz.from_checkpoint(golden_checkpoint).cuda()
    tokens = model.get_targets(golden["wav"].cuda())["melspec_2048"].cpu()
    assert (tokens == golden["tokens"]).double().mean() > 0.99  # a frame between two codes may fall to either


@pytest.mark.parametrize("precision", BOUNDS)
@torch.inference_mode()
def test_a_window_is_the_same_alone_and_among_others(
    golden: dict[str, Tensor], golden_checkpoint: Checkpoint, precision: str
) -> None:
    model = MusicFM25Hz.for_inference(golden_checkpoint, "cuda", precision=precision)
    one = golden["wav"][:1].cuda()
    others = 0.1 * torch.randn(20, one.shape[1], device="cuda")
    alone = model.get_latent(one, 3)
    together = model.get_latent(torch.cat([others, one]), 3)[-1:]
    assert compare(together, alone) < BOUNDS[precision]
