"""The device that the model computes on: which there is, whether it is usable, how much it takes at once."""

from __future__ import annotations

import logging
from functools import cache

import torch

from pipeline.config import Precision
from pipeline.errors import DeviceError

logger = logging.getLogger(__name__)

WINDOWS_ON_CUDA = 8
"""30 s windows at once on a GPU.

An H200 takes 98 % of its best rate with eight in a half type, 97 % in tf32 and 96 % in float32; the
smaller a batch, the fuller it is when clips differ in length (benchmarks/RESULTS.md).
"""
WINDOW_BYTES = {"float32": 1.3e9, "tf32": 1.3e9, "bfloat16": 0.65e9, "float16": 0.65e9}  # peak for one at once

# Measured with random weights of the published size (benchmarks/RESULTS.md).
ADVICE = (
    "float32 is what the model's authors advise, and the default: 57 windows of 30 s a second on an H200. "
    "--precision tf32 takes 234, its values 7e-4 off, and bfloat16 479, 9e-3 off; each is a recipe of its own"
)


def choose_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_cuda() -> None:
    """Check that a GPU that was reserved can be used.

    Raises:
        DeviceError: PyTorch cannot use it; the message names its wheel and the driver.
    """
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.mem_get_info()
    except (RuntimeError, AssertionError) as error:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a wheel without CUDA"
        detail = " ".join(str(error).split())[:300]
        raise DeviceError(
            f"a GPU is reserved for the model, and PyTorch {torch.__version__} ({built}) cannot use it with the "
            f"driver here ({_read_driver()}): {detail} Install a driver that fits the wheel, or a wheel that fits "
            "the driver (see infra/docker), or run with --device cpu"
        ) from None


def choose_batch_size(device: str, precision: Precision) -> int:
    """Return how many 30 s windows to give the model at once on this device, at the published size."""
    if torch.device(device).type != "cuda":
        return 1
    free_bytes, _ = torch.cuda.mem_get_info(torch.device(device))
    return max(1, min(WINDOWS_ON_CUDA, int(0.7 * free_bytes / WINDOW_BYTES[precision])))


@cache
def advise_precision(precision: Precision) -> None:
    """Say once in a process what other arithmetic does on a GPU, where float32 is used."""
    if precision == "float32":
        logger.info("%s", ADVICE)


def _read_driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return "no NVIDIA driver is loaded"
