"""Beats by a dynamic Bayesian network over tempo and place in the bar: Böck, Krebs and Widmer (ISMIR 2016).

The network is ``madmom-infer``'s (BSD), which needs no trained weights: it is given a head's activations. What it
takes, some 35 ms of a processor for a second of audio, is why it is asked for and not a matter of course.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from pipeline.errors import UsageError
from pipeline.probing.decoding import Prediction

Floats = npt.NDArray[np.float64]

BEATS_PER_BAR = (3, 4)
DBN_RATE_HZ = (
    50.0  # of what it is given: at the model's own 25 Hz a beat of 12 or 13 frames is taken for half of it
)
LEAST = 1e-5  # its densities are logarithms
DBN = (
    f"madmom-infer's DBNDownBeatTrackingProcessor, {' or '.join(map(str, BEATS_PER_BAR))} beats a bar, at "
    f"{DBN_RATE_HZ:g} Hz"
)
"""How a result names this decoder."""


def load_tracker() -> Any:
    """Return madmom-infer's network.

    Raises:
        UsageError: madmom-infer is not installed.
    """
    try:
        from madmom_infer.features.downbeats import DBNDownBeatTrackingProcessor
    except ImportError as error:
        raise UsageError(
            "expected madmom-infer for beats by a DBN, found none: pip install 'music-feature-store[dbn]'"
        ) from error
    return DBNDownBeatTrackingProcessor


def track_outputs(outputs: Sequence[npt.NDArray[np.float32]], frame_rate_hz: float) -> list[Prediction]:
    """Return the likeliest beats of tracks from what a head for beats puts out.

    Args:
        outputs: Of each track, before any sigmoid: float32 of shape (num_frames, 2).
        frame_rate_hz: Of the frames.

    Raises:
        UsageError: madmom-infer is not installed.
    """
    return [track_beats(expit(values.astype(np.float64)), frame_rate_hz) for values in outputs]


def track_beats(activations: Floats, frame_rate_hz: float) -> Prediction:
    """Return the likeliest beats of one track.

    Args:
        activations: Of beats (downbeats among them) and of downbeats, probabilities, shape (num_frames, 2).
        frame_rate_hz: Of the frames.

    Raises:
        UsageError: madmom-infer is not installed.
    """
    track = load_tracker()(beats_per_bar=list(BEATS_PER_BAR), fps=DBN_RATE_HZ)
    times_s = (np.arange(len(activations)) + 0.5) / frame_rate_hz
    num_steps = round(len(activations) / frame_rate_hz * DBN_RATE_HZ)
    steps_s = (np.arange(num_steps) + 0.5) / DBN_RATE_HZ
    beat, downbeat = (np.interp(steps_s, times_s, column) for column in activations.T)
    # It wants beats that are no downbeats, and both together below 1.
    downbeat = np.clip(downbeat, LEAST, 1 - 2 * LEAST)
    plain = np.clip(beat - downbeat, LEAST, 1 - LEAST - downbeat)
    tracked = track(np.stack([plain, downbeat], axis=1))
    steps = np.round(tracked[:, 0] * DBN_RATE_HZ).astype(np.int64)
    return Prediction(
        beats=tuple(
            (round(float(steps_s[step]), 4), int(place == 1))
            for step, place in zip(steps, tracked[:, 1], strict=True)
        ),
        beat_scores=tuple(float(plain[step] + downbeat[step]) for step in steps),
    )
