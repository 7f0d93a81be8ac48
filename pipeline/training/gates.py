"""What a model is worth while it trains, on tracks that it is not trained on.

Retrieval: two excerpts of every held-out track that do not overlap; the first is a hit where the second of the
same track is nearer (by cosine) than those of all other tracks. Prediction: cross-entropy over masked tokens,
beside that of the corpus's own token frequencies, which a model that hears nothing can know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musicfm_model.precision import float32_arithmetic
from musicfm_model.pretraining import prediction_loss
from pipeline.training.corpus import Corpus
from pipeline.training.crops import read_crops, read_noise, shift_pitch
from pipeline.training.draws import make_generator
from pipeline.training.masking import list_masked_tokens, mask_log_mels
from pipeline.training.objectives import Pretraining, pool_over_time
from pipeline.training.recipe import MASK_FRAMES, MASK_PROB

EXCERPT_FRAMES = 1000  # 10 s
MIN_HELD_OUT_FRAMES = 2 * EXCERPT_FRAMES + 2
BATCH_CROPS = 64
MAX_WHITENING_CROPS = 2000
PITCHED_SEMITONES = 1.0
GATE_SEED = 20_000_101  # of the masks, which are the same whenever a model is measured


@dataclass(frozen=True)
class GateCrops:
    """The excerpts that all models of a run are measured on.

    Args:
        queries: (num_tracks,) rows of the held-out corpus.
        references: (num_tracks,) rows at least an excerpt away.
        background: Rows of the training corpus, whose vectors centre and whiten those of the held-out tracks.
        unigram: (codebook_size,) probabilities of the tokens of the training corpus, none of them zero.
    """

    queries: Tensor
    references: Tensor
    background: Tensor
    unigram: Tensor


def choose_gate_crops(model: Pretraining, train: Corpus, held_out: Corpus) -> GateCrops:
    """Choose excerpts, and count the training corpus's tokens.

    Args:
        model: Whose quantiser and statistics make the tokens.
        train: The tracks that it is trained on.
        held_out: Tracks by nobody that it is trained on.
    """
    long_enough = held_out.num_frames >= MIN_HELD_OUT_FRAMES
    first, num = held_out.first_rows[long_enough], held_out.num_frames[long_enough]
    spare = num - MIN_HELD_OUT_FRAMES
    queries = first + spare // 4
    references = first + num - EXCERPT_FRAMES - 1 - spare // 4
    usable = train.num_frames >= EXCERPT_FRAMES + 2
    per_track = max(1, MAX_WHITENING_CROPS // max(1, int(usable.sum())))
    room = train.num_frames[usable] - EXCERPT_FRAMES - 2
    shares = (torch.arange(min(4, per_track)) + 0.5) / min(4, per_track)
    background = (train.first_rows[usable] + (shares[:, None] * room).long()).flatten()[:MAX_WHITENING_CROPS]
    return GateCrops(queries, references, background, count_tokens(model, train, background))


@torch.no_grad()
def count_tokens(model: Pretraining, corpus: Corpus, rows: Tensor) -> Tensor:
    """Return how probable each token is in excerpts of a corpus, half a count added to each."""
    counts = torch.full((model.musicfm.codebook_size,), 0.5, dtype=torch.float64)
    for crops in iterate_crops(model, corpus, rows):
        tokens = model.tokenize(crops)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
    return (counts / counts.sum()).float()


def iterate_crops(model: Pretraining, corpus: Corpus, rows: Tensor) -> Iterator[Tensor]:
    """Yield 10 s excerpts, some at a time: (B, 1000, n_mels) in dB on the model's device."""
    device = model.regression.weight.device
    for part in torch.split(rows, BATCH_CROPS):
        yield read_crops(corpus.log_mels, part, EXCERPT_FRAMES, torch.ones(len(part), device=device))


@torch.no_grad()
def measure_gates(
    model: Pretraining, train: Corpus, held_out: Corpus, gate_crops: GateCrops, noise_bank: Tensor
) -> dict[str, float]:
    """Measure a model, which is left in the mode that it was in.

    Returns:
        ``cross_entropy``, ``unigram_cross_entropy`` (of the same tokens), ``accuracy``, ``codes_used`` (share of
        the codebook that the targets use), and ``layer<i>.<what>.<processing>`` recall@1 for every hidden state,
        where ``what`` is ``mean``, ``mean_std``, and ``processing`` ``centred``, ``whitened``, each also
        ``_pitched``.
    """
    was_training = model.training
    model.eval()
    try:
        figures = measure_prediction(model, held_out, gate_crops, noise_bank)
        layers = range(model.musicfm.num_layers + 1)
        background = pool_excerpts(model, train, gate_crops.background)
        references = pool_excerpts(model, held_out, gate_crops.references)
        for suffix, semitones in (("", 0.0), ("_pitched", PITCHED_SEMITONES)):
            queries = pool_excerpts(model, held_out, gate_crops.queries, semitones)
            for layer in layers:
                triple = [vectors[layer] for vectors in (queries, references, background)]
                width = triple[0].shape[1] // 2
                mean_recall = measure_recall(*(vectors[:, :width] for vectors in triple))
                for processing, recall in mean_recall.items():
                    figures[f"layer{layer}.mean.{processing}{suffix}"] = recall
                for processing, recall in measure_recall(*triple).items():
                    figures[f"layer{layer}.mean_std.{processing}{suffix}"] = recall
    finally:
        model.train(was_training)
    return figures


def measure_prediction(
    model: Pretraining, held_out: Corpus, gate_crops: GateCrops, noise_bank: Tensor
) -> dict[str, float]:
    """Return cross-entropy, accuracy and codes over masked tokens of the held-out excerpts."""
    generator = make_generator(GATE_SEED, 0, 0)
    device, last = noise_bank.device, model.musicfm.num_layers
    unigram = gate_crops.unigram.to(device).log()
    sums = torch.zeros(4, dtype=torch.float64)
    used = torch.zeros(model.musicfm.codebook_size, dtype=torch.bool)
    for crops in iterate_crops(model, held_out, gate_crops.queries):
        is_masked = torch.rand(len(crops), EXCERPT_FRAMES // MASK_FRAMES, generator=generator) < MASK_PROB
        offset = torch.randint(len(noise_bank), (len(crops),), generator=generator).to(device)
        noise = read_noise(noise_bank, offset, EXCERPT_FRAMES)
        where = list_masked_tokens(is_masked).to(device).unbind(1)
        tokens = model.tokenize(crops)
        used[tokens.flatten().cpu()] = True
        with float32_arithmetic(device, allow_tf32=True):
            states = model.encode(mask_log_mels(crops, noise, is_masked.to(device)), {last})
            loss, accuracy = prediction_loss(model.musicfm.linear(states[last][where]), tokens[where])
        num = len(where[0])
        unigram_loss = -unigram[tokens[where]].mean()
        sums += num * torch.tensor([float(loss), float(unigram_loss), float(accuracy), 1.0], dtype=torch.float64)
    loss_sum, unigram_sum, accuracy_sum, num_tokens = sums.tolist()
    return {
        "cross_entropy": loss_sum / num_tokens,
        "unigram_cross_entropy": unigram_sum / num_tokens,
        "accuracy": accuracy_sum / num_tokens,
        "codes_used": float(used.float().mean()),
    }


def pool_excerpts(model: Pretraining, corpus: Corpus, rows: Tensor, semitones: float = 0.0) -> list[Tensor]:
    """Return mean and deviation over time of every hidden state: a (len(rows), 2 * embed_dim) for each layer."""
    layers = range(model.musicfm.num_layers + 1)
    pooled: list[list[Tensor]] = [[] for _ in layers]
    for crops in iterate_crops(model, corpus, rows):
        if semitones:
            crops = shift_pitch(crops, torch.full((len(crops),), semitones, device=crops.device))
        with float32_arithmetic(crops.device, allow_tf32=True):
            states = model.encode(crops, set(layers))
        for layer in layers:
            pooled[layer].append(torch.cat(pool_over_time(states[layer]), dim=1))
    return [torch.cat(parts) for parts in pooled]


def measure_recall(queries: Tensor, references: Tensor, background: Tensor) -> dict[str, float]:
    """Return recall@1 with vectors centred, and whitened, by what the background is like.

    Args:
        queries: (N, D).
        references: (N, D), row by row of the same tracks.
        background: (M, D) of other tracks.
    """
    projection = fit_whitening(background)
    mean = background.mean(dim=0)
    figures = {}
    for name, matrix in (("centred", None), ("whitened", projection)):
        processed = [
            vectors - mean if matrix is None else (vectors - mean) @ matrix for vectors in (queries, references)
        ]
        figures[name] = float(find_hits(*processed).float().mean())
    return figures


def find_hits(queries: Tensor, references: Tensor) -> Tensor:
    """Return for each query whether the reference of the same row is the nearest by cosine: (N,) bool."""
    scores = F.normalize(queries, dim=1) @ F.normalize(references, dim=1).T
    return scores.argmax(dim=1) == torch.arange(len(scores), device=scores.device)


def fit_whitening(vectors: Tensor) -> Tensor:
    """Return the (D, D) matrix that whitens centred vectors, their covariance shrunk towards a round one.

    Shrunk as far as Chen et al. (Oracle Approximating Shrinkage, arXiv 0907.4698, equation 23) say.
    """
    num, dim = vectors.shape
    centred = (vectors - vectors.mean(dim=0)).double()
    covariance = centred.T @ centred / num
    trace, squares = covariance.diagonal().sum(), covariance.square().sum()
    shrinkage = ((1 - 2 / dim) * squares + trace**2) / ((num + 1 - 2 / dim) * (squares - trace**2 / dim))
    shrinkage = shrinkage.clamp(0, 1)
    covariance = (1 - shrinkage) * covariance + shrinkage * trace / dim * torch.eye(dim).to(covariance)
    values, directions = torch.linalg.eigh(covariance)
    whitening: Tensor = directions * values.clamp(min=1e-12 * values.max()).rsqrt()
    return whitening.to(vectors.dtype)
