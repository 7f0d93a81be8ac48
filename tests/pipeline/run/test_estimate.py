"""Estimates: the arithmetic by hand, and what a run here then really comes to."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from musicfm_model.config import ModelConfig
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.location import StoreLocation
from pipeline.run.estimate import (
    CLOSING_S,
    GPU_SHARE,
    LEDGER_ROW_BYTES,
    Cluster,
    Prices,
    RunEstimate,
    describe_estimate,
    estimate_run,
    transfer_trial,
)
from pipeline.run.gpus import GPU_TFLOPS
from pipeline.run.preview import preview_catalog
from pipeline.run.run import embed_catalog
from pipeline.run.trial import Trial
from pipeline.schema import PLAN
from tests.corpus import encode_clip, load_music

SECONDS = (3.0, 5.0, 8.0, 12.0)

TRIAL = Trial(
    num_files=10,
    num_failed=1,
    audio_s_per_file=20.0,
    bytes_in_per_file=1000.0,
    decode_core_s=0.01,
    model_s=3.0,
    window_s=30.0,
    model_core_s=0.2,
    write_core_s=0.02,
    bytes_out={"8hz": 100.0, "50hz": 300.0, "global": 7.0},
    device="cpu",
    machine="a processor",
)


def plan_rows(num_tracks: int, size_bytes: int | None) -> pa.Table:
    row = {"uri": "/x", "size_bytes": size_bytes, "wanted": ["r/8hz"], "held": [], "stored": []}
    return pa.Table.from_pylist([{**row, "track_id": str(i)} for i in range(num_tracks)], schema=PLAN)


def test_figures_are_the_trial_times_the_audio() -> None:
    # 100 files of 500 bytes: half as long as those that were tried; nine tenths of them can be embedded.
    found = estimate_run(plan_rows(100, 500), TRIAL, Cluster(4.0, 1, 10.0), 64, 2)
    audio_s = 90 * 10.0
    assert found.audio_s == pytest.approx(audio_s)
    assert found.bytes_read == 50_000
    vectors, ledger = 90 * 2 * 1.8 * 64, 90 * 2 * LEDGER_ROW_BYTES
    assert found.bytes_written == pytest.approx(audio_s * 400 + vectors + ledger, rel=1e-3)
    assert found.bytes_by_resolution == {"8hz": 90_000, "50hz": 270_000, "global": round(vectors)}
    assert found.model_s == pytest.approx(audio_s * 0.1)
    assert found.core_hours == pytest.approx(audio_s * 0.23 / 3600)
    assert found.gpu_hours == 0.0
    assert found.bottleneck == "model"  # 10 s of audio a second; four cores would get through 17
    assert found.seconds == pytest.approx(10.0 + audio_s * 0.1 + CLOSING_S)
    assert found.cost is None


def test_prices_are_of_the_wall_time_and_all_machines() -> None:
    trial = replace(TRIAL, device="cuda", model_core_s=0.01)
    prices = Prices(gpu_hour=3.0, core_hour=0.1, gb_month=0.02)
    found = estimate_run(plan_rows(100, 1000), trial, Cluster(16.0, 2, 0.0), 64, 1, prices)
    assert found.gpu_hours == pytest.approx(found.model_s / 3600)
    assert found.cost == pytest.approx(found.seconds / 3600 * (2 * 3.0 + 16 * 0.1))
    assert found.storage_cost_per_month == pytest.approx(found.bytes_written / 1e9 * 0.02)


def test_files_that_cannot_be_decoded_promise_nothing() -> None:
    found = estimate_run(plan_rows(3, 500), Trial(3, 3), Cluster(2.0, 1, 1.0), 64)
    assert found == RunEstimate(num_tracks=3, num_tried=3, num_failed=3, bytes_read=1500)
    assert len(describe_estimate(found)) == 1


def test_sizes_that_no_listing_told_count_as_the_mean() -> None:
    unknown = plan_rows(10, None)
    assert estimate_run(unknown, TRIAL, Cluster(2.0, 1, 0.0), 8).bytes_read == 0
    mixed = pa.concat_tables([plan_rows(10, 400), unknown])
    assert estimate_run(mixed, TRIAL, Cluster(2.0, 1, 0.0), 8).bytes_read == 8000


def test_a_gpu_that_is_not_here_is_reckoned_from_its_rate() -> None:
    names = ["50hz", "16hz", "8hz"]
    shared = transfer_trial(TRIAL, "h100", ModelConfig(), 7, "shared", "bfloat16", names)
    assert shared.model_s == pytest.approx(1.09 / (GPU_TFLOPS["h100"][2] * GPU_SHARE), rel=0.01)
    assert (shared.device, shared.machine, shared.decode_core_s) == ("cuda", "H100", TRIAL.decode_core_s)
    task = transfer_trial(TRIAL, "h100", ModelConfig(), 7, "task", "bfloat16", names)
    assert task.model_s == pytest.approx(3 * shared.model_s)
    slow = transfer_trial(TRIAL, "t4", ModelConfig(), 7, "shared", "float32", names)
    assert slow.model_s > 40 * shared.model_s


def test_people_are_told_every_figure() -> None:
    found = estimate_run(plan_rows(100, 1000), TRIAL, Cluster(4.0, 1, 10.0), 64, 1, Prices(core_hour=1.0))
    said = "\n".join(describe_estimate(found))
    for words in ("hours", "MB (50hz", "core-hours", "the bottleneck is model", "10 s to start", "cost"):
        assert words in said
    assert describe_estimate(RunEstimate()) == ["nothing to do: no track is new or changed"]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    music = load_music(seconds=4 * sum(SECONDS), sample_rate=24_000)
    for number in range(16):
        # Each its own: tracks that repeat each other would compress as no catalog does.
        clip, music = np.split(music, [int(SECONDS[number % 4] * 24_000)])
        encode_clip(folder / f"{number:02d}.flac", clip, 24_000)
    return folder


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_plan_is_near_what_the_run_then_comes_to(audio: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = RunSettings(StoreLocation(str(tmp_path / "store")), str(tiny_checkpoint), layers=(2,))
    catalog = load_catalog(str(audio))
    found = preview_catalog(catalog, settings).estimate
    assert found is not None
    assert not (tmp_path / "store").exists()
    report = embed_catalog(catalog, settings)
    assert (found.num_tracks, found.num_tried, found.num_failed) == (16, 16, 0)
    assert found.bytes_read == sum(path.stat().st_size for path in audio.iterdir())
    assert found.audio_s == pytest.approx(4 * sum(SECONDS), rel=1e-3)
    assert found.bytes_written == pytest.approx(report.bytes_written, rel=0.1)
    assert set(found.bytes_by_resolution) == set(settings.resolutions)
    assert found.seconds > found.start_s > 0
    again = preview_catalog(catalog, settings).estimate
    assert again is not None
    assert asdict(again) == asdict(RunEstimate())
