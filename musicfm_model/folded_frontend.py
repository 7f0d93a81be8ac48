"""The front end for inference on a processor: the same function, with fewer operations, channels last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.cpu.winograd import WinogradConv
from musicfm_model.frontend import ConvFrontend, ResidualBlock

MIN_WINOGRAD_CHANNELS = 64  # with fewer, transforms cost more than the multiplications that they spare


class FoldedBlock(nn.Module):
    """A residual block in evaluation: batch norms folded, the two convolutions of its input as one.

    Args:
        block: The block.
        winograd: Whether to compute by ``WinogradConv`` where that pays.
    """

    entry_weight: Tensor
    entry_bias: Tensor
    exit_weight: Tensor
    exit_bias: Tensor

    def __init__(self, block: ResidualBlock, winograd: bool) -> None:
        super().__init__()
        main, side = fold_norm(block.conv1, block.bn1), fold_norm(block.conv3, block.bn3)
        entry_weight, entry_bias = torch.cat([main[0], side[0]]), torch.cat([main[1], side[1]])
        exit_weight, exit_bias = fold_norm(block.conv2, block.bn2)
        self.channels = len(exit_bias)
        self.entry = self.exit = None
        if winograd and entry_weight.shape[1] >= MIN_WINOGRAD_CHANNELS:
            self.entry = WinogradConv(entry_weight, entry_bias, stride=2)
        else:
            self.register_buffer("entry_weight", entry_weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer("entry_bias", entry_bias)
        if winograd and self.channels >= MIN_WINOGRAD_CHANNELS:
            self.exit = WinogradConv(exit_weight, exit_bias)
        else:
            self.register_buffer("exit_weight", exit_weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer("exit_bias", exit_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / 2), ceil(W / 2)), both channels last."""
        if self.entry is not None:
            both = self.entry(x.permute(0, 2, 3, 1), num_rectified=self.channels).permute(0, 3, 1, 2)
        else:
            both = F.conv2d(x, self.entry_weight, self.entry_bias, stride=2, padding=1)
            both[:, : self.channels].relu_()
        main, side = both.chunk(2, dim=1)
        if self.exit is not None:
            out: Tensor = self.exit(main.permute(0, 2, 3, 1), side.permute(0, 2, 3, 1))
            return out.permute(0, 3, 1, 2)
        return F.relu_(F.conv2d(main, self.exit_weight, self.exit_bias, padding=1).add_(side))


class FoldedFrontend(nn.Module):
    """``ConvFrontend`` in evaluation, for inference alone: it can neither be trained nor saved.

    Args:
        frontend: The front end, in float32; it shares its projection.
        winograd: Whether to compute convolutions of many channels by ``WinogradConv``: up to three times as fast
            in float32.
    """

    def __init__(self, frontend: ConvFrontend, winograd: bool) -> None:
        super().__init__()
        blocks = [block for block in frontend.conv if isinstance(block, ResidualBlock)]
        self.conv = nn.Sequential(*(FoldedBlock(block, winograd) for block in blocks))
        self.linear = frontend.linear

    def forward(self, mel: Tensor) -> Tensor:
        """Return what ``ConvFrontend`` returns: (B, n_mels, T) to (B, ceil(T / 4), embed_dim)."""
        x = self.conv(mel.unsqueeze(1).contiguous(memory_format=torch.channels_last))
        embeddings: Tensor = self.linear(x.permute(0, 3, 1, 2).flatten(2))
        return embeddings


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one convolution that does what these two do in evaluation."""
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = (conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    return weight.to(conv.weight.dtype).detach(), bias.to(conv.weight.dtype).detach()
