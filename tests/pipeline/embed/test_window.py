import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RESOLUTIONS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from pipeline.embed.window import count_model_frames, plan_windows

LENGTHS_S = sorted({30.0, *(resolution.task_window_s for resolution in RESOLUTIONS.values())})


def count_frames_through_convolutions(num_samples: int) -> int:
    """The published front end's own arithmetic, on a signal of one band."""
    mel = torch.zeros(1, 1, num_samples // 240)
    for _ in range(2):
        mel = torch.nn.functional.conv1d(mel, torch.zeros(1, 1, 3), stride=2, padding=1)
    return mel.shape[-1]


@pytest.mark.parametrize("num_samples", [1025, 1200, 1439, 24_000, 128_880, 720_000, 698_400])
def test_frame_count_is_that_of_two_strided_convolutions(num_samples: int) -> None:
    assert count_model_frames(num_samples) == count_frames_through_convolutions(num_samples)


@given(num_samples=st.integers(1025, 100 * SAMPLE_RATE_HZ), window_s=st.sampled_from(LENGTHS_S))
def test_kept_frames_tile_the_track_without_gap_or_overlap(num_samples: int, window_s: float) -> None:
    windows = plan_windows(num_samples, window_s)
    next_frame = 0
    for window in windows:
        assert window.start_sample % SAMPLES_PER_FRAME == 0
        assert window.start_sample + window.num_samples <= num_samples
        assert window.start_sample // SAMPLES_PER_FRAME + window.first_kept_frame == next_frame
        assert window.num_kept_frames > 0
        assert window.first_kept_frame + window.num_kept_frames <= count_model_frames(window.num_samples)
        next_frame += window.num_kept_frames
    left_out = num_samples - next_frame * SAMPLES_PER_FRAME
    assert left_out < SAMPLES_PER_FRAME


@given(num_samples=st.integers(1025, 100 * SAMPLE_RATE_HZ), window_s=st.sampled_from(LENGTHS_S))
def test_only_a_short_track_has_a_window_that_is_not_full(num_samples: int, window_s: float) -> None:
    windows = plan_windows(num_samples, window_s)
    full = round(window_s * SAMPLE_RATE_HZ)
    assert {window.num_samples for window in windows} == {min(full, num_samples)}
    fewest = -(-(num_samples - SAMPLES_PER_FRAME) // full)
    assert len(windows) <= fewest + 1


def test_last_window_is_moved_back_to_the_end_of_the_track() -> None:
    first, last = plan_windows(41 * SAMPLE_RATE_HZ, 30.0)
    assert (first.start_sample, first.num_kept_frames) == (0, 750)
    assert last.start_sample == 11 * SAMPLE_RATE_HZ
    assert (last.first_kept_frame, last.num_kept_frames) == (475, 275)


def test_a_window_of_29_1_s_that_another_follows_keeps_whole_frames_only() -> None:
    windows = plan_windows(3 * 698_400, 29.1)
    assert [window.num_kept_frames for window in windows[:-1]] == [727] * (len(windows) - 1)
    assert windows[1].start_sample == 727 * SAMPLES_PER_FRAME


def test_a_remainder_under_one_frame_gets_no_window_of_its_own() -> None:
    assert len(plan_windows(720_000 + 959, 30.0)) == 1
    assert len(plan_windows(720_000 + 960, 30.0)) == 2
