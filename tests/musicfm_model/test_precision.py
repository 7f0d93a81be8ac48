from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from musicfm_model.precision import Float32Module, compute_dtype, float32_arithmetic

CUDA = torch.device("cuda")


def read_switches() -> tuple[str, str]:
    """How float32 is multiplied, in matrix products and in convolutions."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", torch.float32),
        ("tf32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_weights_have_the_dtype_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    assert compute_dtype(precision) == dtype


def test_an_unknown_precision_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'half': expected one of float32, tf32, bfloat16, float16"):
        compute_dtype("half")


@pytest.mark.parametrize(("allow_tf32", "expected"), [(True, "tf32"), (False, "ieee")])
def test_switches_hold_inside_the_block_only(allow_tf32: bool, expected: str) -> None:
    before = read_switches()

    with float32_arithmetic(CUDA, allow_tf32=allow_tf32):
        assert read_switches() == (expected, expected)

    assert read_switches() == before


def test_switches_are_put_back_after_an_error() -> None:
    before = read_switches()

    with pytest.raises(RuntimeError, match="out of memory"), float32_arithmetic(CUDA, allow_tf32=True):
        raise RuntimeError("out of memory")

    assert read_switches() == before


def test_switches_set_by_the_process_are_put_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with float32_arithmetic(CUDA, allow_tf32=False):
            assert read_switches() == ("ieee", "ieee")
        assert torch.backends.cuda.matmul.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_the_cpu_touches_no_switch() -> None:
    before = read_switches()

    with float32_arithmetic(torch.device("cpu"), allow_tf32=True):
        assert read_switches() == before


def test_two_threads_do_not_mix_their_switches() -> None:
    before = read_switches()
    entered, seen = threading.Event(), []

    def compute_in_tf32() -> None:
        with float32_arithmetic(CUDA, allow_tf32=True):
            entered.set()
            seen.append(read_switches())

    with float32_arithmetic(CUDA, allow_tf32=False):
        thread = threading.Thread(target=compute_in_tf32)
        thread.start()
        assert not entered.wait(0.1)
        assert read_switches() == ("ieee", "ieee")
    thread.join(5)

    assert seen == [("tf32", "tf32")]
    assert read_switches() == before


class Table(Float32Module):
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor([1 / 3, 1e-9]))
        self.inner = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_survive_a_change_of_dtype_unrounded(dtype: torch.dtype) -> None:
    parent = torch.nn.Sequential(Table(), torch.nn.Linear(2, 2)).to(dtype).to(torch.float32)
    table = parent[0]
    assert isinstance(table, Table)

    assert table.values.tolist() == torch.tensor([1 / 3, 1e-9]).tolist()
    assert parent.half()[1].weight.dtype == torch.float16
    assert {tensor.dtype for tensor in table.state_dict().values()} == {torch.float32}


def test_values_follow_the_device() -> None:
    assert torch.nn.Sequential(Table()).to("meta")[0].values.device.type == "meta"
