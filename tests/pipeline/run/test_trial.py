"""Trials against what the stages give by themselves, and pools against arithmetic done by hand."""

from pathlib import Path

import numpy as np
import pytest

from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.embed.embedder import Embedder, choose_embedder_settings
from pipeline.location import StoreLocation
from pipeline.run.prepare import build_recipes, plan_run
from pipeline.run.trial import Trial, choose_files, run_trial, size_pools
from tests.corpus import encode_clip, load_music

# One model on a GPU takes 10 ms for a window of 30 s; decoding 15 ms and writing 30 ms of a core.
GPU = Trial(
    num_files=50,
    num_failed=0,
    audio_s_per_file=30.0,
    decode_core_s=0.015 / 30,
    model_s=0.010,
    window_s=30.0,
    model_core_s=0.0,
    write_core_s=0.030 / 30,
    device="cuda",
)


def trial(folder: Path, checkpoint: Path, num_files: int = 50) -> Trial:
    settings = RunSettings(StoreLocation(str(folder / "store")), str(checkpoint), layers=(2,))
    model = load_checkpoint(settings.checkpoint)
    recipes = build_recipes(model, settings)
    plan = plan_run(load_catalog(str(folder / "audio")), settings, recipes, exists=False)
    embedder = Embedder(model, choose_embedder_settings(recipes, settings))
    return run_trial(choose_files(plan.to_process, num_files), embedder, recipes, settings)


def test_a_trial_tells_lengths_sizes_and_windows_of_what_it_took(tmp_path: Path, tiny_checkpoint: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    music = load_music(seconds=70.0, sample_rate=24_000)
    encode_clip(audio / "long.flac", music[: 50 * 24_000], 24_000)  # two windows
    encode_clip(audio / "short.flac", music[50 * 24_000 :], 24_000)  # one
    (audio / "broken.flac").write_bytes(b"no music")
    found = trial(tmp_path, tiny_checkpoint)
    assert (found.num_files, found.num_failed) == (3, 1)
    assert found.audio_s_per_file == pytest.approx(35.0)
    assert found.window_s == pytest.approx(70.0 / 3)
    assert found.bytes_in_per_file == pytest.approx(np.mean([path.stat().st_size for path in audio.iterdir()]))
    assert set(found.bytes_out) == {"50hz", "16hz", "8hz", "0.5hz", "global"}
    assert min(found.decode_core_s, found.model_s, found.write_core_s) > 0
    assert not (tmp_path / "store").exists()


def test_a_trial_of_files_that_all_fail_has_no_figures(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "audio").mkdir()
    for number in range(3):
        (tmp_path / "audio" / f"{number}.mp3").write_bytes(b"no music")
    found = trial(tmp_path, tiny_checkpoint, num_files=2)
    assert (found.num_files, found.num_failed, found.model_s) == (2, 2, 0.0)
    with pytest.raises(ValueError, match="nothing to size"):
        size_pools(found, 4)


@pytest.mark.parametrize(
    ("num_cpus", "num_actors", "bottleneck", "windows_per_s", "busy"),
    [
        (16, 1, "model", 100.0, 1.0),
        (2, 1, "write", 2 / 0.045, 2 / 4.5),  # 45 core-ms a window: two cores feed 44 windows a second
        (4.5, 1, "model", 100.0, 1.0),
        (9, 4, "write", 9 / 0.045, 0.5),
    ],
)
def test_what_has_the_least_throughput_is_the_bottleneck(
    num_cpus: float, num_actors: int, bottleneck: str, windows_per_s: float, busy: float
) -> None:
    advice = size_pools(GPU, num_cpus, num_actors)
    assert advice.bottleneck == bottleneck
    assert advice.audio_s_per_s == pytest.approx(30 * windows_per_s)
    assert advice.model_busy_share == pytest.approx(busy)
    assert advice.cores_per_actor == pytest.approx(4.5)
    assert "4.5 CPU cores" in advice.message


def test_a_model_on_the_cpu_counts_the_cores_it_computes_on() -> None:
    slow = Trial(50, 0, 30.0, 0.0, 0.02 / 30, 4.0, 30.0, 8.0 / 30, 0.03 / 30, device="cpu")
    advice = size_pools(slow, num_cpus=2)
    assert advice.bottleneck == "model"
    assert advice.cores_per_actor == pytest.approx(8.05 / 4.0)
