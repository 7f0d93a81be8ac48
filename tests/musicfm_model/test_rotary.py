from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicfm_model.rotary import RotaryEmbedding, rotate
from tests.musicfm_model.oracles import relative_error, rotate_by_complex


def test_agrees_with_complex_multiplication(generator: torch.Generator) -> None:
    x = torch.randn(2, 60, 3, 8, generator=generator)
    rotary = RotaryEmbedding(8)

    found = rotate(x, *rotary(60))

    for item in range(2):
        for head in range(3):
            expected = rotate_by_complex(x[item, :, head].double().numpy(), rotary.inv_freq.double().numpy())
            assert relative_error(found[item, :, head], expected) < 1e-5


def test_frequencies_are_powers_of_ten_thousand() -> None:
    expected = [1 / 10_000 ** (i / 16) for i in range(0, 16, 2)]

    assert np.allclose(RotaryEmbedding(16).inv_freq, expected, rtol=1e-6)


@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 49))
@settings(deadline=None, max_examples=30)
def test_products_depend_on_the_distance_alone(first: int, second: int, shift: int) -> None:
    cos, sin = RotaryEmbedding(16)(750)
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(first))

    def product(query_frame: int, key_frame: int) -> float:
        rotated_query = rotate(query.view(1, 1, 1, 16), cos[[query_frame]], sin[[query_frame]])
        rotated_key = rotate(key.view(1, 1, 1, 16), cos[[key_frame]], sin[[key_frame]])
        return float((rotated_query * rotated_key).sum())

    assert abs(product(first, second) - product(first + shift, second + shift)) < 1e-3


def test_tables_stay_in_float32_when_the_model_is_halved() -> None:
    expected = RotaryEmbedding(64)(750)

    found = RotaryEmbedding(64).half()(750)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_half_types_are_rotated_in_float32_and_rounded_once(generator: torch.Generator) -> None:
    x = torch.randn(2, 750, 3, 64, generator=generator).bfloat16()
    tables = RotaryEmbedding(64)(750)

    found = rotate(x, *tables)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x.float(), *tables).bfloat16())
