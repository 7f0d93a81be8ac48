import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from musicfm_model.config import ModelConfig
from musicfm_model.conformer import Conformer
from musicfm_model.cost import count_window_tflop


def test_the_published_model_has_the_operations_that_were_counted() -> None:
    assert count_window_tflop(ModelConfig(), 7) == pytest.approx(1.09, rel=0.01)
    assert count_window_tflop(ModelConfig(), 12) == pytest.approx(1.28, rel=0.01)


def test_a_layer_has_the_operations_that_torch_counts() -> None:
    config = ModelConfig(embed_dim=64, num_layers=1, num_heads=4, ffn_dim=96, conv_dim=8)
    own = count_window_tflop(config, 1) - count_window_tflop(config, 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        Conformer(config, "eager").eval()(torch.zeros(1, 750, 64), (1,))
    assert own == pytest.approx(
        counter.get_total_flops() / 1e12, rel=0.03
    )  # the depthwise convolution is left out
