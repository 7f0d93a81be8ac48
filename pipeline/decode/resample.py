"""Any sample rate to the model's 24 kHz, with torchaudio's default filter, in memory that does not grow.

torchaudio unfolds a whole signal (one hour at 48 kHz takes 6 GB beside the signal itself). This goes through it
in pieces, which begin on multiples of the reduced rate and carry the filter's width on both sides: the values
are the same, without seams.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from numpy.typing import NDArray

from pipeline.config import SAMPLE_RATE_HZ, ResamplerSettings

_SETTINGS = ResamplerSettings()

# Measured on one core, 30 s clips: pieces of 2**18 samples are the quickest at every common rate, and at
# 48 kHz (10 ms) three times as quick as the whole signal at once.
_PIECE_SAMPLES = 2**18

# torchaudio keeps one filter for each phase of the two rates: 55 KB for 44,100 Hz, but 4 GB for 44,101 Hz.
_MAX_KERNEL_BYTES = 16 * 2**20


def resample(waveform: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    """Return a waveform at 24 kHz.

    The values are those of ``torchaudio.transforms.Resample`` with ``config.ResamplerSettings``. The length
    is exactly ceil(24000 · num_samples / rate); torchaudio rounds that figure to float32 first, and so comes
    out a sample shorter now and then.

    Args:
        waveform: Mono float32 samples, (num_samples,).
        sample_rate_hz: Their rate.

    Returns:
        Float32 samples; the waveform itself where it has the rate already.
    """
    if sample_rate_hz == SAMPLE_RATE_HZ or waveform.size == 0:
        return waveform
    common = math.gcd(sample_rate_hz, SAMPLE_RATE_HZ)
    source, target = sample_rate_hz // common, SAMPLE_RATE_HZ // common
    if 4 * target * (2 * _filter_width(source, target) + source) > _MAX_KERNEL_BYTES:
        return _resample_without_kernel(waveform, source, target)
    return _resample_with_kernel(waveform, source, target)


def _filter_width(source: int, target: int) -> int:
    """Return how many source samples the filter reaches to either side."""
    return math.ceil(_SETTINGS.lowpass_filter_width * source / (min(source, target) * _SETTINGS.rolloff))


@functools.lru_cache(maxsize=8)
def _load_kernel(source: int, target: int) -> torch.Tensor:
    """Return torchaudio's filters, (target, 1, 2 · width + source): one for each phase."""
    resampler = torchaudio.transforms.Resample(
        source,
        target,
        resampling_method=_SETTINGS.method,
        lowpass_filter_width=_SETTINGS.lowpass_filter_width,
        rolloff=_SETTINGS.rolloff,
    )
    kernel: torch.Tensor = resampler.kernel
    return kernel


def _resample_with_kernel(waveform: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    kernel, width = _load_kernel(source, target), _filter_width(source, target)
    resampled = np.empty(-(-waveform.size * target // source), np.float32)
    num_strides = -(-waveform.size // source)  # each takes `source` samples and gives `target`
    strides_per_piece = max(1, _PIECE_SAMPLES // source)
    for stride in range(0, num_strides, strides_per_piece):
        begin = stride * source - width
        end = min(stride + strides_per_piece, num_strides) * source + width
        piece = torch.from_numpy(waveform[max(begin, 0) : end])
        before = max(-begin, 0)
        padded = F.pad(piece, (before, end - begin - before - piece.numel()))
        filtered = F.conv1d(padded[None, None], kernel, stride=source)[0].T.reshape(-1)
        wanted = resampled[stride * target :][: filtered.numel()]
        wanted[:] = filtered[: wanted.size].numpy()
    return resampled


def _resample_without_kernel(waveform: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    """Evaluate the same Hann-windowed sinc for each output sample: 0.2 s of one core for a 30 s clip.

    Source: J. O. Smith, "Digital Audio Resampling Home Page". Within 1e-6 of what torchaudio gives in double
    precision; its single-precision kernels are off by up to 1e-4 at such rates.
    """
    width, reach = _filter_width(source, target), _SETTINGS.lowpass_filter_width
    cutoff = min(source, target) * _SETTINGS.rolloff / source  # zero crossings per source sample
    taps = torch.arange(-width, width + 1)
    windows = F.pad(torch.from_numpy(waveform), (width, width)).unfold(0, taps.numel(), 1)
    resampled = np.empty(-(-waveform.size * target // source), np.float32)
    for start in range(0, resampled.size, _PIECE_SAMPLES // 8):
        wanted = resampled[start:][: _PIECE_SAMPLES // 8]
        position = torch.arange(start, start + wanted.size) * source  # in source samples, times `target`
        phase = (position % target).double()[:, None] / target
        offset = ((taps - phase) * cutoff).clamp(-reach, reach).float()
        filters = torch.sinc(offset) * torch.cos(offset * (math.pi / 2 / reach)).square() * cutoff
        wanted[:] = (windows[position // target] * filters).sum(1).numpy()
    return resampled
