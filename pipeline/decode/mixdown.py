"""Blocks of decoded samples to one mono signal at 24 kHz, and what only the channels can tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.resample import Resampler
from pipeline.errors import Reason, Stage, TrackError

CLIPPED_AMPLITUDE = 0.999
"""Samples from here on count as clipped: 16-bit full scale is 0.99997, and limiters stop just below it."""

BLOCK_VALUES = 2**16
"""Decoded at once, over all channels: 256 KiB stay in a core's cache."""

_RATES_HZ = range(1_000, 768_001)  # below is no music, above no converter: the header is damaged


class Mixdown:
    """The mean of the channels, resampled block by block, and what only the channels can tell.

    Args:
        codec: Name of the codec.
        sample_rate_hz: Rate of the source.
        stated_s: Duration that the header states, if it does.
        max_duration_s: Limit on the stated duration and on the actual one.

    Raises:
        TrackError: The rate is absurd, or the stated duration is over the limit.
    """

    def __init__(self, codec: str, sample_rate_hz: int, stated_s: float | None, max_duration_s: float) -> None:
        if sample_rate_hz not in _RATES_HZ:
            expected = f"expected a sample rate of {_RATES_HZ.start} to {_RATES_HZ.stop - 1} Hz"
            raise TrackError(Stage.DECODE, Reason.UNREADABLE, f"{expected}, found {sample_rate_hz} Hz")
        self.codec = codec
        self.sample_rate_hz = sample_rate_hz
        self.num_channels = 0
        self.num_samples = 0
        self.num_values = 0
        self.num_clipped = 0
        self.peak = 0.0
        self._max_duration_s = max_duration_s
        self._resampler: Resampler | None = None  # HE-AAC tells its rate in its first frame
        self._require_short_enough(stated_s or 0.0)

    @property
    def duration_s(self) -> float:
        """What was decoded so far, in seconds."""
        return self.num_samples / self.sample_rate_hz

    @property
    def waveform(self) -> NDArray[np.float32]:
        """Mono float32 samples at 24 kHz, (num_samples,), once all blocks are added."""
        return self._resampler.finish() if self._resampler else np.empty(0, np.float32)

    def add(self, block: NDArray[np.float32]) -> None:
        """Take a block of samples, (num_samples, num_channels), full scale 1.

        Raises:
            TrackError: The duration is now over the limit.
        """
        self.num_samples += block.shape[0]
        self.num_channels = block.shape[1]
        self.num_values += block.size
        self._require_short_enough(self.duration_s)
        self.peak = float(np.max([self.peak, block.max(), -block.min()]))  # NaN where there is one
        if not self.peak < CLIPPED_AMPLITUDE:
            self.num_clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED_AMPLITUDE))
        self._resampler = self._resampler or Resampler(self.sample_rate_hz)
        with np.errstate(invalid="ignore", over="ignore"):
            # The mean, in a fraction of the time that `mean` takes over so short an axis.
            weights = np.full(self.num_channels, 1 / self.num_channels, np.float32)
            self._resampler.add(block[:, 0] if self.num_channels == 1 else block @ weights)

    def _require_short_enough(self, duration_s: float) -> None:
        if duration_s > self._max_duration_s:
            message = (
                f"expected at most {self._max_duration_s:g} s, found {duration_s:.0f} s or more; "
                "--max-duration-s sets the limit"
            )
            raise TrackError(Stage.DECODE, Reason.TOO_LONG, message)
