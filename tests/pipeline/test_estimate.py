"""Estimates against what the same run then does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog import load_catalog
from pipeline.config import RunSettings
from pipeline.estimate import RunEstimate, estimate_run
from pipeline.run import build_recipes, embed_catalog, plan_run
from pipeline.schema import PLAN
from pipeline.store_location import StoreLocation
from tests.corpus import encode_clip, load_music

SECONDS = (3.0, 5.0, 8.0, 12.0)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    music = load_music(seconds=4 * sum(SECONDS), sample_rate=24_000)
    for number in range(16):
        # Each its own: tracks that repeat each other would compress as no catalog does.
        clip, music = np.split(music, [int(SECONDS[number % 4] * 24_000)])
        encode_clip(folder / f"{number:02d}.flac", clip, 24_000)
    return folder


def estimate(audio: Path, settings: RunSettings) -> RunEstimate:
    checkpoint = load_checkpoint(settings.checkpoint)
    recipes = build_recipes(checkpoint, settings)
    plan = plan_run(load_catalog(str(audio)), settings, recipes, exists=False)
    return estimate_run(plan.to_process, checkpoint, recipes, settings)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_audio_and_bytes_are_near_what_the_run_then_comes_to(
    audio: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = RunSettings(StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(2,))
    found = estimate(audio, settings)
    report = embed_catalog(load_catalog(str(audio)), settings)
    assert found.num_probed == 8
    assert found.num_failed == 0
    assert found.bytes_read == sum(path.stat().st_size for path in audio.iterdir())
    assert found.audio_s == pytest.approx(4 * sum(SECONDS), rel=0.25)
    assert found.bytes_written == pytest.approx(report.bytes_written, rel=0.35)
    assert found.model_s > 0
    assert found.decode_s > 0
    assert found.seconds >= found.model_s


def test_files_that_cannot_be_decoded_promise_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "noise.mp3").write_bytes(b"noise" * 100)
    settings = RunSettings(StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(2,))
    found = estimate(folder, settings)
    assert replace(found, decode_s=0.0) == RunEstimate(1, 1, bytes_read=500)


def test_nothing_to_do_needs_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = RunSettings(StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(2,))
    assert estimate_run(PLAN.empty_table(), load_checkpoint(settings.checkpoint), {}, settings) == RunEstimate()
