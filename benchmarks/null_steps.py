"""Steps that cost nothing: a decoder and a model that give zeros of the right shapes, so that the rest shows.

They stand in for the real ones in worker processes too, for which they are found by this module's name.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from musicfm_model.checkpoint import load_checkpoint
from musicfm_model.config import ModelConfig
from pipeline.config import SAMPLE_RATE_HZ, RunSettings
from pipeline.embed.embedder import Embedder, EmbedderSettings
from tests.checkpoints import write_random_checkpoint

if TYPE_CHECKING:
    from pipeline.decode.audio import DecodedAudio

WIDE = ModelConfig(num_layers=1, ffn_dim=64, conv_dim=4, codebook_size=16)  # of the published width


def build_null_embedder(path: Path, recipe: str, batch_size: int, window_s: float = 0.0) -> Embedder:
    """Return an embedder whose log-mel, convolutions and Conformer cost nothing; all else is real.

    Args:
        path: Where its checkpoint goes.
        recipe: Recipe id.
        batch_size: Windows in a batch.
        window_s: Seconds for which the model sleeps over each window.
    """
    write_random_checkpoint(path, WIDE, seed=0)
    embedder = Embedder(load_checkpoint(str(path)), EmbedderSettings({recipe: 1}, batch_size=batch_size))
    zeros: dict[tuple[int, ...], Tensor] = {}

    def give(*shape: int) -> Tensor:
        if shape not in zeros:
            zeros[shape] = torch.zeros(shape)
        return zeros[shape]

    turn = Lock()  # as of a GPU, on which a second batch waits for the first

    def encode(frames: Tensor, wanted: Any) -> dict[int, Tensor]:
        if window_s:
            with turn:
                time.sleep(window_s * len(frames))
        return dict.fromkeys(wanted, frames)

    model: Any = embedder.model
    model.preprocessor_melspec_2048.forward = lambda wav: give(len(wav), WIDE.n_mels, wav.shape[1] // 240)
    model._normalize = lambda mel: mel
    model.conv.forward = lambda mel: give(len(mel), -(-mel.shape[2] // 4), WIDE.embed_dim)
    model.conformer.forward = encode
    return embedder


@dataclass(frozen=True)
class NullStart:
    """Starts a null embedder in an actor; what ``dataflow.EmbedderStart`` is to a run.

    Args:
        recipes: The run's recipes by id.
        settings: What to compute.
        batch_size: Windows in a batch.
        window_s: Seconds for which the model sleeps over each window.
    """

    recipes: Any
    settings: RunSettings
    batch_size: int
    window_s: float

    def __call__(self) -> Embedder:
        """Start the embedder here."""
        (recipe,) = self.recipes
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            return build_null_embedder(Path(folder) / "wide.pt", recipe, self.batch_size, self.window_s)


def decode_nothing(data: bytes, max_duration_s: float = 7200.0) -> DecodedAudio:  # noqa: ARG001
    """Return silence as a file asks for it: "seconds of audio, seconds that it takes to decode"."""
    from pipeline.decode.audio import DecodedAudio  # older versions, of which the model is measured, have none
    from pipeline.decode.tags import Tags

    audio_s, taken_s = (float(text) for text in data.split(b","))
    time.sleep(taken_s)
    waveform = make_silence(round(audio_s * SAMPLE_RATE_HZ))
    return DecodedAudio(waveform, "none", SAMPLE_RATE_HZ, 1, audio_s, 0.1, 0.2, 0.0, 0.0, Tags())


@cache
def make_silence(num_samples: int) -> np.ndarray:
    """Return zeros, the same for all that ask for as many."""
    return np.zeros(num_samples, np.float32)
