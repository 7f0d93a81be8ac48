"""Fitting: a head is trained on features of some tracks until those of others no longer gain by it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import RunError
from pipeline.probing.features import FeatureSet
from pipeline.probing.heads import Head
from pipeline.probing.targets import compute_loss

LEARNING_RATES = (1e-3, 1e-2)  # each is tried, and what the validation tracks prefer is kept
WEIGHT_DECAY = 1e-2
FRAMES_PER_CHUNK = 32
CHUNKS_PER_BATCH = 64
MIN_ROUND_STEPS, MAX_ROUND_STEPS = 20, 500
"""Steps between two looks at the validation tracks: an epoch, or a part of a long one, or several short ones."""
MAX_ROUNDS = 100
PATIENCE = 10  # rounds without gain
LEAST_GAIN = 1e-3  # of the loss: less is none

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """What a head's outputs are to be, for all tracks of a feature set.

    Args:
        rows: From ``targets.make_targets``, one track after the other.
        firsts: Where each track's rows begin.
    """

    rows: Tensor
    firsts: Places

    @classmethod
    def join(cls, targets: Sequence[Tensor]) -> Targets:
        """Join the targets of tracks, in their order."""
        lengths = np.array([len(rows) for rows in targets], np.int64)
        return cls(torch.cat(list(targets)), np.cumsum(lengths) - lengths)


@dataclass(frozen=True)
class Sharing:
    """How this process takes part in a fit that several share; by default it is alone.

    Args:
        rank: From 0.
        num_workers: How many there are: each takes its part of every batch's chunks.
        wrap: Gives the head whose gradients are the means over all workers.
        agree: Gives all workers the first one's loss: processors of two kinds round it in two ways, and one worker
            would stop while the others wait for it.
    """

    rank: int = 0
    num_workers: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda head: head
    agree: Callable[[float], float] = lambda loss: loss

    def take_part(self, places: Places) -> Places:
        """Return this worker's part of a batch; of one with fewer chunks than workers all take all."""
        return places if len(places) < self.num_workers else places[self.rank :: self.num_workers]


ALONE = Sharing()


@dataclass(frozen=True)
class Fit:
    """How the training of a head went.

    Args:
        num_steps: Until the end.
        best_round: The round whose weights were kept.
        losses: Loss on the validation tracks after each round.
        learning_rate: The one of ``LEARNING_RATES`` that was kept.
    """

    num_steps: int
    best_round: int
    losses: tuple[float, ...]
    learning_rate: float


def fit_head(
    head: Head,
    features: FeatureSet,
    targets: Targets,
    train: Sequence[int],
    valid: Sequence[int],
    seed: int = 0,
    sharing: Sharing = ALONE,
) -> Fit:
    """Train a head, and leave it with the weights that were best on the validation tracks.

    Args:
        head: A new one; its statistics are set here, from the training tracks alone.
        features: Of all the tracks.
        targets: Of all the tracks.
        train: Numbers of the tracks to train on.
        valid: Numbers of those that say when to stop.
        seed: Of the weights, the order and the dropout.
        sharing: With which other processes; all of them end with the same weights.

    Raises:
        RunError: The loss is not finite: the features are not.
    """
    statistics = measure_statistics(features, train)
    chosen: tuple[Fit, dict[str, Tensor]] | None = None
    with torch.random.fork_rng(devices=[]):
        for learning_rate in LEARNING_RATES:
            torch.manual_seed(seed)
            _reset(head)
            head.set_statistics(*statistics)
            fit = _fit(head, features, targets, train, valid, seed, learning_rate, sharing)
            if chosen is None or min(fit.losses) < min(chosen[0].losses):
                chosen = fit, copy.deepcopy(head.state_dict())
    assert chosen is not None
    head.load_state_dict(chosen[1])
    return chosen[0]


def _reset(head: Head) -> None:
    """Begin anew; with zeros in the last layer, which then owes nothing to the draw of the others."""
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for layer in linear:
        layer.reset_parameters()
    torch.nn.init.zeros_(linear[-1].weight)
    torch.nn.init.zeros_(linear[-1].bias)
    if head.mix is not None:
        torch.nn.init.zeros_(head.mix)


def _fit(
    head: Head,
    features: FeatureSet,
    targets: Targets,
    train: Sequence[int],
    valid: Sequence[int],
    seed: int,
    learning_rate: float,
    sharing: Sharing,
) -> Fit:
    task = head.spec.task
    wrapped = sharing.wrap(head)
    optimizer = torch.optim.AdamW(head.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    batches = _repeat_batches(features, targets, train, np.random.default_rng(seed), sharing)
    num_chunks = len(list_chunks(features, train)[0])
    num_round_steps = int(np.clip(-(-num_chunks // CHUNKS_PER_BATCH), MIN_ROUND_STEPS, MAX_ROUND_STEPS))
    losses: list[float] = []
    least, since = np.inf, 0
    best = copy.deepcopy(head.state_dict())
    for number in range(MAX_ROUNDS):
        wrapped.train()
        for _ in range(num_round_steps):
            inputs, wanted = next(batches)
            loss = compute_loss(task, wrapped(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses.append(sharing.agree(measure_loss(head, features, targets, valid)))
        if not np.isfinite(losses[-1]):
            raise RunError(
                f"expected a finite loss, found {losses[-1]} after {(number + 1) * num_round_steps} steps: "
                "features or labels are not finite; musicfm check --deep looks for such features"
            )
        if losses[-1] <= min(losses):
            best = copy.deepcopy(head.state_dict())
        if losses[-1] < least * (1 - LEAST_GAIN):
            least, since = losses[-1], number
        elif number - since >= PATIENCE:
            break
    head.load_state_dict(best)
    head.eval()
    return Fit(len(losses) * num_round_steps, int(np.argmin(losses)), tuple(losses), learning_rate)


def measure_statistics(features: FeatureSet, tracks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the frames of some tracks, in the shape of a head's features."""
    total = square = None
    num_frames = 0
    for track in tracks:
        rows = features.read(track).astype(np.float64)
        total = rows.sum(axis=0) if total is None else total + rows.sum(axis=0)
        square = (rows**2).sum(axis=0) if square is None else square + (rows**2).sum(axis=0)
        num_frames += len(rows)
    assert total is not None
    assert square is not None
    mean = total / num_frames
    std = np.sqrt(np.maximum(square / num_frames - mean**2, 0.0))
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def measure_loss(head: Head, features: FeatureSet, targets: Targets, tracks: Sequence[int]) -> float:
    """Return a head's loss on some tracks, each frame counted once."""
    head.eval()
    total, num_frames = 0.0, 0
    with torch.inference_mode():
        for inputs, wanted in _make_batches(features, targets, *list_chunks(features, tracks)):
            total += float(compute_loss(head.spec.task, head(inputs), wanted)) * len(inputs)
            num_frames += len(inputs)
    return total / num_frames


def list_chunks(features: FeatureSet, tracks: Sequence[int]) -> tuple[Places, Places]:
    """Cut tracks into runs of frames: the track and the first frame of each."""
    owners, firsts = [], []
    for track in tracks:
        starts = range(0, int(features.lengths[track]), FRAMES_PER_CHUNK)
        owners += [track] * len(starts)
        firsts += list(starts)
    return np.array(owners, np.int64), np.array(firsts, np.int64)


def _repeat_batches(
    features: FeatureSet, targets: Targets, tracks: Sequence[int], random: np.random.Generator, sharing: Sharing
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end; every frame once before any again, each time in another order."""
    owners, firsts = list_chunks(features, tracks)
    while True:
        order = random.permutation(len(owners))
        yield from _make_batches(features, targets, owners[order], firsts[order], sharing)


def _make_batches(
    features: FeatureSet, targets: Targets, owners: Places, firsts: Places, sharing: Sharing = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(owners), CHUNKS_PER_BATCH):
        chosen = sharing.take_part(np.arange(start, min(start + CHUNKS_PER_BATCH, len(owners))))
        lengths = np.minimum(features.lengths[owners[chosen]] - firsts[chosen], FRAMES_PER_CHUNK)
        tracks = np.repeat(owners[chosen], lengths)
        in_chunk = np.arange(len(tracks)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        frames = np.repeat(firsts[chosen], lengths) + in_chunk
        wanted = targets.rows[torch.from_numpy(targets.firsts[tracks] + frames)]
        yield torch.from_numpy(features.take(tracks, frames)), wanted
