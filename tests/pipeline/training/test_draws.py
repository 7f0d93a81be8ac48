from pathlib import Path

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.training.draws import draw_batch, make_generator
from pipeline.training.recipe import MASK_FRAMES, Augmentation, Recipe
from tests.pipeline.training.corpora import RECIPE, open_train, write_corpus


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), num_tracks=6)


def test_draws_follow_from_seed_step_and_slot(corpus_folder: Path) -> None:
    corpus = open_train(corpus_folder)
    first, again = (draw_batch(corpus, RECIPE, 3, 0) for _ in range(2))
    assert torch.equal(first.first_rows, again.first_rows)
    assert torch.equal(first.is_masked, again.is_masked)
    assert torch.equal(first.moves.semitones, again.moves.semitones)
    for step, slot in ((3, 1), (5, 0)):
        assert not torch.equal(first.first_rows, draw_batch(corpus, RECIPE, step, slot).first_rows)


def test_crops_lie_in_their_tracks(corpus_folder: Path) -> None:
    corpus = open_train(corpus_folder)
    for step in range(40):
        draws = draw_batch(corpus, RECIPE, step, 0)
        assert draws.crop_frames == (120, 200)[step % 2]
        last = draws.first_rows + torch.ceil(draws.crop_frames * draws.moves.stretch).long()
        ends = corpus.first_rows + corpus.num_frames
        assert (draws.first_rows >= corpus.first_rows[draws.tracks]).all()
        assert (last < ends[draws.tracks]).all()
        assert draws.is_masked.shape == (round(400 / draws.crop_frames), draws.crop_frames // MASK_FRAMES)
        pairs = draws.tracks[draws.num_masked_crops :].reshape(-1, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1])


def test_masks_have_the_published_probability(corpus_folder: Path) -> None:
    corpus = open_train(corpus_folder)
    masks = torch.cat([draw_batch(corpus, RECIPE, 2 * step, 0).is_masked.flatten() for step in range(300)])
    assert abs(float(masks.float().mean()) - 0.6) < 0.04


def test_no_track_is_long_enough(corpus_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"expected tracks of at least 31\.\d s"):
        draw_batch(open_train(corpus_folder), Recipe(crop_lengths_s=(30.0,)), 0, 0)


def test_what_is_not_moved_stays(corpus_folder: Path) -> None:
    recipe = Recipe(crop_lengths_s=(2.0,), augmentation=Augmentation(prob=0.0))
    moves = draw_batch(open_train(corpus_folder), recipe, 0, 0).moves
    assert torch.equal(moves.stretch, torch.ones_like(moves.stretch))
    for still in (moves.semitones, moves.gain_db, moves.waves_db):
        assert not still.any()
    assert not torch.isfinite(moves.noise_db).any()


def test_generators_differ() -> None:
    seeds = {make_generator(0, step, slot).initial_seed() for step in range(100) for slot in range(4)}
    assert len(seeds) == 400
