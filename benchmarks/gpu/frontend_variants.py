"""Ways to compute the two residual convolutions on a GPU, from the same folded weights.

They differ in layout (NCHW, NHWC), in whether the two convolutions of a block's input are one or two, in whether
bias, rectifier and sum are fused into cuDNN's convolutions, and in whether the first block's entry, whose input
has a single channel, is a matrix product of patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.setting import Setting, cudnn_tries
from musicfm_model.folded_frontend import FoldedBlock, FoldedFrontend
from musicfm_model.frontend import ConvFrontend
from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import compute_dtype, float32_arithmetic

PATCH_VALUES = 16  # nine taps, padded to what matrix units take


@dataclass(frozen=True)
class Way:
    """One way.

    Args:
        layout: ``NHWC`` or ``NCHW``.
        fused: Whether cuDNN adds bias and side and rectifies.
        patches: Whether the first block's entry is a matrix product.
        compiled: Whether ``torch.compile`` fuses what is between the convolutions.
    """

    layout: str
    fused: bool = False
    patches: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = [name for name in ("fused", "patches", "compiled") if getattr(self, name)]
        return ", ".join([self.layout, "two convolutions", *parts])


WAYS = (
    Way("NHWC"),
    Way("NHWC", fused=True),
    Way("NHWC", patches=True),
    Way("NHWC", fused=True, patches=True),
    Way("NHWC", compiled=True),
    Way("NHWC", patches=True, compiled=True),
    Way("NCHW"),
    Way("NCHW", fused=True),
)


class VariedFrontend(nn.Module):
    """The folded front end, computed in one of the ways.

    Args:
        folded: The front end without Winograd, in the dtype that it computes in.
        way: The way.
    """

    def __init__(self, folded: FoldedFrontend, way: Way) -> None:
        super().__init__()
        self.way = way
        memory_format = torch.channels_last if way.layout == "NHWC" else torch.contiguous_format
        self.blocks = []
        for block in folded.conv:
            assert isinstance(block, FoldedBlock)
            count = block.channels
            weights = block.entry_weight[:count], block.entry_weight[count:], block.exit_weight
            biases = block.entry_bias[:count], block.entry_bias[count:], block.exit_bias
            self.blocks.append(
                [
                    (weight.clone(memory_format=memory_format), bias.clone())
                    for weight, bias in zip(weights, biases, strict=True)
                ]
            )
        (main, side, _), _ = self.blocks
        self.taps = [
            (F.pad(weight.reshape(len(weight), 9), (0, PATCH_VALUES - 9)).T, bias) for weight, bias in (main, side)
        ]
        self.linear = folded.linear

    def forward(self, mel: Tensor) -> Tensor:
        """Map (B, n_mels, T) to (B, ceil(T / 4), embed_dim)."""
        first, second = self.blocks
        if self.way.patches:
            main, side = self._enter_by_patches(mel)
            x = self._convolve(main, first[2], add=side)
        else:
            x = mel.unsqueeze(1)
            if self.way.layout == "NHWC":
                x = x.as_strided(x.shape, (x.stride(0), 1, x.shape[3], 1))
            x = self._run_block(x, first)
        x = self._run_block(x, second)
        embeddings: Tensor = self.linear(x.permute(0, 3, 1, 2).flatten(2))
        return embeddings

    def _run_block(self, x: Tensor, block: list[tuple[Tensor, Tensor]]) -> Tensor:
        main = self._convolve(x, block[0], stride=2, rectify=True)
        side = self._convolve(x, block[1], stride=2)
        return self._convolve(main, block[2], add=side)

    def _convolve(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        stride: int = 1,
        rectify: bool = False,
        add: Tensor | None = None,
    ) -> Tensor:
        weight, bias = weights
        if not self.way.fused or not x.is_cuda or not (rectify or add is not None):
            out = F.conv2d(x, weight, bias, stride=stride, padding=1)
            if add is not None:
                return F.relu_(out.add_(add))
            return F.relu_(out) if rectify else out
        place = (stride, stride), (1, 1), (1, 1), 1
        if add is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *place)
        return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *place)

    def _enter_by_patches(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.pad(mel, (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)
        rows = F.pad(patches, (0, PATCH_VALUES - 9))
        main, side = self.taps
        shape = (*rows.shape[:3], main[0].shape[1])
        flat = rows.reshape(-1, PATCH_VALUES)
        rectified = torch._addmm_activation(main[1], flat, main[0])
        plain = torch.addmm(side[1], flat, side[0])
        return rectified.view(shape).permute(0, 3, 1, 2), plain.view(shape).permute(0, 3, 1, 2)


def fold(setting: Setting, precision: str) -> FoldedFrontend:
    """Return the front end with its norms folded, and nothing fused."""
    frontend = MusicFM25Hz.from_checkpoint(setting.checkpoint).conv
    assert isinstance(frontend, ConvFrontend)
    return FoldedFrontend(frontend, winograd=False).to(setting.device, compute_dtype(precision))


def build_frontend(setting: Setting, precision: str, way: Way) -> Callable[[Tensor], Tensor]:
    """Return a front end of the setting's checkpoint, on its device."""
    varied = VariedFrontend(fold(setting, precision), way)
    if not way.compiled:
        return varied
    compiled: Callable[[Tensor], Tensor] = compile_for(setting, varied)
    return compiled


def compile_for(setting: Setting, module: nn.Module) -> Any:
    """Compile a module; a rehearsal only follows it through, so that a break in its graph shows."""
    return torch.compile(module, fullgraph=True, dynamic=False, backend="inductor" if setting.is_gpu else "eager")


def measure_frontends(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time all ways in three precisions, cuDNN choosing by its rules and by trying; how far off each is."""
    num_frames = setting.num_samples // 240
    for precision, batch in (("bfloat16", 1.0), ("tf32", 0.5), ("float32", 0.25)):
        num_windows = max(1, int(setting.batch_size * batch))
        mel = setting.draw(num_windows, setting.config.n_mels, num_frames, precision=precision)
        folded = fold(setting, precision)
        with float32_arithmetic(setting.device, allow_tf32=precision == "tf32"):
            expected = folded(mel)
        for way, tried in product((None, *WAYS), (False, True)):
            if way and way.compiled and (tried or precision != "bfloat16"):
                continue
            name = str(way) if way else "NHWC, one convolution, cut in two"
            try:
                frontend = build_frontend(setting, precision, way) if way else folded
                row: dict[str, Any] = _time_way(setting, frontend, mel, expected, precision, tried)
                row["milliseconds a window"] /= num_windows
            except RuntimeError as error:
                row = {"failed": str(error)[:300]}
            put(f"{precision}: {name}{', cuDNN tries' if tried else ''}", row)


def _time_way(
    setting: Setting,
    frontend: Callable[[Tensor], Tensor],
    mel: Tensor,
    expected: Tensor,
    precision: str,
    tried: bool,
) -> dict[str, float]:
    with (
        float32_arithmetic(setting.device, allow_tf32=precision == "tf32"),
        cudnn_tries(tried),
    ):
        seconds = setting.time(lambda: frontend(mel), seconds=0.15)
        error = (frontend(mel) - expected).float().norm() / expected.float().norm()
    return {"milliseconds a window": 1e3 * seconds, "relative difference": float(error)}
