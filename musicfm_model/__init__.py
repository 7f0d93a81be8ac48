"""MusicFM 25 Hz ("A Foundation Model for Music Informatics", arXiv 2311.03318) on torch and torchaudio.

::

    from musicfm_model import MusicFM25Hz, load_checkpoint

    model = MusicFM25Hz.from_checkpoint(load_checkpoint("msd"))
    latents = model.get_latent(wav, layer_ix=7)  # (B, S) at 24 kHz to (B, T, 1024) at 25 Hz
"""

from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.errors import CheckpointError
from musicfm_model.model import MusicFM25Hz

__all__ = ["Checkpoint", "CheckpointError", "MusicFM25Hz", "load_checkpoint"]
