"""Where a score's beats are in a recording of it: onsets of the notes held against onsets in the sound.

A score and its recording begin at different times, by some ten or hundred milliseconds, and a score may have been
played in late by a constant. Both are measured; whether the measurement is to be trusted is seen from how many
stretches of the piece give the same offset on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d
from scipy.signal import correlate, windows

from benchmarks.charts import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float64]

WINDOW, HOP = 512, 120  # 21 ms, every 5 ms
RATE_HZ = SAMPLE_RATE_HZ / HOP
CENTRE_S = WINDOW / 2 / SAMPLE_RATE_HZ
FRAMES_AT_ONCE = 20_000
MAX_OFFSET_S = 0.25
SURROUNDINGS_S = 0.5  # against whose mean a rise is held
STRETCH_S = 30.0
MIN_NOTES = 20  # of a stretch: fewer say nothing
MIN_STRETCHES = 4
TOLERANCE_S = 0.02  # between a stretch and the whole; a beat is found at ±70 ms
MIN_AGREEMENT = 0.75


@dataclass(frozen=True)
class Alignment:
    """How a recording lies to its score.

    Args:
        offset_s: Time in the recording less time in the score.
        agreement: Share of the stretches that give that offset on their own, to 20 ms, within half a beat of it,
            whether louder notes count for more or not. One in ten or fewer would by chance.
        num_stretches: How many have notes enough to say.
    """

    offset_s: float
    agreement: float
    num_stretches: int

    @property
    def is_sure(self) -> bool:
        """Whether it may be relied upon."""
        return self.num_stretches >= MIN_STRETCHES and self.agreement >= MIN_AGREEMENT


def measure_onsets(waveform: npt.NDArray[np.float32]) -> Floats:
    """Return how much begins at each time: the rise of the logarithmic spectrum, summed over its bins.

    Args:
        waveform: Mono samples at 24 kHz, longer than 21 ms.

    Returns:
        Shape (num_frames,), 200 a second; frame i is at ``i / RATE_HZ + CENTRE_S``.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    taper = windows.hann(WINDOW, sym=False).astype(np.float32)
    rises = [np.zeros(1)]
    for first in range(0, len(frames) - 1, FRAMES_AT_ONCE):
        spectrum = np.log1p(100 * np.abs(np.fft.rfft(frames[first : first + FRAMES_AT_ONCE + 1] * taper)))
        rises.append(np.maximum(np.diff(spectrum, axis=0), 0).sum(axis=1))
    return np.concatenate(rises)


def measure_lateness(onsets_s: Floats, beat_s: float) -> float:
    """Return by how much a score's notes are late (or, negative, early) on its own beats, as they were recorded.

    Args:
        onsets_s: Of the notes.
        beat_s: Length of a beat, the first of which is at 0.

    Returns:
        Seconds: the median over the notes around the most frequent lateness, at most an eighth of a beat.
    """
    late = np.mod(onsets_s / beat_s + 0.5, 1) - 0.5
    near = late[np.abs(late) <= 0.125]
    if not len(near):
        return 0.0
    counts, edges = np.histogram(near, bins=25, range=(-0.125, 0.125))
    top = int(counts.argmax())
    middle = (edges[top] + edges[top + 1]) / 2
    return float(np.median(near[np.abs(near - middle) <= 0.04])) * beat_s


def align(onsets_s: Floats, loudness: Floats, beat_s: float, waveform: npt.NDArray[np.float32]) -> Alignment:
    """Find where a score is in its recording.

    Args:
        onsets_s: Of the score's notes, in seconds.
        loudness: Of the same, any scale.
        beat_s: Length of a beat: an offset that is off by half of one is what there is to be mistaken for.
        waveform: The recording, mono at 24 kHz.
    """
    rises = measure_onsets(waveform)
    rises = rises - uniform_filter1d(rises, round(SURROUNDINGS_S * RATE_HZ))
    places = np.round((onsets_s - CENTRE_S) * RATE_HZ).astype(np.int64)
    is_within = (places >= 0) & (places < len(rises))
    sums = np.bincount(places[is_within], loudness[is_within], len(rises))
    reach = round((MAX_OFFSET_S + beat_s / 2) * RATE_HZ)
    # All onsets alike, and the louder the more: what fits by chance half a beat off seldom does so in both.
    alike, louder = (_correlate_stretches(rises, marks, reach) for marks in (np.sign(sums), np.sqrt(sums)))
    if not len(alike):
        return Alignment(0.0, 0.0, 0)
    bound, half = round(MAX_OFFSET_S * RATE_HZ), round(beat_s / 2 * RATE_HZ)
    lag = int(alike.mean(axis=0)[reach - bound : reach + bound + 1].argmax()) - bound
    near = slice(reach + lag - half, reach + lag + half + 1)
    own = np.stack([fit[:, near].argmax(axis=1) - half for fit in (alike, louder)])
    agreement = float((np.abs(own) <= TOLERANCE_S * RATE_HZ).all(axis=0).mean())
    return Alignment(lag / RATE_HZ, agreement, len(alike))


def _correlate_stretches(rises: Floats, marks: Floats, reach: int) -> Floats:
    """Return how well the notes of each stretch fit at each offset, shape (num_stretches, 2 · reach + 1)."""
    size = round(STRETCH_S * RATE_HZ)
    padded = np.pad(rises, reach)
    fits = [
        _correlate(padded[first : first + size + 2 * reach], marks[first : first + size])
        for first in range(0, len(marks) - size + 1, size)
        if np.count_nonzero(marks[first : first + size]) >= MIN_NOTES
    ]
    return np.array(fits)


def _correlate(rises: Floats, notes: Floats) -> Floats:
    """Return how well a stretch's notes fit at each offset; no stretch weighs more for being loud."""
    centred = rises - rises.mean()
    norm = max(1e-9, float(np.linalg.norm(centred) * np.linalg.norm(notes)))
    fit: Floats = correlate(centred, notes, "valid") / norm
    return fit
