"""Novelty against a plain loop, and boundaries of sections that are known."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import HeadError
from pipeline.probing import heads
from pipeline.probing.decoding import NOVELTY_THRESHOLDS, decode, pick_peaks
from pipeline.probing.heads import Head, HeadSpec, apply_head, load_head, save_head
from pipeline.probing.novelty import NOVELTY_S, measure_novelty

RATE_HZ = 8.0


def measure_slowly(features: NDArray[np.float32], rate_hz: float) -> NDArray[np.float64]:
    reach = max(1, round(NOVELTY_S * rate_hz))
    novelty = np.zeros(len(features))
    for place in range(1, len(features)):
        before = features[max(0, place - reach) : place].astype(np.float64)
        after = features[place : place + reach].astype(np.float64)
        weight = len(before) * len(after) / (len(before) + len(after))
        novelty[place] = np.linalg.norm(after.mean(axis=0) - before.mean(axis=0)) * np.sqrt(weight)
    scaled, spread = np.zeros(len(features)), novelty[1:].std() if len(novelty) > 1 else 0.0
    if spread > 1e-9:
        scaled[1:] = (novelty[1:] - novelty[1:].mean()) / spread
    return scaled


@given(
    num_frames=st.integers(0, 200),
    embed_dim=st.sampled_from([1, 3, 64, 150]),
    rate_hz=st.sampled_from([0.5, 8.0, 25.0]),
    seed=st.integers(0, 99),
)
def test_it_is_the_distance_of_two_means(num_frames: int, embed_dim: int, rate_hz: float, seed: int) -> None:
    features = np.random.default_rng(seed).normal(3.0, 1.0, (num_frames, embed_dim)).astype(np.float32)
    found = measure_novelty(features, rate_hz)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, measure_slowly(features, rate_hz), atol=1e-3)


@pytest.mark.parametrize("num_frames", [0, 1, 2, 500])
def test_where_nothing_changes_nothing_is_new(num_frames: int) -> None:
    features = np.full((num_frames, 4), 7.3, np.float32)
    assert not measure_novelty(features, RATE_HZ).any()


def make_song(edges_s: list[float], duration_s: float) -> NDArray[np.float32]:
    """Return noisy features that change where sections begin."""
    random = np.random.default_rng(1)
    times_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    section = np.searchsorted(edges_s, times_s, side="right")
    means = random.normal(size=(len(edges_s) + 1, 32))
    return (means[section] + random.normal(size=(len(times_s), 32))).astype(np.float32)


def test_boundaries_are_found_at_their_frame() -> None:
    edges_s = [9.0, 21.0, 33.5, 48.0]
    novelty = measure_novelty(make_song(edges_s, 60.0), RATE_HZ)
    assert (pick_peaks(novelty.astype(np.float64), RATE_HZ, 6.0, 0.5) / RATE_HZ).tolist() == edges_s


@pytest.mark.parametrize("recipes", [("a",), ("a", "b")])
def test_a_head_for_sections_cuts_a_song_where_it_changes(recipes: tuple[str, ...]) -> None:
    edges_s = [12.0, 26.0]
    song = make_song(edges_s, 40.0)
    matrix = song if len(recipes) == 1 else np.stack([song, song[:, ::-1]], axis=1)
    spec = HeadSpec("structure", "linear", recipes, "8hz", 32, ("chorus", "verse"), decoding={"threshold": 0.8})
    outputs = apply_head(Head(spec).eval(), matrix, RATE_HZ)
    assert outputs.shape == (320, 3)
    spans = decode(spec, outputs, RATE_HZ).spans
    assert [(start_s, end_s) for start_s, end_s, _ in spans] == [(0.0, 12.0), (12.0, 26.0), (26.0, 40.0)]
    assert {label for _, _, label in spans} <= {"chorus", "verse"}
    assert min(NOVELTY_THRESHOLDS) == 0.0


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 30])
def test_a_short_track_is_one_section(num_frames: int) -> None:
    outputs = np.random.default_rng(0).normal(size=(num_frames, 3)).astype(np.float32)
    spec = HeadSpec("structure", "linear", ("a",), "8hz", 32, ("chorus", "verse"), decoding={"threshold": 0.0})
    assert [span[:2] for span in decode(spec, outputs, RATE_HZ).spans] == [(0.0, num_frames / RATE_HZ)]


def test_no_section_is_shorter_than_half_the_least_distance_of_boundaries() -> None:
    outputs = np.zeros((480, 3), np.float32)
    outputs[[2, 23, 240, 457, 478], 0] = 5.0
    outputs[[24, 456], 0] = 4.0
    spec = HeadSpec("structure", "linear", ("a",), "8hz", 32, ("chorus", "verse"), decoding={"threshold": 1.0})
    starts_s = [start_s for start_s, _, _ in decode(spec, outputs, RATE_HZ).spans]
    assert starts_s == [0.0, 3.0, 30.0, 57.0]


def test_heads_of_the_first_format_are_read_but_those_that_learned_boundaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = HeadSpec("structure", "linear", ("a",), "8hz", 4, ("boundary", "verse"))
    monkeypatch.setattr(heads, "FORMAT", 1)
    for task in ("structure", "tagging"):
        save_head(Head(HeadSpec(**{**vars(spec), "task": task})), f"{tmp_path}/{task}.safetensors")
    monkeypatch.undo()
    assert load_head(f"{tmp_path}/tagging.safetensors").spec.task == "tagging"
    with pytest.raises(HeadError, match="found 1, which learned boundaries; train it again"):
        load_head(f"{tmp_path}/structure.safetensors")
