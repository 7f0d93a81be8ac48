"""The main job as a user runs it: a folder with every codec and every kind of bad file, one command."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable

from musicfm_model import MusicFM25Hz
from pipeline.decode.audio import decode_audio
from pipeline.store.read import FeatureStore
from tests.corpus import encode_clip, load_music, make_failures
from tests.processes import Run, run_command

ENDINGS = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "wma", "aiff")


@dataclass(frozen=True)
class Job:
    """The corpus, its store, and the first run over it."""

    audio: Path
    store: Path
    expected_failures: dict[str, str]
    arguments: tuple[str, ...]
    first: Run

    @property
    def num_tracks(self) -> int:
        return len(list(self.audio.iterdir()))


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Job:
    folder = tmp_path_factory.mktemp("job")
    audio, store = folder / "music", folder / "store"
    audio.mkdir()
    for index, ending in enumerate(ENDINGS):
        rate = (44_100, 48_000, 22_050, 32_000)[index % 4] if ending != "opus" else 48_000
        encode_clip(audio / f"clip_{ending}.{ending}", load_music(seconds=4.0, sample_rate=rate), rate)
    encode_clip(audio / "long [live] *.flac", load_music(seconds=33.0, sample_rate=24_000), 24_000)
    expected_failures = make_failures(audio)
    (audio / "cover.jpg").write_bytes(b"not audio, and no track")
    arguments = (
        "--audio",
        str(audio),
        "--store",
        str(store),
        "--checkpoint",
        str(tiny_checkpoint),
        "--layer",
        "2",
    )
    first = run_command("jobs/embed_catalog.py", *arguments)
    return Job(audio, store, expected_failures, arguments, first)


def test_the_books_close_and_every_failure_has_its_reason(job: Job) -> None:
    assert job.first.exit_code == 0, job.first.stderr
    report = job.first.report
    assert report["planned"] == job.num_tracks - 1  # the cover is no track
    assert report["embedded"] == len(ENDINGS) + 1
    assert report["unchanged"] == 0
    assert report["failed"] == len(job.expected_failures)
    assert report["failures"] == dict(Counter(job.expected_failures.values()))
    failures = DeltaTable(job.store / "failures").to_pyarrow_table().to_pylist()
    found = {Path(row["uri"]).name: row["error_type"] for row in failures}
    assert found == job.expected_failures
    assert all(row["stage"] == "decode" and row["error_message"] for row in failures)


def test_every_track_has_every_resolution_once(job: Job) -> None:
    checked = run_command("jobs/check_store.py", "--store", str(job.store), "--deep")
    assert checked.exit_code == 0, checked.stdout
    assert checked.report["ok"] is True
    num_rows = checked.report["num_frame_rows"]
    assert isinstance(num_rows, dict)
    assert sorted(num_rows.values()) == [len(ENDINGS) + 1] * 5


def test_a_second_run_embeds_nothing(job: Job) -> None:
    before = sorted(path.name for path in job.store.rglob("*.parquet"))
    second = run_command("jobs/embed_catalog.py", *job.arguments)
    assert second.exit_code == 0, second.stderr
    report = second.report
    assert (report["embedded"], report["unchanged"]) == (0, len(ENDINGS) + 1)
    assert (report["planned"], report["failed"]) == (job.first.report["planned"], job.first.report["failed"])
    assert report["failures"] == job.first.report["failures"]
    assert sorted(path.name for path in job.store.rglob("*.parquet")) == before


def test_a_dry_run_writes_nothing(job: Job, tmp_path: Path) -> None:
    arguments = [*job.arguments, "--dry-run"]
    arguments[arguments.index("--store") + 1] = str(tmp_path / "none")
    dry = run_command("jobs/embed_catalog.py", *arguments)
    assert dry.exit_code == 0, dry.stderr
    assert dry.report["planned"] == job.num_tracks - 1
    assert not (tmp_path / "none").exists()


def test_stored_frames_are_the_published_latents_to_ten_bits(job: Job, tiny_checkpoint: Path) -> None:
    stats = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}_stats.json")
    model = MusicFM25Hz(stat_path=str(stats), model_path=str(tiny_checkpoint)).eval()
    store = FeatureStore(str(job.store))
    for name in ("clip_mp3.mp3", "clip_flac.flac", "long [live] *.flac"):
        waveform = decode_audio((job.audio / name).read_bytes()).waveform
        stored = store.frames([name], "50hz").column("embeddings")[0].as_py()
        windows = [(0, 0)] if len(waveform) <= 720_000 else [(0, 0), (len(waveform) // 960 - 750, 750)]
        for start_frame, first_frame in windows:
            excerpt = waveform[start_frame * 960 : start_frame * 960 + 720_000]
            with torch.inference_mode():
                latent = model.get_latent(torch.from_numpy(excerpt.copy())[None], layer_ix=2)[0].numpy()
            own = np.repeat(latent[first_frame - start_frame :], 2, axis=0)
            found = np.array(stored, np.float32)[2 * first_frame :][: len(own)]
            half_unit = np.abs(own) * 2.0**-11
            assert np.all(np.abs(found - own) <= half_unit + 1e-5 * np.abs(own).max())


def test_duckdb_reads_plain_vectors(job: Job) -> None:
    files = DeltaTable(job.store / "frames").file_uris()
    tracks = DeltaTable(job.store / "tracks").file_uris()
    relation = duckdb.sql(
        f"""SELECT track_id, num_frames, embeddings FROM read_parquet({files}, hive_partitioning = true)
        JOIN (SELECT recipe, track_id, content_hash FROM read_parquet({tracks}, hive_partitioning = true))
        USING (recipe, track_id, content_hash) WHERE resolution = '16hz' ORDER BY track_id"""
    )
    assert relation is not None
    rows = relation.fetchall()
    assert len(rows) == len(ENDINGS) + 1
    for _, num_frames, embeddings in rows:
        assert np.array(embeddings, np.float32).shape == (num_frames, 32)


def test_polars_scans_plain_vectors(job: Job) -> None:
    frame = (
        pl.scan_delta(str(job.store / "frames"))
        .filter(pl.col("resolution") == "0.5hz", pl.col("track_id") == "clip_wav.wav")
        .select("num_frames", "embeddings")
        .collect()
    )
    assert frame.schema["embeddings"] == pl.List(pl.List(pl.Float32))
    assert np.array(frame["embeddings"][0].to_list()).shape == (frame["num_frames"][0], 32)
    keys = ["recipe", "track_id", "content_hash"]
    vectors = (
        pl.scan_delta(str(job.store / "frames"))
        .filter(pl.col("resolution") == "global")
        .join(pl.scan_delta(str(job.store / "tracks")).select(keys), on=keys)
        .select(pl.col("embeddings").list.first())
        .collect()
    )
    assert vectors.schema["embeddings"] == pl.List(pl.Float32)
    assert np.stack(vectors["embeddings"].to_list()).shape == (len(ENDINGS) + 1, 32)


def test_pandas_reads_plain_vectors(job: Job) -> None:
    keys = ["recipe", "track_id", "content_hash"]
    vectors = DeltaTable(job.store / "frames").to_pandas(
        partitions=[("resolution", "=", "global")], columns=[*keys, "embeddings"]
    )
    tracks = DeltaTable(job.store / "tracks").to_pandas(columns=[*keys, "title"]).merge(vectors, on=keys)
    assert np.stack([track[0] for track in tracks["embeddings"]]).shape == (len(ENDINGS) + 1, 32)
    part = next((job.store / "frames").rglob("resolution=8hz/*.parquet"))
    frames = pd.read_parquet(part)
    first = frames.iloc[0]
    assert np.stack(list(first["embeddings"])).shape == (first["num_frames"], 32)


def test_no_file_needs_an_extension_type(job: Job) -> None:
    for path in job.store.rglob("*.parquet"):
        if "_delta_log" not in path.parts:
            schema = pq.read_schema(path)
            assert b"ARROW:schema" not in (schema.metadata or {})
            assert not any(isinstance(field.type, pa.ExtensionType) for field in schema)
