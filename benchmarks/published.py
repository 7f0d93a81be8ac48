"""The published code, from a checkout of it, at any sizes.

It was run with transformers 4.57 and einops. Its configuration comes from this file, for the Hugging Face Hub may
be out of reach, and other sizes than the published ones are asked for.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from musicfm_model.checkpoint import load_checkpoint

# What "facebook/wav2vec2-conformer-rope-large-960h-ft" says beside the sizes, as far as the model reads it.
_ENCODER = {"hidden_act": "swish", "position_embeddings_type": "rotary"}


def load_published(checkout: Path, checkpoint: Path) -> Any:
    """Build the published model for a checkpoint of the published form; in evaluation mode.

    Args:
        checkout: A folder called ``musicfm``: its imports say so.
        checkpoint: A ``.pt`` file, its statistics beside it as ``<stem>_stats.json``.
    """
    sys.path.insert(0, str(checkout.resolve().parent))
    sizes = load_checkpoint(str(checkpoint)).config
    Wav2Vec2ConformerConfig: Any = importlib.import_module("transformers").Wav2Vec2ConformerConfig  # noqa: N806

    def make_config(_: str) -> Any:
        return Wav2Vec2ConformerConfig(
            **_ENCODER,
            intermediate_size=sizes.ffn_dim,
            num_attention_heads=sizes.num_heads,
            conv_depthwise_kernel_size=sizes.depthwise_kernel_size,
        )

    with patch.object(Wav2Vec2ConformerConfig, "from_pretrained", make_config):
        module = importlib.import_module("musicfm.model.musicfm_25hz")
        return module.MusicFM25Hz(
            codebook_dim=sizes.codebook_dim,
            codebook_size=sizes.codebook_size,
            conv_dim=sizes.conv_dim,
            encoder_dim=sizes.embed_dim,
            encoder_depth=sizes.num_layers,
            stat_path=str(checkpoint.with_name(f"{checkpoint.stem}_stats.json")),
            model_path=str(checkpoint),
        ).eval()
