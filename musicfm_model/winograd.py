"""A 3 x 3 convolution with a quarter of the multiplications, for processors.

Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
arXiv 1509.09308, section 4.3): a tile of 6 x 6 inputs gives 4 x 4 outputs by 36 multiplications a channel pair
instead of 144. Tiles are transformed some dozens at a time, so that what is between the steps stays in the cache;
over whole tensors the transforms would take as long as the multiplications that they spare.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4  # outputs of a tile along one axis
SPAN = TILE + 2  # inputs that they see
TILES_PER_CHUNK = 128  # 36 x 128 x 512 float32 values are 9 MB: a share of a last-level cache

_INPUT = (  # B transposed, for the points 0, 1, -1, 2, -2 and infinity
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (  # A transposed
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv(nn.Module):
    """A 3 x 3 convolution of stride 1 and padding 1 that adds a second input and rectifies the sum.

    Args:
        weight: (out_channels, in_channels, 3, 3).
        bias: (out_channels,).
    """

    kernel: Tensor
    bias: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        g = torch.tensor(_KERNEL, dtype=torch.float64)
        kernel = torch.einsum("ia,jb,ocab->ijco", g, g, weight.double()).flatten(0, 1)
        self.register_buffer("kernel", kernel.to(weight.dtype).contiguous())
        self.register_buffer("bias", bias)
        self.register_buffer("input_transform", torch.tensor(_INPUT, dtype=weight.dtype))
        self.register_buffer("output_transform", torch.tensor(_OUTPUT, dtype=weight.dtype))

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        """Return relu(conv(relu(x)) + side).

        Args:
            x: (B, H, W, in_channels).
            side: (B, H, W, out_channels).

        Returns:
            (B, H, W, out_channels), contiguous.
        """
        height, width = x.shape[1:3]
        rows, columns = -(-height // TILE), -(-width // TILE)
        padding = (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height)
        padded = F.pad(x, padding).relu_()
        out = torch.empty_like(side, memory_format=torch.contiguous_format)
        for item in range(len(x)):
            for top in range(0, rows * TILE, TILE):
                for left in range(0, columns * TILE, TILES_PER_CHUNK * TILE):
                    num_tiles = min(TILES_PER_CHUNK, columns - left // TILE)
                    strip = padded[item, top : top + SPAN, left : left + num_tiles * TILE + 2]
                    own = (item, slice(top, top + TILE), slice(left, left + num_tiles * TILE))
                    target = out[own]  # narrower and lower than the tiles at the far edges
                    result = self._convolve(strip, num_tiles)[: target.shape[0], : target.shape[1]]
                    torch.add(result, side[own], out=target).relu_()
        return out

    def _convolve(self, strip: Tensor, num_tiles: int) -> Tensor:
        """Convolve one row of tiles: (6, 4 * num_tiles + 2, in_channels) to (4, 4 * num_tiles, out_channels)."""
        channels = strip.shape[2]
        strip = (self.input_transform @ strip.reshape(SPAN, -1)).view(SPAN, -1, channels)
        # (6 rows, 6 columns, tiles, channels): neighbouring tiles share two columns.
        strides = (strip.stride(0), channels, TILE * channels, 1)
        tiles = strip.as_strided((SPAN, SPAN, num_tiles, channels), strides).reshape(SPAN, SPAN, -1)
        transformed = (self.input_transform @ tiles).view(SPAN * SPAN, num_tiles, channels)
        product = torch.bmm(transformed, self.kernel)
        half_way = self.output_transform @ product.view(SPAN, SPAN, -1)
        out = (self.output_transform @ half_way.view(SPAN, -1)).view(TILE, TILE, num_tiles, -1)
        return out.transpose(1, 2).reshape(TILE, TILE * num_tiles, -1) + self.bias
