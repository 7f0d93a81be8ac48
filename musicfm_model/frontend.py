"""Two residual convolutions and a projection: mel frames at 100 Hz to embeddings at 25 Hz."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.precision import Float32BatchNorm2d


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside one, each batch-normed; halves the bands and the frames.

    Attribute names are those of the published checkpoints.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.bn1 = Float32BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = Float32BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.bn3 = Float32BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, n_mels, T) to (B, channels, ceil(n_mels / 2), ceil(T / 2))."""
        main = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(main + self.bn3(self.conv3(x)))


class ConvFrontend(nn.Module):
    """Normalised log-mel frames in, Conformer input out (published ``modules/conv.py``).

    Args:
        conv_dim: Channels of the convolutions.
        embed_dim: Width of the output.
        n_mels: Mel bands of the input, a multiple of 4.
    """

    def __init__(self, conv_dim: int, embed_dim: int, n_mels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(ResidualBlock(1, conv_dim), ResidualBlock(conv_dim, conv_dim))
        self.linear = nn.Linear(conv_dim * (n_mels // 4), embed_dim)

    def forward(self, mel: Tensor) -> Tensor:
        """Return one embedding for every four mel frames.

        Args:
            mel: (B, n_mels, T) normalised log-mel frames at 100 Hz.

        Returns:
            (B, ceil(T / 4), embed_dim) at 25 Hz, in the input's dtype.
        """
        x = self.conv(mel.unsqueeze(1))
        embeddings: Tensor = self.linear(x.permute(0, 3, 1, 2).flatten(2))
        return embeddings
