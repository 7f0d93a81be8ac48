"""Log-mels of a corpus to hidden states, past the model's own front of waveforms."""

from __future__ import annotations

from torch import Tensor

from musicfm_model.checkpoint_files import MEAN_KEY, STD_KEY
from musicfm_model.model import MusicFM25Hz


def normalize(musicfm: MusicFM25Hz, log_mels: Tensor) -> Tensor:
    """Return (B, T, n_mels) in dB by a model's statistics."""
    return (log_mels - musicfm.stat[MEAN_KEY]) / musicfm.stat[STD_KEY]


def encode(musicfm: MusicFM25Hz, log_mels: Tensor, layers: set[int]) -> dict[int, Tensor]:
    """Return hidden states (B, ceil(T / 4), embed_dim) of log-mels (B, T, n_mels) in dB."""
    normalized = normalize(musicfm, log_mels).transpose(1, 2)
    states: dict[int, Tensor] = musicfm.conformer(musicfm.conv(normalized), layers)
    return states
