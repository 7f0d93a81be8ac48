"""The front end for inference on CUDA: fewer passes over memory, since that is what convolutions there wait for.

Of a 30 s window the first block's activations are 98 MB in a half type, and PyTorch's convolutions add their bias,
rectify and sum in passes of their own. Here cuDNN's kernels do so as they write, channels last, and the first
block's entry, whose input has a single channel, is a matrix product of patches. On an H100 a window takes 1.30 ms
in bfloat16 where separate passes take 2.94 (``benchmarks/RESULTS.md``); letting cuDNN try all its algorithms, or
``torch.compile``, gains nothing beyond that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.folded_frontend import fold_norm
from musicfm_model.frontend import ConvFrontend, ResidualBlock
from musicfm_model.gpu.float32_conv import PatchConv, TileConv
from musicfm_model.gpu.shapes import clear_beyond, pad_mel

PATCH_VALUES = 16  # the nine taps, padded to what matrix units take


class FusedBlock(nn.Module):
    """A residual block in evaluation, channels last: batch norms folded, biases, rectifiers and sum fused.

    Args:
        block: The block, in float32.
        exact: Whether it is to compute in plain float32, for which cuDNN has no fast kernels.
    """

    main_weight: Tensor
    main_bias: Tensor
    side_weight: Tensor
    side_bias: Tensor
    exit_weight: Tensor
    exit_bias: Tensor

    def __init__(self, block: ResidualBlock, exact: bool) -> None:
        super().__init__()
        pairs = {
            "main": fold_norm(block.conv1, block.bn1),
            "side": fold_norm(block.conv3, block.bn3),
            "exit": fold_norm(block.conv2, block.bn2),
        }
        for name, (weight, bias) in pairs.items():
            self.register_buffer(f"{name}_weight", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"{name}_bias", bias)
        self.exact_entry = self.exact_exit = None
        if exact:
            (main, main_bias), (side, side_bias) = pairs["main"], pairs["side"]
            self.exact_entry = PatchConv((main, side), (main_bias, side_bias))
            self.exact_exit = TileConv(*pairs["exit"])

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / 2), ceil(W / 2)), both channels last.

        What comes out beyond ``num_frames`` along W is zero: the input ends there, the rest is padding.
        """
        if self.exact_entry is not None:
            main, side = self.exact_entry(x)
            return self.leave(main, side, num_frames)
        main = convolve_relu(x, self.main_weight, self.main_bias, stride=2)
        side = F.conv2d(x, self.side_weight, self.side_bias, stride=2, padding=1)
        return self.leave(main, side, num_frames)

    def leave(self, main: Tensor, side: Tensor, num_frames: int) -> Tensor:
        """Convolve the main path, add the side path and rectify."""
        main = clear_beyond(main, num_frames)
        return clear_beyond(self._convolve_exit(main, side), num_frames)

    def _convolve_exit(self, main: Tensor, side: Tensor) -> Tensor:
        if self.exact_exit is not None:
            out: Tensor = self.exact_exit(main, side)
            return out
        if not main.is_cuda:
            return F.relu_(F.conv2d(main, self.exit_weight, self.exit_bias, padding=1).add_(side))
        return torch.cudnn_convolution_add_relu(
            main, self.exit_weight, side, 1.0, self.exit_bias, (1, 1), (1, 1), (1, 1), 1
        )


class FusedEntryBlock(FusedBlock):
    """The first block: its input has one channel, so that its convolutions are products of patches.

    Args:
        block: The block, in float32.
        exact: As ``FusedBlock`` takes it.
    """

    main_taps: Tensor
    side_taps: Tensor

    def __init__(self, block: ResidualBlock, exact: bool) -> None:
        super().__init__(block, exact)
        self.exact_entry = None
        for name in ("main", "side"):
            weight: Tensor = getattr(self, f"{name}_weight")
            taps = F.pad(weight.flatten(1), (0, PATCH_VALUES - 9)).T.contiguous()
            self.register_buffer(f"{name}_taps", taps)
            delattr(self, f"{name}_weight")

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Map (B, n_mels, T) to (B, channels, ceil(n_mels / 2), ceil(T / 2)), channels last, as ``FusedBlock``."""
        patches = F.pad(x, (1, 1, 1, 1)).unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)
        rows = F.pad(patches, (0, PATCH_VALUES - 9)).flatten(0, 2)
        shape = (*patches.shape[:3], len(self.main_bias))
        main = torch._addmm_activation(self.main_bias, rows, self.main_taps)  # rectified as it is written
        side = torch.addmm(self.side_bias, rows, self.side_taps)
        main, side = (each.view(shape).permute(0, 3, 1, 2) for each in (main, side))
        return self.leave(main, side, num_frames)


class FusedFrontend(nn.Module):
    """``ConvFrontend`` in evaluation, for inference alone: it can neither be trained nor saved.

    Args:
        frontend: The front end, in float32.
        exact: Whether it is to compute in plain float32.
    """

    def __init__(self, frontend: ConvFrontend, exact: bool) -> None:
        super().__init__()
        first, second = (block for block in frontend.conv if isinstance(block, ResidualBlock))
        self.conv = nn.ModuleList([FusedEntryBlock(first, exact), FusedBlock(second, exact)])
        self.exact = exact
        # The projection's inputs in the order (band, channel), in which they leave the convolutions.
        source = frontend.linear
        channels = second.conv2.out_channels
        self.linear = nn.Linear(source.in_features, source.out_features, device="meta")
        weight = source.weight.detach().unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)  # type: ignore[no-untyped-call]
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        self.linear.bias = nn.Parameter(source.bias.detach(), requires_grad=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Return what ``ConvFrontend`` returns: (B, n_mels, T) to (B, ceil(T / 4), embed_dim)."""
        num_frames = mel.shape[2]
        x = mel if self.exact else pad_mel(mel)  # products of matrices need no plan
        for block in self.conv:
            num_frames = -(-num_frames // 2)
            x = block(x, num_frames)
        embeddings: Tensor = self.linear(x[..., :num_frames].permute(0, 3, 2, 1).flatten(2))
        return embeddings


def convolve_relu(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Return relu(conv(x)) of a 3 x 3 kernel with padding 1, on CUDA in one pass."""
    if not x.is_cuda:
        return F.relu_(F.conv2d(x, weight, bias, stride=stride, padding=1))
    return torch.cudnn_convolution_relu(x, weight, bias, (stride, stride), (1, 1), (1, 1), 1)
