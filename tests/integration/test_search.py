"""From music to hits: embed, index, and search by clips that were cut out and encoded again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from deltalake import DeltaTable
from numpy.typing import NDArray

from jobs import build_index, neighbors, search
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.decode.audio import decode_audio
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.location import StoreLocation
from pipeline.run.prepare import build_recipes, load_model, plan_run
from pipeline.store.commit import RunCommitter
from pipeline.store.recipes import record_recipes
from pipeline.store.tables import create_tables
from pipeline.store.write import WriteSettings, write_parts
from tests.corpus import MUSIC
from tests.encoders import encode_in_container

pytestmark = pytest.mark.slow

CHECKPOINT = str(MUSIC.parent / "musicfm_nano.pt")
CLIP_S = 15.0


@dataclass(frozen=True)
class Clip:
    """Where a clip was cut out, and the file that it was encoded to."""

    track_id: str
    start_s: float
    path: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's music in a store, embedded by the demo's model in this process, with both indexes."""
    location = StoreLocation(str(tmp_path_factory.mktemp("searched") / "store"))
    settings = RunSettings(location, CHECKPOINT, layers=(2,), resolutions=("0.5hz", "global"))
    model = load_model(settings)
    recipes = build_recipes(model, settings)
    create_tables(location)
    committer = RunCommitter(location, "run", recipes)
    record_recipes(committer.store, committer.run_id, committer.recipes, CHECKPOINT)
    plan = plan_run(load_catalog(str(MUSIC)), settings, recipes)
    committer.counts.planned = plan.num_tracks
    embedder = Embedder(model, EmbedderSettings({name: recipe.layer for name, recipe in recipes.items()}))
    embedded = pa.concat_tables(embedder.embed_rows(pa.concat_tables(decode_tracks(plan.to_process))))
    written = write_parts(embedded, WriteSettings(location.table_url("frames"), dict.fromkeys(recipes, 10), "run"))
    committer.accept(written)
    committer.close(None)
    for resolution in ("global", "0.5hz"):
        assert build_index.main(["--store", location.url, "--resolution", resolution]) == 0
    return location.url


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(4)
    clips = []
    for name in ("mountain.mp3", "caves.mp3", "ocean.mp3", "palace.m4a", "hunting.mp3", "ivory-tower.m4a"):
        waveform: NDArray[np.float32] = decode_audio((MUSIC / name).read_bytes()).waveform
        for number in range(2):
            start_s = float(random.uniform(0, len(waveform) / 24_000 - CLIP_S))
            excerpt = waveform[round(start_s * 24_000) :][: round(CLIP_S * 24_000)]
            path = folder / f"{number}-{name}.mp3"
            path.write_bytes(encode_in_container(excerpt[:, None], 24_000, "mp3", "libmp3lame", 64_000))
            clips.append(Clip(name, start_s, str(path)))
    return clips


def find(capsys: pytest.CaptureFixture[str], store: str, *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert search.main(["--store", store, "--json", *arguments]) == 0
    results: list[dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    return results


def test_a_clip_as_mp3_finds_its_track_first(
    store: str, clips: list[Clip], capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in clips:
        hits = find(capsys, store, "--audio", clip.path, "--checkpoint", CHECKPOINT)
        assert hits[0]["track_id"] == clip.track_id


def test_a_clip_as_stereo_mp3_at_full_rate_is_recognised_by_its_track(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such an mp3 has no treble left: by cosine of global vectors alone half of these find another track first."""
    random = np.random.default_rng(11)
    for number, name in enumerate(("mountain.mp3", "caves.mp3", "ocean.mp3", "hunting.mp3") * 2):
        music, sample_rate = soundfile.read(MUSIC / name, dtype="float32", always_2d=True)
        start_s = float(random.uniform(0, len(music) / sample_rate - 12))
        excerpt = np.repeat(music[round(start_s * sample_rate) :][: 12 * sample_rate], 3 - music.shape[1], axis=1)
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(encode_in_container(excerpt, sample_rate, "mp3", "libmp3lame", 64_000))
        hit = find(capsys, store, "--audio", str(path), "--checkpoint", CHECKPOINT)[0]
        assert (hit["track_id"], hit["near_duplicate"]) == (name, True)
        assert abs(hit["start_s"] - start_s) <= 2


def test_a_clip_as_mp3_finds_its_time_within_two_seconds(
    store: str, clips: list[Clip], capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in clips:
        hits = find(capsys, store, "--audio", clip.path, "--checkpoint", CHECKPOINT, "--resolution", "0.5hz")
        assert hits[0]["track_id"] == clip.track_id
        assert abs(hits[0]["start_s"] - clip.start_s) <= 2
        assert abs(hits[0]["end_s"] - clip.start_s - CLIP_S) <= 2


def test_neighbours_are_the_hits_of_a_search(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert neighbors.main(["--store", store, "-k", "3"]) == 0
    table = DeltaTable(f"{store}/neighbors")
    rows = [row for row in pa.table(table.scan()).to_pylist() if row["track_id"] == "caves.mp3"]
    hits = find(capsys, store, "--track", "caves.mp3", "-k", "3")
    found = [(row["rank"], row["neighbor_id"]) for row in sorted(rows, key=lambda row: row["rank"])]
    assert found == [(hit["rank"], hit["track_id"]) for hit in hits]
    assert [row["score"] for row in sorted(rows, key=lambda row: row["rank"])] == pytest.approx(
        [hit["score"] for hit in hits], abs=1e-6
    )
