from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from musicfm_model.checkpoint import Checkpoint
from musicfm_model.folded_frontend import FoldedFrontend
from musicfm_model.frontend import ConvFrontend
from musicfm_model.model import MusicFM25Hz
from tests.musicfm_model.oracles import relative_error


def make_frontend(conv_dim: int, generator: torch.Generator) -> ConvFrontend:
    """A front end whose batch norms do something."""
    frontend = ConvFrontend(conv_dim, 24, 16)
    for module in frontend.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 3.0, generator=generator)
            nn.init.uniform_(module.weight, -1.5, 1.5, generator)
            nn.init.normal_(module.bias, generator=generator)
    return frontend.eval()


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("conv_dim", [8, 64])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 37, 64])
@torch.inference_mode()
def test_is_the_same_function(winograd: bool, conv_dim: int, num_frames: int, generator: torch.Generator) -> None:
    frontend = make_frontend(conv_dim, generator)
    mel = torch.randn(2, 16, num_frames, generator=generator)
    folded = FoldedFrontend(frontend, winograd)
    assert any(block.exit for block in folded.conv) == (winograd and conv_dim == 64)
    torch.testing.assert_close(folded(mel), frontend(mel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("winograd", [False, True])
@torch.inference_mode()
def test_golden_figures(golden: dict[str, Tensor], golden_model: MusicFM25Hz, winograd: bool) -> None:
    assert isinstance(golden_model.conv, ConvFrontend)
    folded = FoldedFrontend(golden_model.conv, winograd)
    error = relative_error(folded(golden_model._normalize(golden["mel_db"])), golden["subsampled"])
    print({"subsampled": error, "winograd": winograd})
    assert error < 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.inference_mode()
def test_a_model_for_inference_gives_the_same_hidden_states(
    golden_checkpoint: Checkpoint, golden: dict[str, Tensor], precision: str
) -> None:
    plain = MusicFM25Hz.from_checkpoint(golden_checkpoint, precision=precision)
    fast = MusicFM25Hz.for_inference(golden_checkpoint, precision=precision)
    assert isinstance(fast.conv, FoldedFrontend)
    tolerance = 1e-5 if precision == "float32" else 0.03
    for layer, expected in plain.get_hidden_states(golden["wav"], range(plain.num_layers + 1)).items():
        found = fast.get_hidden_states(golden["wav"], [layer])[layer]
        assert found.dtype == expected.dtype
        assert relative_error(found.float(), expected.float()) < tolerance
