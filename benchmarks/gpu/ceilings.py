"""What the device can do at best: the figures that all others are shares of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.setting import PRECISIONS, Setting, cudnn_tries
from musicfm_model.precision import float32_arithmetic

COPY_BYTES = 2**31
HOST_BYTES = 2**28


def measure_ceilings(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time a matrix product and the model's largest convolution in each precision, and copies."""
    size = setting.matrix_size
    for precision in PRECISIONS:
        with float32_arithmetic(setting.device, allow_tf32=precision == "tf32"):
            a, b = (setting.draw(size, size, precision=precision) for _ in range(2))
            seconds = setting.time(lambda a=a, b=b: a @ b, seconds=0.3)  # type: ignore[misc]
            put(f"matrix {precision} TFLOP/s", 2 * size**3 / seconds / 1e12)
            del a, b
            for layout in ("NHWC", "NCHW") if precision != "float32" else ():  # which takes cuDNN minutes to try
                put(f"convolution {layout} {precision} TFLOP/s", _time_convolution(setting, precision, layout))
    num_bytes, host_bytes = (COPY_BYTES, HOST_BYTES) if setting.is_gpu else (2**16, 2**16)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=setting.device).random_()
    target = torch.empty_like(source)
    put("device copy GB/s", 2 * num_bytes / setting.time(lambda: target.copy_(source), seconds=0.3) / 1e9)
    host = torch.zeros(host_bytes, dtype=torch.uint8, pin_memory=setting.is_gpu)
    landing = target[:host_bytes]
    put("host to device GB/s", host_bytes / setting.time(lambda: landing.copy_(host), seconds=0.3) / 1e9)
    put("device to host GB/s", host_bytes / setting.time(lambda: host.copy_(landing), seconds=0.3) / 1e9)


def _time_convolution(setting: Setting, precision: str, layout: str) -> float:
    """Return TFLOP/s of the second convolution of the first block, cuDNN left to choose by trying."""
    channels, height, width = setting.config.conv_dim, setting.config.n_mels // 2, setting.num_samples // 480
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    batch = max(1, setting.batch_size // 2)
    x = setting.draw(batch, channels, height, width, precision=precision).contiguous(memory_format=memory_format)
    weight = setting.draw(channels, channels, 3, 3, precision=precision).contiguous(memory_format=memory_format)
    with cudnn_tries(True):
        seconds = setting.time(lambda: F.conv2d(x, weight, padding=1), seconds=0.3)
    return float(2 * 9 * channels**2 * batch * height * width / seconds / 1e12)
