"""TensorFloat-32 as it is emulated on a processor."""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.tf32 import EmulatedTF32, round_mantissa


def round_by_numpy(values: np.ndarray) -> np.ndarray:
    """Round to 11 significant bits by arithmetic alone."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = mantissa * 2**11
    rounded: np.ndarray = np.ldexp(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5) / 2**11, exponent)
    return rounded.astype(np.float32)


def test_values_keep_ten_mantissa_bits() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * np.float32(1e3)
    rounded = round_mantissa(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(rounded, round_by_numpy(values))
    assert np.abs(rounded / values - 1).max() <= 2.0**-11


def test_products_are_of_rounded_operands_and_biases_are_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((5, 64), (7, 64), (7,)))
    with EmulatedTF32():
        ours = F.linear(x, weight, bias)
        untouched = x @ weight.T
    expected = round_mantissa(x).double() @ round_mantissa(weight).double().T + bias.double()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(untouched, x @ weight.T)
    assert not torch.equal(ours, F.linear(x, weight, bias))


def test_a_layer_of_a_model_is_reached() -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with EmulatedTF32():
            ours = layer(x)
        expected = F.conv2d(round_mantissa(x), round_mantissa(layer.weight), layer.bias)
    torch.testing.assert_close(ours, expected)
