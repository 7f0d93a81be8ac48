"""MusicFM 25 Hz ("A Foundation Model for Music Informatics", arXiv 2311.03318) on torch and torchaudio.

::

    from musicfm_model import MusicFM25Hz, load_checkpoint

    model = MusicFM25Hz.from_checkpoint(load_checkpoint("msd"))
    latents = model.get_latent(wav, layer_ix=7)  # (B, S) at 24 kHz to (B, T, 1024) at 25 Hz

Names are loaded when they are asked for: who only catches ``CheckpointError`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from musicfm_model.errors import CheckpointError

if TYPE_CHECKING:
    from musicfm_model.checkpoint import Checkpoint, load_checkpoint
    from musicfm_model.model import MusicFM25Hz

__all__ = ["Checkpoint", "CheckpointError", "MusicFM25Hz", "load_checkpoint"]

_MODULES = {"Checkpoint": "checkpoint", "load_checkpoint": "checkpoint", "MusicFM25Hz": "model"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
