import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicfm_model.checkpoint import load_checkpoint
from pipeline.config import Recipe, ResamplerSettings
from pipeline.decode.audio import decode_audio
from pipeline.errors import TrackError, UsageError
from pipeline.location import StoreLocation
from pipeline.search.query import AudioQuery, count_filled_frames, match_recipe
from pipeline.store.read import FeatureStore
from tests.corpus import MUSIC, load_music
from tests.encoders import encode_bytes
from tests.served import TRACKS, embed_here, make_catalog

WEIGHTS = "ab" * 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> FeatureStore:
    location = StoreLocation(str(tmp_path_factory.mktemp("query") / "store"))
    chosen = [track for track in TRACKS if track["track_id"] in ("crossroads", "mountain", "palace", "icy-land")]
    embed_here(location, make_catalog(chosen), tiny_checkpoint)
    return FeatureStore(location.url)


@pytest.fixture(scope="module")
def query(store: FeatureStore, tiny_checkpoint: Path) -> AudioQuery:
    recipe = store.recipes().to_pylist()[0]
    return AudioQuery.load(str(tiny_checkpoint), recipe["recipe"], recipe["definition"], device="cpu")


@pytest.mark.parametrize("name", ["crossroads.wav", "mountain.mp3", "palace.m4a", "icy-land.opus"])
@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_a_file_of_the_catalog_gives_the_vectors_that_are_stored(
    store: FeatureStore, query: AudioQuery, name: str, resolution: str
) -> None:
    ids, vectors = store.vectors(resolution)
    stored = vectors[np.array(ids.to_pylist()) == Path(name).stem]
    found = query.embed((MUSIC / name).read_bytes(), resolution, is_stored=True).vectors
    assert found.shape == stored.shape
    # Batches of other sizes may differ by a unit of the last kept bit, relative to the vector's own size.
    assert np.abs(found - stored).max() <= 2**-10 * np.abs(stored).max()


def test_a_clip_has_one_row_per_two_seconds_or_most_of_them(query: AudioQuery) -> None:
    for seconds, num_rows in ((0.5, 1), (2.9, 1), (3.1, 2), (10.04, 5), (31.5, 16)):
        clip = encode_bytes(load_music(seconds=seconds, sample_rate=24_000), 24_000, format="WAV")
        assert query.embed(clip, "0.5hz").vectors.shape == (num_rows, 32)
        assert query.embed(clip, "global").vectors.shape == (1, 32)


def test_a_short_clip_is_heard_amid_its_mirror_image(query: AudioQuery) -> None:
    music = load_music(seconds=9.0, sample_rate=24_000)
    clip = encode_bytes(music, 24_000, format="WAV", subtype="FLOAT")
    before, after = music[: 10 * 24_000][::-1], music[::-1]
    # 21 s are missing of 30: ten whole seconds before, which 9 s of music give by being mirrored twice.
    surrounded = np.concatenate([music[-24_000:], before, music, after, music[: 2 * 24_000]])
    assert len(surrounded) == 30 * 24_000
    whole = encode_bytes(surrounded, 24_000, format="WAV", subtype="FLOAT")
    heard = query.embed(clip, "0.5hz").vectors
    assert heard == pytest.approx(query.embed(whole, "0.5hz").vectors[5:10], abs=1e-3)
    assert not np.array_equal(heard, query.embed(clip, "0.5hz", is_stored=True).vectors)


def test_a_clip_asked_for_by_its_global_vector_has_its_moments_too(query: AudioQuery) -> None:
    clip = encode_bytes(load_music(seconds=9.0, sample_rate=24_000), 24_000, format="WAV")
    moments = query.embed(clip, "global").moments
    assert moments is not None
    assert np.array_equal(moments, query.embed(clip, "0.5hz").vectors)
    assert query.embed(clip, "global", is_stored=True).moments is None
    assert query.embed(clip, "0.5hz").moments is None


def test_a_clip_as_long_as_the_window_is_heard_alone(query: AudioQuery) -> None:
    clip = encode_bytes(load_music("mountain.mp3", 30.0, 24_000), 24_000, format="WAV")
    assert np.array_equal(query.embed(clip, "0.5hz").vectors, query.embed(clip, "0.5hz", is_stored=True).vectors)


def test_vectors_are_rounded_as_stored(query: AudioQuery) -> None:
    vectors = query.embed((MUSIC / "crossroads.wav").read_bytes(), "global").vectors
    assert (vectors.view(np.uint32) & 0x1FFF == 0).all()  # 13 of 23 mantissa bits fell away


@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_a_section_of_a_file_is_heard_as_a_file_of_its_own(query: AudioQuery, resolution: str) -> None:
    music = load_music(seconds=12.0, sample_rate=24_000)
    whole = encode_bytes(music, 24_000, format="WAV", subtype="FLOAT")
    for start_s, end_s, first, stop in ((2, 9, 48_000, 216_000), (None, 5, 0, 120_000), (7.5, 99, 180_000, None)):
        part = encode_bytes(music[first:stop], 24_000, format="WAV", subtype="FLOAT")
        heard, expected = query.embed(whole, resolution, True, start_s, end_s), query.embed(part, resolution)
        assert np.array_equal(heard.vectors, expected.vectors)


@pytest.mark.parametrize("section", [(-1, 3), (5, 5), (7, 3), (12, None), (float("nan"), 3)])
def test_a_section_that_is_not_there_is_refused(query: AudioQuery, section: tuple[float, float | None]) -> None:
    clip = encode_bytes(load_music(seconds=9.0, sample_rate=24_000), 24_000, format="WAV")
    with pytest.raises(TrackError, match="expected a section within its 9 s"):
        query.embed(clip, "global", False, *section)


def test_what_is_no_music_is_told_as_the_catalog_tells_it(query: AudioQuery) -> None:
    for data in (b"", b"<html>", (MUSIC / "broken.mp3").read_bytes()):
        with pytest.raises(TrackError) as found:
            query.embed(data, "global")
        with pytest.raises(TrackError) as expected:
            decode_audio(data)
        assert found.value.reason == expected.value.reason


def test_a_checkpoint_of_other_weights_is_refused(tiny_checkpoint: Path) -> None:
    recipe = Recipe(WEIGHTS, 2)
    with pytest.raises(UsageError, match=r"weights abababababababab….*found one with weights [0-9a-f]{16}"):
        AudioQuery(load_checkpoint(str(tiny_checkpoint)), recipe.recipe_id, recipe.definition)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe(WEIGHTS, 2, maths_version=0), "maths_version 0"),
        (Recipe(WEIGHTS, 2, resampler=ResamplerSettings(rolloff=0.5)), "resampler"),
        (Recipe(WEIGHTS, 2, pooling="another"), "pooling 'another'"),
    ],
)
def test_an_index_that_this_version_would_not_make_is_refused(recipe: Recipe, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        match_recipe(WEIGHTS, recipe.recipe_id, recipe.definition)


def test_settings_of_the_run_are_taken_over() -> None:
    recipe = Recipe(WEIGHTS, 4, windows="task", precision="bfloat16", mantissa_bits=23)
    assert match_recipe(WEIGHTS, recipe.recipe_id, recipe.definition) == recipe


def test_a_definition_that_is_not_the_recipes_is_refused() -> None:
    recipe = Recipe(WEIGHTS, 2)
    other = json.dumps(json.loads(recipe.definition) | {"layer": 3})
    with pytest.raises(UsageError, match="expected the index's recipe"):
        match_recipe(WEIGHTS, recipe.recipe_id, other)
    assert match_recipe(WEIGHTS, recipe.recipe_id, recipe.definition) == replace(recipe)


@pytest.mark.parametrize(
    ("seconds", "resolution", "expected"),
    [
        (0.1, "0.5hz", 1),
        (3.0, "0.5hz", 2),
        (4.99, "0.5hz", 2),
        (5.0, "0.5hz", 3),
        (1.0, "8hz", 8),
        (99.0, "global", 1),
    ],
)
def test_frames_that_are_half_filled_count(seconds: float, resolution: str, expected: int) -> None:
    assert count_filled_frames(round(seconds * 24_000), resolution) == expected
