"""A 3 x 3 convolution with fewer multiplications, for processors.

Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", section 4.3,
arXiv 1509.09308): a tile of inputs and the kernel are transformed so that a convolution becomes one multiplication
a place. Of stride 1, F(4 x 4, 3 x 3) takes 36 of them a channel pair for 4 x 4 outputs instead of 144. Of stride
2, a row's odd inputs meet two taps and its even ones the third (Yepez and Ko, "Stride 2 1-D, 2-D, and 3-D Winograd
for Convolutional Neural Networks", IEEE Transactions on VLSI Systems 28, 2020): F(4, 2) for the odd ones and plain
products for the even ones take 81 instead of 144.

Tiles are transformed some dozens at a time in buffers that are used again, so that what is between the steps stays
in the cache; over whole tensors the transforms would take as long as the multiplications that they spare.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4  # outputs of a tile along one axis
TILES_PER_CHUNK = {1: 128, 2: 96}  # by stride: what is in flight then fills a share of a last-level cache
_POINTS = {2: (0, 1, -1, 2), 3: (0, 1, -1, 2, -2)}  # by taps; and infinity
_ONE = 1  # the point at which a bias is added: there it counts once for every output


@dataclass(frozen=True)
class Algorithm:
    """A minimal filtering along one axis: outputs = output @ ((kernel @ taps) * (input @ inputs)).

    Args:
        input: (places, inputs of a tile).
        kernel: (places, 3).
        output: (TILE, places).
        num_shared: The last so many places all see the kernel's middle tap.
    """

    input: Tensor
    kernel: Tensor
    output: Tensor
    num_shared: int


class WinogradConv(nn.Module):
    """A 3 x 3 convolution of padding 1.

    Args:
        weight: (out_channels, in_channels, 3, 3).
        bias: (out_channels,).
        stride: 1 or 2.
    """

    kernel: Tensor
    bias: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1) -> None:
        super().__init__()
        algorithm = make_algorithm(stride)
        self.stride = stride
        self.num_shared = algorithm.num_shared
        distinct = algorithm.kernel[: len(algorithm.kernel) - max(0, self.num_shared - 1)]
        kernel = torch.einsum("ia,jb,ocab->jico", distinct, distinct, weight.double())  # columns of places first
        self.register_buffer("kernel", kernel.to(weight.dtype).contiguous())
        self.register_buffer("bias", bias)
        self.register_buffer("input_transform", algorithm.input.to(weight.dtype))
        self.register_buffer("output_transform", algorithm.output.to(weight.dtype))

    def forward(self, x: Tensor, side: Tensor | None = None, num_rectified: int | None = None) -> Tensor:
        """Return conv(x) + side, the first channels rectified.

        Args:
            x: (B, H, W, in_channels), of any strides.
            side: (B, ceil(H / stride), ceil(W / stride), out_channels), likewise; it may be overwritten.
            num_rectified: How many of the output's channels are rectified; all by default.

        Returns:
            ``side`` or a new tensor of its shape, of any strides.
        """
        if len(x) > 1:
            return self._convolve_side_by_side(x, side, num_rectified)
        step = TILE * self.stride
        batch, height, width, _ = x.shape
        rows, columns = (-(-size // step) for size in (height, width))
        num_chunks = -(-columns // TILES_PER_CHUNK[self.stride])
        num_tiles = -(-columns // num_chunks)
        shape = (batch, -(-height // self.stride), -(-width // self.stride), len(self.bias))
        out = x.new_empty(shape) if side is None else side
        places = iter(product(range(batch), range(rows), range(0, columns, num_tiles)))
        num_threads = min(torch.get_num_threads(), batch * rows * num_chunks)
        convolve = partial(self._convolve_chunks, places, x, out, num_tiles, side is not None, num_rectified)
        if num_threads == 1:
            convolve(torch.is_inference_mode_enabled())
        else:
            pool = _start_threads(torch.get_num_threads(), os.getpid())
            list(pool.map(convolve, [torch.is_inference_mode_enabled()] * num_threads))
        return out

    def _convolve_side_by_side(self, x: Tensor, side: Tensor | None, num_rectified: int | None) -> Tensor:
        """Convolve a batch as one row of items, with zeros between: narrow items fill no chunk of tiles alone."""
        width = -(-x.shape[2] // self.stride)
        pitch = x.shape[2] // self.stride + 1

        def lay(items: Tensor, item_width: int) -> Tensor:
            padded = F.pad(items, (0, 0, 0, item_width - items.shape[2]))
            return padded.transpose(0, 1).flatten(1, 2).unsqueeze(0)

        row: Tensor = self(lay(x, pitch * self.stride), None if side is None else lay(side, pitch), num_rectified)
        return row.view(row.shape[1], len(x), pitch, -1)[:, :, :width].transpose(0, 1)

    def _convolve_chunks(
        self,
        places: Iterator[tuple[int, int, int]],
        x: Tensor,
        out: Tensor,
        num_tiles: int,
        is_sum: bool,
        num_rectified: int | None,
        inference_mode: bool,
    ) -> None:
        """Convolve chunks, each an image and a row and a column of tiles, as long as there are any left."""
        span, step = self.input_transform.shape[1], TILE * self.stride
        with torch.no_grad(), torch.inference_mode(inference_mode):
            strip = x.new_empty(span, num_tiles * step + span - step, x.shape[3])
            buffers = self._make_buffers(strip, num_tiles)
            for item, row, column in places:
                _cut(x[item], row * step - 1, column * step - 1, strip)
                columns = slice(column * TILE, (column + num_tiles) * TILE)
                target = out[item, row * TILE : (row + 1) * TILE, columns]
                _put(self._convolve(strip, buffers), target, is_sum)
                target[..., :num_rectified].relu_()

    def _make_buffers(self, strip: Tensor, num_tiles: int) -> list[Tensor]:
        """Return what ``_convolve`` writes its steps to."""
        places, span = self.input_transform.shape
        width, channels = strip.shape[1:]
        out_channels = len(self.bias)
        shapes = (
            (places, width, channels),
            (span, places, num_tiles, channels),
            (places, places, num_tiles, channels),
            (places, places, num_tiles, out_channels),
            (TILE, places, num_tiles, out_channels),
            (TILE, TILE, num_tiles, out_channels),
        )
        return [strip.new_empty(shape) for shape in shapes]

    def _convolve(self, strip: Tensor, buffers: list[Tensor]) -> Tensor:
        """Convolve a row of tiles: (span, width, in_channels) to (TILE, TILE, num_tiles, out_channels)."""
        by_row, tiles, transformed, products, half_way, out = buffers
        places, span = self.input_transform.shape
        channels = strip.shape[2]
        torch.mm(self.input_transform, strip.view(span, -1), out=by_row.view(places, -1))
        # Columns first, and neighbouring tiles share some.
        strides = (channels, by_row.stride(0), TILE * self.stride * channels, 1)
        tiles.copy_(by_row.as_strided(tiles.shape, strides))
        torch.mm(self.input_transform, tiles.view(span, -1), out=transformed.view(places, -1))
        if not self.num_shared:
            torch.bmm(transformed.flatten(0, 1), self.kernel.flatten(0, 1), out=products.flatten(0, 1))
        alone = places - self.num_shared
        for column in range(places if self.num_shared else 0):
            kernel, own, result = self.kernel[min(column, alone)], transformed[column], products[column]
            torch.bmm(own[:alone], kernel[:alone], out=result[:alone])
            torch.mm(own[alone:].flatten(0, 1), kernel[alone], out=result[alone:].flatten(0, 1))
        products[_ONE, _ONE] += self.bias
        torch.mm(self.output_transform, products.view(places, -1), out=half_way.view(TILE, -1))
        torch.bmm(self.output_transform.expand(TILE, -1, -1), half_way.flatten(2), out=out.view(TILE, TILE, -1))
        return out.transpose(0, 1)


def make_algorithm(stride: int) -> Algorithm:
    """Return the minimal filtering for three taps at some stride, in float64."""
    if stride == 1:
        return Algorithm(*_make_minimal(3), num_shared=0)
    odd_input, odd_kernel, odd_output = _make_minimal(2)
    places, span = len(odd_input) + TILE, 2 * TILE + 1
    inputs, kernel = torch.zeros(places, span).double(), torch.zeros(places, 3).double()
    inputs[: len(odd_input), ::2] = odd_input
    inputs[len(odd_input) :, 1::2] = torch.eye(TILE)
    kernel[: len(odd_input), ::2] = odd_kernel
    kernel[len(odd_input) :, 1] = 1
    return Algorithm(inputs, kernel, torch.cat([odd_output, torch.eye(TILE).double()], dim=1), num_shared=TILE)


def _make_minimal(num_taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input's, the kernel's and the output's transform of F(TILE, num_taps), by Cook and Toom.

    Inputs and taps are read as polynomials, whose values at as many points are multiplied; see Blahut, "Fast
    Algorithms for Signal Processing" (2010), chapter 5.
    """
    points = _POINTS[num_taps]
    others = [[other for other in points if other != point] for point in points]
    scale = np.array(
        [np.prod([point - other for other in own]) for point, own in zip(points, others, strict=True)]
    )
    span = len(points) + 1
    inputs = np.zeros((span, span))
    for place, own in enumerate([*others, points]):
        coefficients = np.poly(np.array(own, dtype=float))[::-1]
        inputs[place, : len(coefficients)] = coefficients
    powers = np.array(points, dtype=float)[:, None] ** np.arange(max(TILE, num_taps))
    kernel, output = np.zeros((span, num_taps)), np.zeros((TILE, span))
    kernel[:-1], kernel[-1, -1] = powers[:, :num_taps] / np.array(scale)[:, None], 1
    output[:, :-1], output[-1, -1] = powers[:, :TILE].T, 1
    return torch.from_numpy(inputs), torch.from_numpy(kernel), torch.from_numpy(output)


@lru_cache(maxsize=4)
def _start_threads(num_threads: int, process_id: int) -> ThreadPoolExecutor:
    """Return threads whose own calls use one thread each; a forked process starts its own.

    Each then works on its chunk without waiting for the others. Were every small step shared out among threads
    instead, all would wait for the slowest some thousand times a window.
    """
    del process_id
    started = Barrier(num_threads)

    def limit() -> None:
        torch.set_num_threads(1)  # of the calling thread, and of those that start from now on
        started.wait()

    pool = ThreadPoolExecutor(num_threads, "winograd")
    list(pool.map(lambda _: limit(), range(num_threads)))
    torch.set_num_threads(num_threads)
    return pool


def _cut(x: Tensor, top: int, left: int, strip: Tensor) -> None:
    """Copy a rectangle that may reach beyond (H, W, channels); beyond there are zeros."""
    height, width = strip.shape[:2]
    rows = slice(max(0, top), min(x.shape[0], top + height))
    columns = slice(max(0, left), min(x.shape[1], left + width))
    inner = strip[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if inner.shape != strip.shape:
        strip.zero_()
    inner.copy_(x[rows, columns])


def _put(tiles: Tensor, target: Tensor, is_sum: bool) -> None:
    """Lay (TILE, TILE, num_tiles, channels) out as rows, columns and channels of an image, or add it."""
    rows = tiles.transpose(1, 2)  # (TILE, num_tiles, TILE, channels)
    if target.shape[:2] == (TILE, rows.shape[1] * TILE):
        target = target.view(rows.shape)
    else:
        rows = rows.flatten(1, 2)[: target.shape[0], : target.shape[1]]
    if is_sum:
        target.add_(rows)
    else:
        target.copy_(rows)
