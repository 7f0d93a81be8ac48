"""The model's parts a second time, in NumPy and float64, with loops where the model has tensor operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import correlate2d
from scipy.special import expit, softmax
from torch import Tensor

Array = NDArray[Any]


def relative_error(found: Tensor, expected: Tensor | Array) -> float:
    """Largest difference over the largest expected magnitude."""
    found, expected = (torch.as_tensor(x).detach().double() for x in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def log_mel_db(wav: Array, n_mels: int) -> Array:
    """(S,) to (n_mels, floor(S / 240)) in dB: reflected edges, periodic Hann window, HTK triangles."""
    padded = np.pad(wav.astype(np.float64), 1024, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    columns = []
    for frame in range(len(wav) // 240):
        spectrum = np.fft.rfft(padded[frame * 240 : frame * 240 + 2048] * window)
        columns.append(_htk_triangles(n_mels) @ np.abs(spectrum) ** 2)
    decibels: Array = 10 * np.log10(np.maximum(np.stack(columns, axis=1), 1e-10))
    return decibels


def _htk_triangles(n_mels: int) -> Array:
    frequencies = np.linspace(0, 12_000, 1025)
    mels = np.linspace(0, 2595 * np.log10(1 + 12_000 / 700), n_mels + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    triangles = np.zeros((n_mels, 1025))
    for band in range(n_mels):
        low, centre, high = corners[band : band + 3]
        rising = (frequencies - low) / (centre - low)
        falling = (high - frequencies) / (high - centre)
        triangles[band] = np.maximum(0, np.minimum(rising, falling))
    return triangles


def conv_frontend(mel: Array, weights: Mapping[str, Array]) -> Array:
    """(n_mels, T) to (ceil(T / 4), embed_dim); ``weights`` without the ``conv.`` prefix."""
    x = mel[np.newaxis]
    for block in ("conv.0.", "conv.1."):
        main = np.maximum(0, _normed_conv2d(x, weights, f"{block}conv1", f"{block}bn1", stride=2))
        main = _normed_conv2d(main, weights, f"{block}conv2", f"{block}bn2", stride=1)
        x = np.maximum(0, main + _normed_conv2d(x, weights, f"{block}conv3", f"{block}bn3", stride=2))
    frames = [x[:, :, frame].reshape(-1) for frame in range(x.shape[2])]
    return linear(np.stack(frames), weights, "linear")


def _normed_conv2d(x: Array, weights: Mapping[str, Array], conv: str, norm: str, stride: int) -> Array:
    kernels, biases = weights[f"{conv}.weight"], weights[f"{conv}.bias"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    maps = []
    for kernel, bias in zip(kernels, biases, strict=True):
        total = sum(correlate2d(padded[i], kernel[i], mode="valid") for i in range(len(x)))
        maps.append((total + bias)[::stride, ::stride])
    normed = batch_norm(np.stack(maps).reshape(len(maps), -1).T, weights, norm)
    return normed.T.reshape(len(maps), *maps[0].shape)


def conformer_layer(x: Array, weights: Mapping[str, Array], inv_freq: Array, num_heads: int) -> Array:
    """(T, embed_dim) to the same shape; ``weights`` without the layer's prefix."""
    x = x + 0.5 * feed_forward(layer_norm(x, weights, "ffn1_layer_norm"), weights, "ffn1")
    x = x + self_attention(layer_norm(x, weights, "self_attn_layer_norm"), weights, inv_freq, num_heads)
    x = x + conv_module(x, weights)
    x = x + 0.5 * feed_forward(layer_norm(x, weights, "ffn2_layer_norm"), weights, "ffn2")
    return layer_norm(x, weights, "final_layer_norm")


def feed_forward(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    return linear(swish(linear(x, weights, f"{name}.intermediate_dense")), weights, f"{name}.output_dense")


def self_attention(x: Array, weights: Mapping[str, Array], inv_freq: Array, num_heads: int) -> Array:
    rotated = np.concatenate(
        [rotate_by_complex(head, inv_freq) for head in np.split(x, num_heads, axis=1)], axis=1
    )
    query = linear(rotated, weights, "self_attn.linear_q")
    key = linear(rotated, weights, "self_attn.linear_k")
    value = linear(x, weights, "self_attn.linear_v")
    heads = [
        attend_one_head(q, k, v)
        for q, k, v in zip(*(np.split(y, num_heads, axis=1) for y in (query, key, value)), strict=True)
    ]
    return linear(np.concatenate(heads, axis=1), weights, "self_attn.linear_out")


def attend_one_head(query: Array, key: Array, value: Array) -> Array:
    """(T, D) each, one query frame at a time."""
    rows = [softmax(key @ frame / np.sqrt(len(frame))) @ value for frame in query]
    return np.stack(rows)


def rotate_by_complex(x: Array, inv_freq: Array) -> Array:
    """(T, D): element i and i + D/2 as one complex number, turned by frame times ``inv_freq[i]``."""
    half = len(inv_freq)
    pairs = x[:, :half] + 1j * x[:, half:]
    turned = pairs * np.exp(1j * np.outer(np.arange(len(x)), inv_freq))
    return np.concatenate([turned.real, turned.imag], axis=1)


def conv_module(x: Array, weights: Mapping[str, Array]) -> Array:
    normed = layer_norm(x, weights, "conv_module.layer_norm")
    content, gate = np.split(normed @ weights["conv_module.pointwise_conv1.weight"][:, :, 0].T, 2, axis=1)
    gated = content * expit(gate)
    kernels = weights["conv_module.depthwise_conv.weight"][:, 0]
    reach = kernels.shape[1] // 2
    mixed = np.zeros_like(gated)
    for frame in range(len(x)):
        for tap in range(kernels.shape[1]):
            if 0 <= frame + tap - reach < len(x):
                mixed[frame] += kernels[:, tap] * gated[frame + tap - reach]
    activated = swish(batch_norm(mixed, weights, "conv_module.batch_norm"))
    return activated @ weights["conv_module.pointwise_conv2.weight"][:, :, 0].T


def linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    product: Array = x @ weights[f"{name}.weight"].T
    return product + weights[f"{name}.bias"]


def layer_norm(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def batch_norm(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    scaled: Array = (x - weights[f"{name}.running_mean"]) / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def swish(x: Array) -> Array:
    activated: Array = x * expit(x)
    return activated
