from __future__ import annotations

import importlib.util

import pytest
import torch

from musicfm_model.attention import SelfAttention, attend, check_attention
from musicfm_model.rotary import RotaryEmbedding
from tests.musicfm_model.oracles import attend_one_head, relative_error, self_attention, to_arrays

HAS_FLASH_ATTN = importlib.util.find_spec("flash_attn") is not None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_agrees_with_a_loop_over_query_frames(attention: str, generator: torch.Generator) -> None:
    query, key, value = torch.randn(3, 2, 17, 3, 8, generator=generator)

    found = attend(query, key, value, attention, dropout=0.0)

    for item in range(2):
        for head in range(3):
            arrays = (x[item, :, head].double().numpy() for x in (query, key, value))
            assert relative_error(found[item, :, head], attend_one_head(*arrays)) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_module_agrees_with_numpy(attention: str, generator: torch.Generator) -> None:
    module = SelfAttention(24, num_heads=3, attention=attention).eval()
    rotary = RotaryEmbedding(8)
    x = torch.randn(1, 50, 24, generator=generator)

    found = module(x, rotary(50))[0]

    weights = to_arrays({f"self_attn.{name}": tensor for name, tensor in module.state_dict().items()})
    expected = self_attention(x[0].double().numpy(), weights, rotary.inv_freq.double().numpy(), num_heads=3)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_weights_are_dropped_in_training_only(attention: str, generator: torch.Generator) -> None:
    module = SelfAttention(16, num_heads=2, attention=attention)
    x, tables = torch.randn(1, 40, 16, generator=generator), RotaryEmbedding(8)(40)

    assert not torch.equal(module.train()(x, tables), module(x, tables))
    assert torch.equal(module.eval()(x, tables), module(x, tables))


def test_an_unknown_back_end_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'xformers': expected one of eager, sdpa, flash"):
        check_attention("xformers", "float32")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_flash_needs_a_half_precision(precision: str) -> None:
    with pytest.raises(ValueError, match=f"bfloat16 or float16 only, found precision '{precision}'"):
        check_attention("flash", precision)


@pytest.mark.skipif(HAS_FLASH_ATTN, reason="flash-attn is installed here")
def test_flash_needs_its_package() -> None:
    with pytest.raises(ValueError, match=r"needs the flash-attn package .* music-feature-store\[flash\]"):
        check_attention("flash", "bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_FLASH_ATTN and torch.cuda.is_available()), reason="no flash-attn or no CUDA device")
def test_flash_agrees_with_sdpa(generator: torch.Generator) -> None:
    check_attention("flash", "float16")
    query, key, value = torch.randn(3, 2, 750, 16, 64, generator=generator).half().cuda()

    found = attend(query, key, value, "flash", dropout=0.0)

    assert relative_error(found.cpu(), attend(query, key, value, "sdpa", dropout=0.0).float().cpu()) < 1e-2
