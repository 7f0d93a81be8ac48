"""Whole runs of a tiny model: what a kill, a NaN, a second slot and a full disk do to them."""

import copy
import math
import resource
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from musicfm_model import MusicFM25Hz, load_checkpoint
from pipeline.errors import RunError
from pipeline.training.corpus import HELD_OUT, open_corpus
from pipeline.training.course import Intervals
from pipeline.training.crops import Batch
from pipeline.training.export import export_checkpoint
from pipeline.training.loop import TrainingRun, build_model
from pipeline.training.objectives import Pretraining, contrast_pairs
from pipeline.training.recipe import Recipe
from pipeline.training.schedule import learning_rate
from pipeline.training.step import SkipCounter, make_optimizer, take_step
from pipeline.training.worker import Worker
from tests.pipeline.training.corpora import RECIPE, SIZES, open_train, write_corpus


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def start(
    corpus_folder: Path, folder: Path, recipe: Recipe = RECIPE, stop_after: int | None = None
) -> TrainingRun:
    train = open_train(corpus_folder)
    model = build_model(SIZES, recipe, train.measure_stats(), folder)
    run = TrainingRun(
        model,
        train,
        open_corpus(corpus_folder, HELD_OUT),
        folder,
        Intervals(report=1, gates=0, save=2),
        Worker(torch.device("cpu")),
    )
    if stop_after is not None:
        run.on_report = lambda line: leave_at(line["step"], stop_after)
    return run


class KilledError(Exception):
    pass


def leave_at(step: float, last: int) -> None:
    if step >= last:
        raise KilledError  # before the state of this step is saved, as a kill at a bad moment


def read_losses(curve: list[dict[str, float]]) -> list[float]:
    return [line["cross_entropy"] for line in curve]


def test_a_killed_run_goes_on_to_the_same_curve(corpus_folder: Path, tmp_path: Path) -> None:
    undisturbed = start(corpus_folder, tmp_path / "whole").run()
    with pytest.raises(KilledError):
        start(corpus_folder, tmp_path / "killed", stop_after=5).run()
    resumed = start(corpus_folder, tmp_path / "killed").run()
    assert [line["step"] for line in resumed.curve] == [1, 2, 3, 4, 5, 6]
    assert read_losses(resumed.curve) == pytest.approx(read_losses(undisturbed.curve), rel=1e-5)


def test_another_recipe_is_another_run(corpus_folder: Path, tmp_path: Path) -> None:
    start(corpus_folder, tmp_path).run()
    other = start(corpus_folder, tmp_path, replace(RECIPE, seed=1))
    with pytest.raises(RunError, match="name another run"):
        other.run()


def test_a_step_that_is_not_finite_changes_nothing_and_ends_the_run_when_it_repeats(corpus_folder: Path) -> None:
    model = make_model(corpus_folder)
    optimizer = make_optimizer([(model, 1.0)], RECIPE)
    before = copy.deepcopy(model.state_dict())
    spoilt = torch.full((2, 80, 128), math.nan)
    tokens = torch.tensor([[0, 0], [1, 3]])
    batch = Batch(torch.zeros(2, 80, 128), spoilt, spoilt, tokens, torch.tensor([0, 0]))
    counter = SkipCounter()
    result = take_step(model, optimizer, [lambda: batch], RECIPE, 1e-3)
    assert result.is_skipped
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for step in range(4):
        counter.count(result.is_skipped, step)
    counter.count(False, 4)
    for step in range(5, 9):
        counter.count(True, step)
    with pytest.raises(RunError, match="5 steps in a row"):
        counter.count(True, 9)
    assert counter.num_skipped == 9


def test_a_run_whose_steps_are_never_finite_ends(corpus_folder: Path, tmp_path: Path) -> None:
    run = start(corpus_folder, tmp_path)
    run.train = replace(run.train, log_mels=torch.full_like(run.train.log_mels, math.nan))
    with pytest.raises(RunError, match="5 steps in a row, up to step 4"):
        run.run()


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_state(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        start(corpus_folder, tmp_path, stop_after=3).run()
    saved = (tmp_path / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2, hard))  # files cannot grow further: as a full disk
    try:
        with pytest.raises(RunError, match="the last whole one is kept") as raised:
            start(corpus_folder, tmp_path).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert (tmp_path / "state.pt").read_bytes() == saved
    assert start(corpus_folder, tmp_path).run().next_step == 6


def make_model(corpus_folder: Path) -> Pretraining:
    folder = corpus_folder / "model"
    return build_model(SIZES, RECIPE, open_train(corpus_folder).measure_stats(), folder)


def test_an_export_loads_strictly_and_predicts_the_same(corpus_folder: Path, tmp_path: Path) -> None:
    run = start(corpus_folder, tmp_path / "run")
    run.run()
    export_checkpoint(run.model.musicfm, tmp_path / "model.pt")
    checkpoint = load_checkpoint(str(tmp_path / "model.pt"))
    assert checkpoint.config == SIZES
    wav = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    loaded = MusicFM25Hz.from_checkpoint(checkpoint)
    theirs, mine = (model.eval().get_latent(wav, 2) for model in (loaded, run.model.musicfm))
    assert float((theirs - mine).norm() / mine.norm()) < 2e-3  # weights in half precision
    tokens = [model.get_targets(wav)["melspec_2048"] for model in (loaded, run.model.musicfm)]
    assert torch.equal(*tokens)


def test_the_contrast_is_info_nce() -> None:
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tracks = torch.tensor([7, 7, 3, 3, 7, 7])  # two pairs of one track: no negatives of each other
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    losses = []
    for index, partner in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)):
        others = [k for k in range(6) if k == partner or tracks[k] != tracks[index]]
        scores = torch.stack([unit[index] @ unit[k] / 0.1 for k in others])
        losses.append(torch.logsumexp(scores, 0) - unit[index] @ unit[partner] / 0.1)
    expected = float(torch.stack(losses).mean())
    assert float(contrast_pairs(vectors, tracks, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = replace(RECIPE, num_steps=100, num_warmup_steps=10, peak_lr=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2, abs=1e-6)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
