"""Checkpoints as the pipeline loads them: what is wrong with one is an error of the pipeline's tree."""

from __future__ import annotations

from musicfm_model import checkpoint as model_checkpoint
from musicfm_model.checkpoint import Checkpoint
from musicfm_model.errors import CheckpointError as ModelCheckpointError
from pipeline.errors import CheckpointError


def load_checkpoint(checkpoint: str, stats: str | None = None) -> Checkpoint:
    """Load a checkpoint, as ``musicfm_model.load_checkpoint`` does.

    Args:
        checkpoint: ``msd`` or ``fma`` for the published files, or any fsspec URL or local path.
        stats: URL of the normalisation file, where it does not lie beside the checkpoint.

    Raises:
        CheckpointError: A file is missing, damaged, withdrawn by its authors, or holds something else.
    """
    try:
        return model_checkpoint.load_checkpoint(checkpoint, stats)
    except ModelCheckpointError as error:
        raise CheckpointError(str(error)) from error
