"""Scores of features: recall of a track by another excerpt of it, and what a linear probe reads off frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.training.gates import find_hits, fit_whitening
from training.excerpts import QUERIES, RATE

NUM_RESAMPLES = 2000
HOP = 960  # 25 Hz
MAX_PROBE_FRAMES = 60_000
Features = Mapping[str, NDArray[Any]]


def score_retrieval(models: Mapping[str, Features]) -> dict[str, Any]:
    """Score every layer of every model: recall@1 by "<pooling>.<processing>.<query>", and each query's hit.

    Pooling is ``mean`` or ``mean_std``; processing is ``centred`` or ``whitened``, both by the tracks trained on.
    """
    scores: dict[str, Any] = {}
    for name, features in models.items():
        for layer in list_layers(features):
            parts = {part: torch.from_numpy(features[f"{layer}.{part}"]) for part in ("reference", "background")}
            for pooling, width_share in (("mean", 0.5), ("mean_std", 1.0)):
                width = int(parts["background"].shape[1] * width_share)
                background = parts["background"][:, :width]
                mean = background.mean(dim=0)
                for processing, matrix in (("centred", torch.eye(width)), ("whitened", fit_whitening(background))):
                    reference = (parts["reference"][:, :width] - mean) @ matrix
                    for query in QUERIES:
                        vectors = torch.from_numpy(features[f"{layer}.{query}"])[:, :width]
                        hits = find_hits((vectors - mean) @ matrix, reference).numpy()
                        key = f"{name}.{layer}.{pooling}.{processing}.{query}"
                        scores[key] = {"recall": float(hits.mean()), "hits": hits.astype(int).tolist()}
    return scores


def compare_hits(first: list[int], second: list[int]) -> tuple[float, float, float]:
    """Return the difference of two recalls on the same queries, and its 95 % interval (paired bootstrap)."""
    return compare_values(np.array(first, float), np.array(second, float))


def compare_values(first: NDArray[Any], second: NDArray[Any]) -> tuple[float, float, float]:
    """Return the mean difference of paired values, and its 95 % interval (bootstrap over the pairs)."""
    difference = first - second
    drawn = np.random.default_rng(0).integers(len(difference), size=(NUM_RESAMPLES, len(difference)))
    low, high = np.percentile(difference[drawn].mean(axis=1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def score_probes(models: Mapping[str, Features], excerpts: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Score ridge regressions from single frames, fitted on tracks trained on: R² of each held-out track."""
    targets = {
        what: {part: [measure(wav) for wav in excerpts[name]] for part, name in PARTS.items()}
        for what, measure in (("onset", measure_onsets), ("chroma", measure_chroma))
    }
    scores: dict[str, Any] = {}
    for name, features in models.items():
        for layer in list_layers(features):
            train, held_out = features[f"{layer}.frames_train"], features[f"{layer}.frames_held_out"]
            for what, target in targets.items():
                r2 = fit_and_score(train, target["train"], held_out, target["held_out"])
                scores[f"{name}.{layer}.{what}"] = {"r2": float(np.mean(r2)), "by_track": r2.tolist()}
    return scores


PARTS = {"train": "background", "held_out": "clean"}


def fit_and_score(train: Any, train_target: Any, held_out: Any, held_out_target: Any) -> NDArray[Any]:
    """Fit a ridge regression on standardised frames; return each held-out track's R²."""
    count = min(train.shape[1], len(train_target[0]))
    x = train[:, :count].reshape(-1, train.shape[2])
    y = np.concatenate([target[:count] for target in train_target])
    step = max(1, len(x) // MAX_PROBE_FRAMES)
    x, y = x[::step].astype(np.float32), y[::step].astype(np.float32)
    mean, std, middle = x.mean(axis=0), x.std(axis=0) + 1e-3, y.mean(axis=0)
    x = (x - mean) / std
    gram = x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, x.T @ (y - middle))
    values = []
    for frames, target in zip(held_out, held_out_target, strict=True):
        predicted = (frames[:count].astype(np.float32) - mean) / std @ weights + middle
        error, spread = ((target[:count] - predicted) ** 2).sum(), ((target[:count] - middle) ** 2).sum()
        values.append(max(-1.0, 1 - error / max(spread, 1e-9)))
    return np.array(values)


def measure_onsets(wav: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return onset strength at 25 Hz: rising log magnitudes of a linear spectrum, standardised: (T, 1)."""
    rise = np.diff(np.log1p(10 * measure_spectrum(wav, 1024, HOP // 4)), axis=0, prepend=0).clip(min=0).sum(axis=1)
    rise[0] = 0
    strength = rise[: len(rise) // 4 * 4].reshape(-1, 4).max(axis=1)
    standardised: NDArray[np.float32] = (strength - strength.mean()) / (strength.std() + 1e-6)
    return standardised[:, None]


def measure_chroma(wav: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return energy by pitch class at 25 Hz from 65 to 2100 Hz, of sum 1 a frame: (T, 12)."""
    spectrum = measure_spectrum(wav, 8192, HOP) ** 2
    hertz = np.arange(1, spectrum.shape[1]) * RATE / 8192
    midi = 69 + 12 * np.log2(hertz / 440)
    used = (midi >= 36) & (midi < 96)
    fold = np.zeros((spectrum.shape[1], 12), np.float32)
    fold[np.arange(1, spectrum.shape[1])[used], np.round(midi[used]).astype(int) % 12] = 1
    chroma = np.sqrt(spectrum @ fold)
    total: NDArray[np.float32] = chroma / (chroma.sum(axis=1, keepdims=True) + 1e-6)
    return total


def measure_spectrum(wav: NDArray[np.int16], n_fft: int, hop: int) -> NDArray[np.float32]:
    """Return magnitudes, (num_samples / hop, n_fft / 2 + 1)."""
    samples = torch.from_numpy(wav.astype(np.float32) / 32767)
    stft = torch.stft(samples, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)
    magnitudes: NDArray[np.float32] = stft.abs().T[: len(wav) // hop].numpy()
    return magnitudes


def list_layers(features: Features) -> list[str]:
    """Return the layers of a model's features, in order."""
    return sorted({key.partition(".")[0] for key in features})
