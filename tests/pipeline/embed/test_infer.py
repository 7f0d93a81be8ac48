import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from pipeline.config import RESOLUTIONS, SAMPLE_RATE_HZ
from pipeline.embed.infer import Inference
from pipeline.embed.track import Track, list_inputs
from pipeline.embed.window import plan_windows
from pipeline.errors import DeviceError
from tests.checkpoints import TINY, write_random_checkpoint

TASK_LENGTHS_S = sorted({resolution.task_window_s for resolution in RESOLUTIONS.values()})
LAYERS = {2, 3}
ROUNDING = 1e-6

Shape = tuple[int, ...]
Forward = Callable[..., object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return load_checkpoint(str(path))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> MusicFM25Hz:
    return MusicFM25Hz.for_inference(checkpoint)


def make_track(num_samples: int, seed: int = 0) -> Track:
    noise = np.random.default_rng(seed).normal(size=num_samples) * np.linspace(0.001, 0.5, num_samples)
    return Track(noise.astype(np.float32), [])


def infer(
    model: MusicFM25Hz, tracks: Sequence[Track], windows_s: Sequence[float], batch_size: int = 1
) -> list[tuple[Track, float]]:
    inputs = [item for track in tracks for item in list_inputs(track, dict.fromkeys(windows_s, LAYERS))]
    return [each for done in Inference(model, batch_size).run(inputs) for each in done]


@torch.inference_mode()
def run_windows_alone(model: MusicFM25Hz, track: Track, window_s: float, layer: int) -> Tensor:
    kept = []
    for window in plan_windows(len(track.waveform), window_s):
        excerpt = track.waveform[window.start_sample : window.start_sample + window.num_samples]
        found = model.get_latent(torch.from_numpy(excerpt)[None], layer)[0]
        kept.append(found[window.first_kept_frame : window.first_kept_frame + window.num_kept_frames])
    return torch.cat(kept)


def assert_as_alone(model: MusicFM25Hz, track: Track, windows_s: Sequence[float]) -> None:
    assert track.error is None
    assert track.frames.keys() == {(window_s, layer) for window_s in windows_s for layer in LAYERS}
    for (window_s, layer), found in track.frames.items():
        expected = run_windows_alone(model, track, window_s, layer)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2 * ROUNDING * expected.abs().max()


def count_calls(monkeypatch: pytest.MonkeyPatch, model: MusicFM25Hz) -> tuple[list[Shape], list[Shape]]:
    """Shapes of what goes through the convolutions and through the Conformer."""
    convolved: list[Shape] = []
    attended: list[Shape] = []
    for module, shapes in ((model.conv, convolved), (model.conformer, attended)):

        def count(
            x: Tensor, *rest: object, compute: Forward = module.forward, shapes: list[Shape] = shapes
        ) -> object:
            shapes.append(tuple(x.shape))
            return compute(x, *rest)

        monkeypatch.setattr(module, "forward", count)
    return convolved, attended


@given(
    num_samples=st.integers(1025, 50 * SAMPLE_RATE_HZ),
    windows_s=st.sets(st.sampled_from(TASK_LENGTHS_S), min_size=1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_frame_is_that_of_its_window_alone(
    model: MusicFM25Hz, num_samples: int, windows_s: set[float], seed: int
) -> None:
    track = make_track(num_samples, seed)
    done = infer(model, [track], sorted(windows_s))
    assert sorted(window_s for _, window_s in done) == sorted(windows_s)
    assert_as_alone(model, track, sorted(windows_s))


@pytest.mark.parametrize("seconds", [0.05, 5.999, 6.0, 6.05, 11.3, 29.1, 31.0171])
def test_tracks_of_all_lengths_under_the_task_policy(model: MusicFM25Hz, seconds: float) -> None:
    track = make_track(round(seconds * SAMPLE_RATE_HZ))
    infer(model, [track], TASK_LENGTHS_S)
    assert_as_alone(model, track, TASK_LENGTHS_S)


def test_the_last_window_moved_back_shares_with_the_one_before(
    model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = make_track(41 * SAMPLE_RATE_HZ)
    convolved, attended = count_calls(monkeypatch, model)
    infer(model, [track], [30.0])
    assert sum(batch * mel_frames for batch, _, mel_frames in convolved) < 4200
    assert sum(batch * frames for batch, frames, _ in attended) == 1500
    assert_as_alone(model, track, [30.0])


def test_a_track_of_one_window_goes_through_the_model_once(
    model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = make_track(30 * SAMPLE_RATE_HZ)
    convolved, attended = count_calls(monkeypatch, model)
    infer(model, [track], [30.0])
    assert convolved == [(1, 128, 3000)]
    assert attended == [(1, 750, TINY.embed_dim)]


def test_a_track_shorter_than_all_windows_goes_through_the_model_once(
    model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = make_track(5 * SAMPLE_RATE_HZ)
    convolved, attended = count_calls(monkeypatch, model)
    infer(model, [track], TASK_LENGTHS_S)
    assert convolved == [(1, 128, 500)]
    assert attended == [(1, 125, TINY.embed_dim)]
    assert_as_alone(model, track, TASK_LENGTHS_S)


def test_windows_that_do_not_overlap_are_not_shared(model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch) -> None:
    convolved, _ = count_calls(monkeypatch, model)
    infer(model, [make_track(60 * SAMPLE_RATE_HZ)], [30.0])
    assert convolved == [(1, 128, 3000)] * 2


def test_short_windows_fill_a_batch_of_the_same_total_length(
    model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = make_track(60 * SAMPLE_RATE_HZ)
    _, attended = count_calls(monkeypatch, model)
    infer(model, [track], [6.0, 12.0, 24.0], batch_size=1)
    assert [shape[:2] for shape in attended] == [(5, 150), (5, 150), (2, 300), (2, 300), (1, 300), *[(1, 600)] * 3]


def test_tracks_share_batches_and_give_what_they_give_alone(model: MusicFM25Hz) -> None:
    tracks = [make_track(round(s * SAMPLE_RATE_HZ), seed) for seed, s in enumerate((31, 5, 31, 13.7, 31))]
    infer(model, tracks, [6.0, 24.0], batch_size=3)
    for track in tracks:
        assert_as_alone(model, track, [6.0, 24.0])


@pytest.mark.parametrize("part", ["conv", "conformer"])
def test_a_track_that_the_device_refuses_fails_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    model = MusicFM25Hz.for_inference(checkpoint)
    tracks = [make_track(7 * SAMPLE_RATE_HZ, seed) for seed in range(3)]
    tracks[1].waveform[1000] = np.nan
    compute = getattr(model, part).forward

    def refuse(x: Tensor, *rest: object) -> object:
        if x.isnan().any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(x, *rest)

    monkeypatch.setattr(getattr(model, part), "forward", refuse)
    infer(model, tracks, [6.0], batch_size=2)
    assert [track.error and track.error.reason for track in tracks] == [None, "out_of_memory", None]


@pytest.mark.parametrize("part", ["conv", "conformer"])
def test_what_a_refused_batch_computed_is_free_when_its_halves_run(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    model = MusicFM25Hz.for_inference(checkpoint)
    compute = getattr(model, part).forward
    held: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []

    def run_out_of_memory(x: Tensor, *rest: object) -> object:
        assert not [each for each in held if each() is not None]
        activations = x * 2
        held.append(weakref.ref(activations))
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(activations / 2, *rest)

    monkeypatch.setattr(getattr(model, part), "forward", run_out_of_memory)
    tracks = [make_track(30 * SAMPLE_RATE_HZ, seed) for seed in range(4)]
    infer(model, tracks, [30.0], batch_size=4)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert [track.error for track in tracks] == [None] * 4


def test_a_device_that_refuses_everything_is_not_blamed_on_a_track(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MusicFM25Hz.for_inference(checkpoint)
    track = make_track(7 * SAMPLE_RATE_HZ)
    track.waveform[1000] = np.nan
    compute, broken = model.conv.forward, False

    def refuse(x: Tensor) -> object:
        if broken or x.isnan().any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return compute(x)

    monkeypatch.setattr(model.conv, "forward", refuse)
    infer(model, [track], [6.0])
    assert track.error is not None
    assert track.error.reason == "embed_failed"
    broken, track = True, make_track(7 * SAMPLE_RATE_HZ)
    with pytest.raises(DeviceError, match=r"does not run on cpu of .*: RuntimeError: CUDA error"):
        infer(model, [track], [6.0])
    assert track.error is None


def test_nothing_of_the_front_end_is_kept(model: MusicFM25Hz) -> None:
    track = make_track(8 * SAMPLE_RATE_HZ)
    infer(model, [track], [6.0])
    assert track.shared is None
    assert not track.edges


def test_a_size_that_fits_is_remembered_and_said_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = MusicFM25Hz.for_inference(checkpoint)
    compute, sizes = model.conv.forward, []

    def run_out_of_memory(x: Tensor) -> object:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(x)

    monkeypatch.setattr(model.conv, "forward", run_out_of_memory)
    inference = Inference(model, batch_size=4)
    for _ in range(3):
        tracks = [make_track(30 * SAMPLE_RATE_HZ, seed) for seed in range(4)]
        inputs = [item for track in tracks for item in list_inputs(track, {30.0: LAYERS})]
        assert list(inference.run(inputs))
    assert sizes == [4, 2, 2, 2, 2, 2, 2]
    assert [record.message for record in caplog.records] == [
        "cpu has no room for 4 windows of 3000 mel frames at once: from here on 2, or --batch-size 2"
    ]


def test_what_is_no_lack_of_memory_does_not_shrink_batches(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MusicFM25Hz.for_inference(checkpoint)
    compute, sizes = model.conv.forward, []

    def refuse(x: Tensor) -> object:
        sizes.append(len(x))
        if x.isnan().any():
            raise RuntimeError("CUDA error: an assertion on the device")
        return compute(x)

    monkeypatch.setattr(model.conv, "forward", refuse)
    tracks = [make_track(30 * SAMPLE_RATE_HZ, seed) for seed in range(8)]
    tracks[1].waveform[1000] = np.nan
    infer(model, tracks, [30.0], batch_size=4)
    assert [track.error and track.error.reason for track in tracks[:3]] == [None, "embed_failed", None]
    second = 1  # a check of the device
    assert sizes == [4, second, 1, 1, second, 1, 1, 4]


def test_clips_of_nearly_equal_lengths_share_a_batch(model: MusicFM25Hz, monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = [make_track(12 * SAMPLE_RATE_HZ + extra, extra) for extra in (0, 7, 239)]
    convolved, _ = count_calls(monkeypatch, model)
    infer(model, tracks, [30.0], batch_size=4)
    assert convolved == [(3, 128, 1200)]
    for track in tracks:
        assert_as_alone(model, track, [30.0])
