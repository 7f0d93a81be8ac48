"""3 x 3 convolutions in float32 on CUDA as matrix products, which are twice as fast there as cuDNN's kernels.

On an H100 cuDNN convolves in plain float32 at 27 TFLOP/s, whatever the layout, and cuBLAS multiplies at 51
(benchmarks/RESULTS.md). Stride 1 besides goes by Winograd's F(4 x 4, 3 x 3), as on a processor (``cpu.winograd``
has the algorithm and its source): a quarter of the multiplications.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.cpu.winograd import TILE, make_algorithm

SPAN = TILE + 2  # inputs of a tile along one axis


class PatchConv(nn.Module):
    """Two 3 x 3 convolutions of stride 2 and padding 1 of the same input, as one product of its patches.

    Args:
        weights: (out_channels, in_channels, 3, 3) of each; the first one's output is rectified.
        biases: (out_channels,) of each.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        both = torch.cat(weights).permute(2, 3, 1, 0)
        self.register_buffer("weight", both.flatten(0, 2).contiguous())
        self.register_buffer("bias", torch.cat(biases))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, in_channels, H, W) to two of (B, out_channels, ceil(H / 2), ceil(W / 2)), channels last."""
        height, width = (-(-size // 2) for size in x.shape[2:])
        out = x.new_empty(len(x), height, width, len(self.bias))
        for item, target in zip(x.permute(0, 2, 3, 1), out, strict=True):  # one at a time: patches are large
            padded = F.pad(item, (0, 0, 1, 1, 1, 1)).contiguous()
            row, column, channel = padded.stride()
            shape = (height, width, 3, 3, x.shape[1])
            patches = padded.as_strided(shape, (2 * row, 2 * column, row, column, channel)).reshape(
                -1, len(self.weight)
            )
            torch.addmm(self.bias, patches, self.weight, out=target.view(-1, len(self.bias)))
        main, side = out.permute(0, 3, 1, 2).chunk(2, dim=1)
        return main.relu_(), side


class TileConv(nn.Module):
    """relu(conv(x) + side) for a 3 x 3 convolution of stride 1 and padding 1, by Winograd's algorithm.

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
        algorithm = make_algorithm(1)
        kernel = torch.einsum("ia,jb,ocab->ijco", algorithm.kernel, algorithm.kernel, weight.double())
        self.register_buffer("kernel", kernel.flatten(0, 1).to(weight.dtype).contiguous())
        self.register_buffer("bias", bias)
        for name, matrix in (("input_transform", algorithm.input), ("output_transform", algorithm.output)):
            self.register_buffer(name, torch.kron(matrix, matrix).to(weight.dtype))

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) and (B, out_channels, H, W) to the latter's shape, all channels last."""
        out = torch.empty(side.permute(0, 2, 3, 1).shape, dtype=x.dtype, device=x.device)
        for item, beside, target in zip(x.permute(0, 2, 3, 1), side.permute(0, 2, 3, 1), out, strict=True):
            torch.add(self._convolve(item), beside, out=target)
        return out.relu_().permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        """Map (H, W, in_channels) to (H, W, out_channels)."""
        height, width, channels = x.shape
        rows, columns = (-(-size // TILE) for size in (height, width))
        padded = x.new_zeros(rows * TILE + 2, columns * TILE + 2, channels)
        padded[1 : height + 1, 1 : width + 1] = x
        row, column, channel = padded.stride()
        shape = (SPAN, SPAN, rows, columns, channels)
        tiles = padded.as_strided(shape, (row, column, TILE * row, TILE * column, channel)).reshape(SPAN**2, -1)
        places = (self.input_transform @ tiles).view(SPAN**2, rows * columns, channels)
        products = torch.bmm(places, self.kernel).view(SPAN**2, -1)
        out = (self.output_transform @ products).view(TILE, TILE, rows, columns, -1)
        image = out.permute(2, 0, 3, 1, 4).reshape(rows * TILE, columns * TILE, -1)
        return image[:height, :width] + self.bias
