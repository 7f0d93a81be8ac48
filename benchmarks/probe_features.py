"""Features that probes compare: the model in the box by layer, the same before training, and log-mels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.charts import SAMPLE_RATE_HZ
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.log_mel import LogMel
from musicfm_model.model import MusicFM25Hz
from pipeline.training.loop import build_model
from pipeline.training.recipe import PRESETS

Matrix = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]
Embed = Callable[[torch.Tensor], dict[str, Matrix]]

NANO = Path(__file__).parents[1] / "demo" / "musicfm_nano.pt"
NANO_LAYERS = (0, 2, 5)
RATE_HZ = 25.0
WINDOW_S = 30.0
CONTEXT_FRAMES = 4  # 160 ms on either side of a log-mel frame


def embed_all(waveforms: Iterable[Samples]) -> dict[str, list[Matrix]]:
    """Return features of pieces by the features' name.

    Args:
        waveforms: Of the pieces, mono at 24 kHz; each is embedded in windows of 30 s, as a store's tracks are.

    Returns:
        For each kind of features one matrix a piece, float32 of shape (num_frames, width) at 25 Hz.
    """
    trained = load_checkpoint(str(NANO))
    models: dict[str, Embed] = {
        "nano": use_model(trained, NANO_LAYERS),
        "untrained": use_model(draw_weights(trained), NANO_LAYERS[:2]),
        "log-mel": use_log_mel(),
    }
    features: dict[str, list[Matrix]] = {}
    with torch.inference_mode():
        for waveform in waveforms:
            windows = cut_windows(waveform)
            for name, embed in models.items():
                parts = [embed(torch.from_numpy(window)[None]) for window in windows]
                for part in parts[0]:
                    matrix = np.concatenate([own[part] for own in parts])
                    features.setdefault(f"{name}{part}", []).append(matrix)
    return features


def cut_windows(waveform: Samples) -> list[Samples]:
    """Cut a piece into windows of 30 s; a last one under a second, which is less than any bar, is left out."""
    size = round(WINDOW_S * SAMPLE_RATE_HZ)
    windows = [waveform[first : first + size] for first in range(0, len(waveform), size)]
    return [window for window in windows if len(window) >= SAMPLE_RATE_HZ]


def use_model(checkpoint: Checkpoint, layers: tuple[int, ...]) -> Embed:
    """Return what gives hidden states."""
    model = MusicFM25Hz.for_inference(checkpoint)

    def embed(wav: torch.Tensor) -> dict[str, Matrix]:
        states = model.get_hidden_states(wav, layers)
        return {f", layer {layer}": frames[0].numpy() for layer, frames in states.items()}

    return embed


def draw_weights(trained: Checkpoint, seed: int = 0) -> Checkpoint:
    """Return a model of the same sizes with the weights of its start; statistics stay the trained one's."""
    _, recipe = PRESETS["nano"]
    with tempfile.TemporaryDirectory() as folder:
        stats = trained.mean, trained.std
        model = build_model(trained.config, replace(recipe, seed=seed), stats, Path(folder)).musicfm
    return Checkpoint(model.state_dict(), trained.config, *stats, "untrained")


def use_log_mel() -> Embed:
    """Return what gives log-mels at 25 Hz (the mean of four frames), each beside those around it."""
    transform = LogMel()

    def embed(wav: torch.Tensor) -> dict[str, Matrix]:
        mel = transform(wav)[0].T
        frames = mel[: len(mel) // 4 * 4].reshape(-1, 4, mel.shape[1]).mean(dim=1).numpy()
        padded = np.pad(frames, ((CONTEXT_FRAMES, CONTEXT_FRAMES), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT_FRAMES + 1, axis=0)
        return {", ±0.16 s": windows.reshape(len(frames), -1).astype(np.float32)}

    return embed


def average(matrix: Matrix, num_frames: int) -> Matrix:
    """Return means of so many rows each, without a rest."""
    kept = matrix[: max(1, len(matrix) // num_frames) * num_frames]
    return np.asarray(kept.reshape(-1, min(num_frames, len(kept)), matrix.shape[1]).mean(axis=1), np.float32)
