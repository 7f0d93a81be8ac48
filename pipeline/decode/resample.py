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
import torchaudio
from numpy.typing import NDArray

from pipeline.config import SAMPLE_RATE_HZ, ResamplerSettings

_SETTINGS = ResamplerSettings()

_PIECE_SAMPLES = 2**18  # at once: quicker than the whole signal, and it takes less memory

# Results that are computed together. They need but a short stretch of the source, so that few of their filters'
# taps are zeros; fewer than 16 at once leave a processor's vectors empty.
_BAND_PHASES = 32
_VECTOR_PHASES = 16
_LEAST_STRIDES = 4  # a single one would be multiplied as a vector, and its sums rounded in another order

# torchaudio keeps one filter for each phase of the two rates: 55 KB for 44,100 Hz, but 4 GB for 44,101 Hz.
_MAX_KERNEL_BYTES = 16 * 2**20


class Resampler:
    """Blocks of samples to one waveform at 24 kHz, as they come.

    The source is never there whole, nor the result twice: an hour of 44.1 kHz would be 0.6 GB beside the 0.35 of
    its waveform. The values are those of ``torchaudio.transforms.Resample`` with ``config.ResamplerSettings``,
    and the same bits however the samples are cut into blocks. The length is exactly ceil(24000 · num_samples /
    rate); torchaudio rounds that figure to float32 first, and so comes out a sample shorter now and then.

    Args:
        sample_rate_hz: Rate of the samples.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        common = math.gcd(sample_rate_hz, SAMPLE_RATE_HZ)
        self._source, self._target = sample_rate_hz // common, SAMPLE_RATE_HZ // common
        self._width = _filter_width(self._source, self._target)
        kernel_bytes = 4 * self._target * (2 * self._width + self._source)
        self._has_kernel = self._source != self._target and kernel_bytes <= _MAX_KERNEL_BYTES
        if self._has_kernel:
            self._bands = _load_bands(self._source, self._target)
            repeats = _count_repeats(self._target)
            self._source, self._target = self._source * repeats, self._target * repeats
        # Of the result: whole strides, which take `source` samples and give `target`.
        self._piece_length = max(1, _PIECE_SAMPLES // self._source) * self._target
        self._least_samples = _LEAST_STRIDES * self._source + 2 * self._width if self._has_kernel else 0
        if not self._has_kernel:
            self._piece_length = _PIECE_SAMPLES // 8
        self._num_samples = 0
        self._waiting = bytearray()  # what is still needed; bytes grow and shrink in place, arrays are copied
        self._first_waiting = 0  # which sample the first of them is
        self._resampled = bytearray()

    def add(self, block: NDArray[np.float32]) -> None:
        """Take the next samples: mono float32, (num_samples,)."""
        block = np.ascontiguousarray(block, np.float32)
        self._num_samples += block.size
        if self._source == self._target:
            self._resampled += block.data
            return
        self._waiting += block.data
        start = len(self._resampled) // 4
        while self._find_reach(start, start + self._piece_length)[1] <= self._num_samples:
            self._add_piece(start, start + self._piece_length)
            start += self._piece_length

    def finish(self) -> NDArray[np.float32]:
        """Return the waveform: float32, (num_samples,); nothing can be added any more."""
        length = -(-self._num_samples * self._target // self._source)
        for start in range(len(self._resampled) // 4, length, self._piece_length):
            self._add_piece(start, min(start + self._piece_length, length))
        return np.frombuffer(self._resampled, np.float32, length)

    def _find_reach(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first sample that some of the result depends on, and the one after the last."""
        if self._has_kernel:
            num_strides = -(-(stop - start) // self._target)
            first = start // self._target * self._source
            return first - self._width, first + num_strides * self._source + self._width
        first, last = (place * self._source // self._target for place in (start, stop - 1))
        return first - self._width, last + self._width + 1

    def _add_piece(self, start: int, stop: int) -> None:
        """Compute some of the result, which goes on at ``start``, and let go of what nothing later needs."""
        first, end = self._find_reach(start, stop)
        if first > self._first_waiting:
            del self._waiting[: 4 * (first - self._first_waiting)]
            self._first_waiting = first
        num_samples = min(end, self._num_samples) - self._first_waiting
        before = self._first_waiting - first
        padded = torch.zeros(max(end - first, self._least_samples))  # silence before and after all
        padded.numpy()[before : before + num_samples] = np.frombuffer(self._waiting, np.float32, num_samples)
        if self._has_kernel:
            filtered = _filter_in_bands(padded, self._bands, self._source, self._target, 2 * self._width)
        else:
            filtered = _filter_without_kernel(padded, start, stop, self._source, self._target)
        filtered = filtered[: stop - start]
        self._resampled += np.ascontiguousarray(filtered).data


def _filter_width(source: int, target: int) -> int:
    """Return how many source samples the filter reaches to either side."""
    return math.ceil(_SETTINGS.lowpass_filter_width * source / (min(source, target) * _SETTINGS.rolloff))


def _count_repeats(target: int) -> int:
    """Return how many strides are computed as one, so that there are results enough to fill a band."""
    return -(-_BAND_PHASES // target)


@functools.lru_cache(maxsize=8)
def _load_bands(source: int, target: int) -> list[tuple[int, torch.Tensor]]:
    """Return torchaudio's filters by bands of neighbouring results, without the zeros to both sides.

    torchaudio convolves with all filters over all samples of a stride: at 22,050 Hz 161 taps for each of 160
    results, 13 of them not zero. A band of 32 of these results needs 43.

    Returns:
        Of each band the first sample that it needs, and its filters, (num_taps, num_phases); their number is a
        multiple of 16, the last of all bands filled up with zeros.
    """
    resampler = torchaudio.transforms.Resample(
        source,
        target,
        resampling_method=_SETTINGS.method,
        lowpass_filter_width=_SETTINGS.lowpass_filter_width,
        rolloff=_SETTINGS.rolloff,
    )
    kernel: torch.Tensor = resampler.kernel[:, 0]
    num_phases = target * _count_repeats(target)
    bands = []
    for start in range(0, num_phases, _BAND_PHASES):
        phases = range(start, min(start + _BAND_PHASES, num_phases))
        taps = [phase // target * source + kernel[phase % target].nonzero()[:, 0] for phase in phases]
        first, end = min(int(tap[0]) for tap in taps), max(int(tap[-1]) + 1 for tap in taps)
        filters = torch.zeros(end - first, -(-len(phases) // _VECTOR_PHASES) * _VECTOR_PHASES)
        for column, (phase, tap) in enumerate(zip(phases, taps, strict=True)):
            filters[tap - first, column] = kernel[phase % target, tap - phase // target * source]
        bands.append((first, filters))
    return bands


def _filter_in_bands(
    samples: torch.Tensor, bands: list[tuple[int, torch.Tensor]], source: int, target: int, num_margins: int
) -> NDArray[np.float32]:
    """Filter whole strides: ``source`` samples each, with the filter's width on both sides of all of them."""
    num_strides = (samples.numel() - num_margins) // source
    filtered = torch.empty(num_strides, sum(filters.shape[1] for _, filters in bands))
    place = 0
    for first, filters in bands:
        num_taps, num_phases = filters.shape
        windows = samples.as_strided((num_strides, num_taps), (source, 1), first)
        torch.mm(windows, filters, out=filtered[:, place : place + num_phases])
        place += num_phases
    result: NDArray[np.float32] = filtered[:, :target].reshape(-1).numpy()
    return result


def _filter_without_kernel(
    samples: torch.Tensor, start: int, stop: int, source: int, target: int
) -> NDArray[np.float32]:
    """Evaluate the same Hann-windowed sinc for each output sample: 0.2 s of one core for a 30 s clip.

    Source: J. O. Smith, "Digital Audio Resampling Home Page". Within 1e-6 of what torchaudio gives in double
    precision; its single-precision kernels are off by up to 1e-4 at such rates.

    Args:
        samples: float32, those within the filter's width of the result's place in time.
        start: First sample of the result.
        stop: The sample after its last.
        source: Samples of the source for every ``target`` of the result.
        target: See ``source``.
    """
    width, reach = _filter_width(source, target), _SETTINGS.lowpass_filter_width
    cutoff = min(source, target) * _SETTINGS.rolloff / source  # zero crossings per source sample
    taps = torch.arange(-width, width + 1)
    windows = samples.unfold(0, taps.numel(), 1)
    position = torch.arange(start, stop) * source  # in source samples, times `target`
    phase = (position % target).double()[:, None] / target
    offset = ((taps - phase) * cutoff).clamp(-reach, reach).float()
    filters = torch.sinc(offset) * torch.cos(offset * (math.pi / 2 / reach)).square() * cutoff
    result: NDArray[np.float32] = (windows[position // target - start * source // target] * filters).sum(1).numpy()
    return result
