from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicfm_model import MusicFM25Hz, shared_frontend
from musicfm_model.checkpoint import Checkpoint
from musicfm_model.constants import SAMPLES_PER_TOKEN
from musicfm_model.shared_frontend import (
    REACH_MEL,
    REACH_SAMPLES,
    Crop,
    Excerpt,
    count_frames,
    encode_excerpts,
    is_sharing_cheaper,
    join_window,
    plan_stretches,
    plan_window,
)
from tests.musicfm_model.oracles import relative_error

ROUNDING = 1e-6
TASK_LENGTHS = [144_000, 288_000, 576_000, 698_400]  # 6, 12, 24 and 29.1 s

without_deadline = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def fast_model(tiny_checkpoint: Checkpoint) -> MusicFM25Hz:
    return MusicFM25Hz.for_inference(tiny_checkpoint)


def make_wav(num_samples: int, seed: int = 0) -> Tensor:
    noise = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.001, 1, num_samples)


def encode(model: MusicFM25Hz, wav: Tensor, excerpt: Excerpt) -> Tensor:
    start = excerpt.start_sample
    mel = model.compute_mel(wav[:, start : start + excerpt.crop.num_samples])
    return encode_excerpts(model, mel[..., excerpt.crop.first_mel : excerpt.crop.stop_mel], excerpt.crop)[0]


def encode_window(model: MusicFM25Hz, wav: Tensor, start: int, num_samples: int) -> Tensor:
    track = torch.cat([encode(model, wav, excerpt) for excerpt in plan_stretches(wav.shape[1])])
    assert len(track) == count_frames(wav.shape[1])
    parts = plan_window(wav.shape[1], start, num_samples)
    edges = {edge: encode(model, wav, edge) for edge in (parts.before, parts.after) if edge}
    return join_window(track, parts, edges)[None]


@st.composite
def windows_of_tracks(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length of a track, start and length of a window in it; often one that begins or ends with the track."""
    track = draw(st.integers(1025, 60_000))
    num_samples = draw(st.integers(1025, track))
    last = (track - num_samples) // SAMPLES_PER_TOKEN
    start = draw(st.sampled_from([0, last]) | st.integers(0, last)) * SAMPLES_PER_TOKEN
    reaches_end = draw(st.booleans())
    return track, start, track - start if reaches_end else num_samples


@given(window=windows_of_tracks(), stretch_frames=st.sampled_from([1, 7, 20, 750]), seed=st.integers(0, 99))
@without_deadline
@torch.inference_mode()
def test_a_window_of_the_tracks_frames_is_the_window_on_its_own(
    fast_model: MusicFM25Hz, window: tuple[int, int, int], stretch_frames: int, seed: int
) -> None:
    track_samples, start, num_samples = window
    wav = make_wav(track_samples, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_frontend, "STRETCH_FRAMES", stretch_frames)
        frames = encode_window(fast_model, wav, start, num_samples)
    expected = fast_model.get_hidden_states(wav[:, start : start + num_samples], [0, 3])
    found = fast_model.encode_frames(frames, [0, 3])
    for layer in expected:
        assert found[layer].shape == expected[layer].shape
        assert relative_error(found[layer], expected[layer]) <= 2 * ROUNDING


@pytest.mark.parametrize("num_samples", TASK_LENGTHS)
@pytest.mark.parametrize("track_samples", [751_234])
@torch.inference_mode()
def test_windows_of_the_task_policy_are_the_same_to_rounding(
    fast_model: MusicFM25Hz, num_samples: int, track_samples: int
) -> None:
    wav = make_wav(track_samples)
    last = (track_samples - num_samples) // SAMPLES_PER_TOKEN * SAMPLES_PER_TOKEN
    for start in (13 * SAMPLES_PER_TOKEN, last):
        expected = fast_model.get_hidden_states(wav[:, start : start + num_samples], [0])[0]
        error = relative_error(encode_window(fast_model, wav, start, num_samples), expected)
        print({(start, num_samples): error})
        assert error <= ROUNDING


@torch.inference_mode()
def test_the_reach_is_the_distance_at_which_a_sample_still_changes_a_frame(fast_model: MusicFM25Hz) -> None:
    frame, num_samples = 20, 40 * SAMPLES_PER_TOKEN
    centre = frame * SAMPLES_PER_TOKEN
    mel = torch.randn(1, 128, 4 * 40)
    changed_by_mel = [
        offset
        for offset in range(-16, 17)
        if not torch.equal(
            fast_model.conv(mel + 10 * (torch.arange(mel.shape[2]) == 4 * frame + offset))[0, frame],
            fast_model.conv(mel)[0, frame],
        )
    ]
    assert (min(changed_by_mel), max(changed_by_mel)) == (-REACH_MEL, REACH_MEL)
    wav = make_wav(num_samples)
    expected = fast_model.get_latent(wav, 0)[0, frame]
    for stop, start in ((centre - REACH_SAMPLES, None), (None, centre + REACH_SAMPLES)):
        other = wav.clone()
        other[:, slice(start, stop)] = 0.5
        assert torch.equal(fast_model.get_latent(other, 0)[0, frame], expected)
    for stop, start in ((centre - REACH_SAMPLES + 200, None), (None, centre + REACH_SAMPLES - 200)):
        other = wav.clone()
        other[:, slice(start, stop)] = 0.5
        assert not torch.equal(fast_model.get_latent(other, 0)[0, frame], expected)


def test_a_window_needs_no_more_than_its_edges() -> None:
    parts = plan_window(100 * 24_000, 24_000, 144_000)
    assert (parts.first_frame, parts.stop_frame) == (25 + 4, 25 + 147)
    assert parts.before == Excerpt(24_000, Crop(6064, 0, 22, 0, 4))
    assert parts.after == Excerpt(24_000 + (576 - 5) * 240, Crop(144_000 - 571 * 240, 5, 29, 3, 3))


def test_windows_of_several_lengths_share_the_edges_that_coincide() -> None:
    short, long = (plan_window(100 * 24_000, 288_000, num_samples) for num_samples in (144_000, 288_000))
    assert short.before == long.before
    ending = plan_window(100 * 24_000, 432_000, 144_000)
    assert ending.after == long.after


def test_a_window_that_is_the_track_has_no_edges() -> None:
    parts = plan_window(143_999, 0, 143_999)
    assert (parts.first_frame, parts.stop_frame, parts.before, parts.after) == (0, 150, None, None)
    assert [excerpt.crop.num_samples for excerpt in plan_stretches(143_999)] == [143_999]


def test_a_long_tracks_stretches_are_of_bounded_length() -> None:
    crops = [excerpt.crop for excerpt in plan_stretches(3600 * 24_000)]
    assert sum(crop.num_frames for crop in crops) == 90_000
    assert max(crop.num_samples for crop in crops) < 31 * 24_000


@pytest.mark.parametrize(
    ("track_s", "windows_s", "cheaper"),
    [
        (30, [(0, 30)], False),
        (60, [(0, 30), (30, 30)], False),
        (31, [(0, 30), (1, 30)], True),
        (30, [(0, 24), (6, 24), (0, 12), (12, 12), (18, 12)], True),
    ],
)
def test_sharing_is_chosen_where_windows_cover_the_track_more_than_once(
    track_s: int, windows_s: list[tuple[int, int]], cheaper: bool
) -> None:
    windows = [(start * 24_000, length * 24_000) for start, length in windows_s]
    assert is_sharing_cheaper(track_s * 24_000, windows) == cheaper


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
@torch.inference_mode()
def test_lower_precisions_share_as_well(tiny_checkpoint: Checkpoint, precision: str, tolerance: float) -> None:
    model = MusicFM25Hz.for_inference(tiny_checkpoint, precision=precision)
    wav = make_wav(100_000)
    expected = model.get_hidden_states(wav[:, 9600 : 9600 + 48_000], [0])[0]
    found = encode_window(model, wav, 9600, 48_000)
    assert found.dtype == expected.dtype
    assert relative_error(found.float(), expected.float()) <= tolerance


@torch.inference_mode()
def test_golden_latents_come_from_shared_frames(golden_checkpoint: Checkpoint, golden: dict[str, Tensor]) -> None:
    model = MusicFM25Hz.for_inference(golden_checkpoint)
    clip = golden["wav_5s37"]
    before, after = make_wav(10 * SAMPLES_PER_TOKEN), make_wav(5000)
    wav = torch.cat([before, clip, after], dim=1)
    frames = encode_window(model, wav, before.shape[1], clip.shape[1])
    assert relative_error(model.encode_frames(frames, [2])[2], golden["latent2_5s37"]) < 1e-5
