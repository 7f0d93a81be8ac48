"""Windows: which excerpts of a track the model sees, and which of their frames are kept.

A track no longer than the window is one window of its own length. A longer one gets full windows only: the
last is moved back, on the 40 ms frame grid, to end at the track's end, and gives the frames not yet covered.
No padding reaches the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import HOP_LENGTH, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Window:
    """One input of the model and the part of its output that is kept.

    Args:
        start_sample: Where it begins in the track, a multiple of 960 samples.
        num_samples: Its length.
        first_kept_frame: Index, within the window's own frames, of the first that is kept.
        num_kept_frames: How many frames from there on are kept.
    """

    start_sample: int
    num_samples: int
    first_kept_frame: int
    num_kept_frames: int


def count_model_frames(num_samples: int) -> int:
    """Return the number of 25 Hz frames that the model gives for an input of this many samples.

    The last STFT column is dropped, which leaves one mel frame per whole hop; two convolutions of stride 2 and
    padding 1 then halve the number twice, rounding up.
    """
    num_mel_frames = num_samples // HOP_LENGTH
    return -(-num_mel_frames // 4)


def plan_windows(num_samples: int, window_s: float) -> list[Window]:
    """Cover a track with windows.

    Args:
        num_samples: Length of the track at 24 kHz.
        window_s: Length of a window in seconds.

    Returns:
        Windows in time order; their kept frames, one after the other, are the track's frames. Under one
        frame (40 ms) at the end of a track longer than the window is left out.
    """
    window_samples = round(window_s * SAMPLE_RATE_HZ)
    if num_samples <= window_samples:
        return [Window(0, num_samples, 0, count_model_frames(num_samples))]
    # 29.1 s are 727.5 frames: a window that another one follows keeps the whole ones alone.
    hop_frames = window_samples // SAMPLES_PER_FRAME
    last_start_frame = (num_samples - window_samples) // SAMPLES_PER_FRAME
    windows = [
        Window(start_frame * SAMPLES_PER_FRAME, window_samples, 0, hop_frames)
        for start_frame in range(0, last_start_frame, hop_frames)
    ]
    covered_frames = len(windows) * hop_frames
    first_kept_frame = covered_frames - last_start_frame
    windows.append(
        Window(
            last_start_frame * SAMPLES_PER_FRAME,
            window_samples,
            first_kept_frame,
            count_model_frames(window_samples) - first_kept_frame,
        )
    )
    return windows
