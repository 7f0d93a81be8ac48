import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import load_checkpoint
from pipeline.catalog.load import load_catalog
from pipeline.config import RunSettings
from pipeline.decode.audio import decode_audio
from pipeline.errors import RunError, UsageError
from pipeline.location import StoreLocation
from pipeline.run.prepare import build_recipes
from pipeline.run.preview import preview_catalog
from pipeline.run.run import RunReport, embed_catalog
from pipeline.store.check import check_store
from pipeline.store.read import FeatureStore
from pipeline.store.tables import create_tables, open_table
from tests.corpus import encode_clip, load_music

FIRST = ("25hz", "8hz", "global")
Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A run, and the store as it left it."""

    report: RunReport
    tracks: dict[tuple[str, str], Row]
    frame_files: set[str]

    def rows(self, layer: int) -> dict[str, Row]:
        recipe = next(recipe for recipe, own in self.report.recipes.items() if own == layer)
        return {track_id: row for (own, track_id), row in self.tracks.items() if own == recipe}


@dataclass(frozen=True)
class Life:
    """A folder of music and what one run after another made of it."""

    audio: Path
    settings: RunSettings
    steps: dict[str, Step]


def run(audio: Path, settings: RunSettings) -> Step:
    report = embed_catalog(load_catalog(str(audio)), settings)
    assert report.closed
    assert check_store(settings.store, deep=True).problems == []
    store = FeatureStore(settings.store.url)
    ledger = [row for recipe in report.recipes for row in store.to_arrow("global", recipe).to_pylist()]
    files = open_table(settings.store, "frames").file_uris()
    return Step(report, {(row["recipe"], row["track_id"]): row for row in ledger}, set(files))


def preview(audio: Path, settings: RunSettings) -> RunReport:
    return preview_catalog(load_catalog(str(audio)), settings)


def write_clip(path: Path, start_s: float, seconds: float) -> None:
    music = load_music(seconds=start_s + seconds, sample_rate=24_000)
    encode_clip(path, music[round(start_s * 24_000) :], 24_000)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, local_ray: None) -> Life:
    folder = tmp_path_factory.mktemp("life")
    audio = folder / "music"
    audio.mkdir()
    for number, name in enumerate("abcdefghij"):
        write_clip(audio / f"{name}.wav", 0.3 * number, 1.0 + 0.1 * number)
    write_clip(audio / "long.flac", 0.0, 7.0)  # two windows of six seconds
    (audio / "broken.mp3").write_bytes(b"no music")
    settings = RunSettings(
        StoreLocation(str(folder / "store")),
        str(tiny_checkpoint),
        layers=(1, 3),
        resolutions=FIRST,
        windows="task",
    )
    steps = {"first": run(audio, settings)}
    shutil.copytree(audio, folder / "as it was")
    steps["wider"] = run(audio, replace(settings, resolutions=("16hz",)))
    all_four = replace(settings, resolutions=(*FIRST, "16hz"))
    write_clip(audio / "c.wav", 2.0, 1.3)
    (audio / "d.wav").unlink()
    (audio / "e.wav").touch()
    write_clip(audio / "new.wav", 3.0, 1.2)
    steps["changed"] = run(audio, replace(all_four, prune=True))
    return Life(folder / "as it was", all_four, steps)


pytestmark = pytest.mark.ray
NAMES = {*(f"{letter}.wav" for letter in "abcdefghij"), "long.flac"}


def count(step: Step) -> tuple[int, int, int, int, int]:
    counts = step.report.counts
    return counts.planned, counts.embedded, counts.unchanged, counts.failed, counts.deleted


def test_two_layers_stand_side_by_side(life: Life) -> None:
    first = life.steps["first"]
    assert count(first) == (12, 11, 0, 1, 0)
    assert first.report.counts.failures_by_reason == {"unreadable": 1}
    assert sorted(first.report.recipes.values()) == [1, 3]
    assert set(first.tracks) == {(recipe, name) for recipe in first.report.recipes for name in NAMES}
    assert all(row["resolutions"] == list(FIRST) for row in first.tracks.values())
    failures = open_table(life.settings.store, "failures").to_pyarrow_table().to_pylist()
    assert {row["recipe"] for row in failures} == set(first.report.recipes)
    recipes = FeatureStore(life.settings.store.url).recipes().to_pylist()
    assert {row["recipe"] for row in recipes} == set(first.report.recipes)
    assert {row["checkpoint"] for row in recipes} == {life.settings.checkpoint}


def test_each_recipe_holds_its_own_layer_and_window(life: Life, tiny_checkpoint: Path) -> None:
    stats = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}_stats.json")
    model = MusicFM25Hz(stat_path=str(stats), model_path=str(tiny_checkpoint)).eval()
    store = FeatureStore(life.settings.store.url)
    for name in ("a.wav", "long.flac"):
        data = (life.audio / name).read_bytes()
        waveform = decode_audio(data).waveform
        num_frames = len(waveform) // 960
        for recipe, layer in life.steps["first"].report.recipes.items():
            stored = store.frames([name], "25hz", recipe=recipe)
            row = store.tracks(recipe=recipe).filter(
                np.array(store.tracks(["track_id"], recipe=recipe).column("track_id")) == name
            )
            assert row.column("content_hash").to_pylist() == [hashlib.sha256(data).hexdigest()]
            found = np.array(stored.column("embeddings")[0].as_py(), np.float32)
            window = torch.from_numpy(waveform[: 6 * 24_000].copy())[None]
            with torch.inference_mode():
                own = model.get_latent(window, layer_ix=layer)[0].numpy()
            assert num_frames <= len(found) <= num_frames + 1
            assert np.abs(found[: len(own)] - own).max() <= 2.0**-11 * np.abs(own).max() + 1e-5 * np.abs(own).max()


def test_a_new_resolution_is_all_that_is_added(life: Life) -> None:
    first, wider = life.steps["first"], life.steps["wider"]
    assert count(wider) == (12, 11, 0, 1, 0)
    assert wider.report.recipes == first.report.recipes
    assert first.frame_files < wider.frame_files
    assert all("resolution=16hz" in path for path in wider.frame_files - first.frame_files)
    for key, row in wider.tracks.items():
        assert row["resolutions"] == [*FIRST, "16hz"]
        assert row["embedding"] == first.tracks[key]["embedding"] is not None
        assert row["content_hash"] == first.tracks[key]["content_hash"]


def test_a_refresh_costs_what_changed(life: Life) -> None:
    before, after = life.steps["wider"], life.steps["changed"]
    assert count(after) == (12, 2, 9, 1, 1)  # the touched one was read, and is unchanged
    assert before.frame_files < after.frame_files
    assert len(after.frame_files - before.frame_files) == 2 * 4
    for layer in (1, 3):
        old, new = before.rows(layer), after.rows(layer)
        assert set(new) == NAMES - {"d.wav"} | {"new.wav"}
        for name, row in new.items():
            if name not in ("c.wav", "e.wav", "new.wav"):
                assert row == old[name]
        assert new["c.wav"]["content_hash"] != old["c.wav"]["content_hash"]
        assert new["c.wav"]["embedding"] != old["c.wav"]["embedding"]
        assert new["e.wav"].pop("modified_time") > old["e.wav"].pop("modified_time")
        assert new["e.wav"] == old["e.wav"]


def test_a_preview_says_what_a_run_would_look_at_and_writes_nothing(life: Life, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(life.settings.store.url, store)
    audio = Path(life.settings.store.url).with_name("music")
    settings = replace(life.settings, store=StoreLocation(str(store)))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    done = preview(audio, settings)  # nothing is left to look at, the touched file neither
    assert (done.counts.embedded, done.counts.unchanged, done.counts.failed) == (0, 11, 1)
    assert done.counts.failures_by_reason == {"unreadable": 1}
    assert done.store_version == life.steps["changed"].report.store_version
    assert done.closed
    wider = preview(audio, replace(settings, resolutions=("0.5hz",)))
    assert (wider.counts.embedded, wider.counts.unchanged, wider.counts.failed) == (11, 0, 1)
    again = preview(audio, replace(settings, retry_failures=True))
    assert (again.counts.embedded, again.counts.unchanged, again.counts.failed) == (0, 11, 1)
    (failure,) = again.failures
    assert (failure["track_id"], failure["reason"]) == ("broken.mp3", "unreadable")
    other = preview(audio, replace(settings, precision="bfloat16"))
    assert (other.counts.embedded, other.counts.unchanged, other.counts.failed) == (11, 0, 1)
    moved = preview(life.audio, replace(settings, prune=True))
    # The folder of before under another name: one file has left the store since, and one is another by now.
    assert (moved.counts.embedded, moved.counts.unchanged, moved.counts.failed) == (1, 9, 2)
    assert moved.counts.failures_by_reason == {"unreadable": 1, "id_taken": 1}
    assert (moved.counts.planned, moved.counts.deleted, moved.num_undecided) == (12, 1, 0)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_recipes_follow_the_layers(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_checkpoint))
    settings = RunSettings(StoreLocation("store"), str(tiny_checkpoint), layers=(3, 0))
    recipes = build_recipes(checkpoint, settings)
    assert [recipe.layer for recipe in recipes.values()] == [3, 0]
    assert [recipe.recipe_id for recipe in recipes.values()] == list(recipes)
    assert {recipe.weights_sha256 for recipe in recipes.values()} == {checkpoint.sha256}
    for scheduling in (
        {"batch_size": 5},
        {"device": "cpu"},
        {"attention": "eager"},
        {"resolutions": ("8hz",)},
        {"audio_options": {"secret": "x"}},
    ):
        assert list(build_recipes(checkpoint, replace(settings, **scheduling))) == list(recipes)
    for value in ({"windows": "task"}, {"precision": "tf32"}, {"mantissa_bits": 23}):
        assert not set(build_recipes(checkpoint, replace(settings, **value))) & set(recipes)
    for layer in (-1, 4):
        with pytest.raises(UsageError, match=f"--layers: expected 0 to 3, .*tiny.pt, found {layer}"):
            build_recipes(checkpoint, replace(settings, layers=(1, layer)))


def test_a_store_that_takes_no_more_files_ends_the_run(
    tmp_path: Path, tiny_checkpoint: Path, local_ray: None
) -> None:
    audio, store = tmp_path / "music", StoreLocation(str(tmp_path / "store"))
    audio.mkdir()
    write_clip(audio / "a.wav", 0.0, 1.0)
    settings = RunSettings(store, str(tiny_checkpoint), layers=(1,), resolutions=("8hz",))
    (recipe,) = build_recipes(load_checkpoint(str(tiny_checkpoint)), settings)
    create_tables(store)
    obstacle = tmp_path / "store" / "frames" / f"recipe={recipe}"
    obstacle.write_bytes(b"")
    with pytest.raises(RunError, match="run the same command again") as caught:
        embed_catalog(load_catalog(str(audio)), settings)
    assert f"recipe={recipe}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert FeatureStore(store.url, "latest").tracks().num_rows == 0
