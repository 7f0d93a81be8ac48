"""Random-projection quantiser (BEST-RQ, arXiv 2202.01855): the targets of masked prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.config import ModelConfig
from musicfm_model.constants import MEL_FRAMES_PER_TOKEN
from musicfm_model.precision import Float32Module, float32_arithmetic

QUANTIZER_SEED = 142


class RandomProjectionQuantizer(Float32Module):
    """A fixed random projection and the nearest entry of a fixed random codebook.

    Neither is trained. Both are drawn from a generator of their own with the published seed, so a fresh
    model has the published targets and the global generator is left alone.

    Args:
        input_dim: Width of a stacked mel frame.
        codebook_dim: Width of a codebook entry.
        codebook_size: Entries of the codebook.
        seed: Seed of the two draws (published: 142 for the first codebook, 143 for the next).
    """

    random_projection: Tensor
    codebook: Tensor

    def __init__(self, input_dim: int, codebook_dim: int, codebook_size: int, seed: int) -> None:
        super().__init__()
        # A generator draws on its own device only, so not on the meta device either.
        generator = torch.Generator("cpu").manual_seed(seed)
        projection = torch.empty(input_dim, codebook_dim, device="cpu")
        nn.init.xavier_normal_(projection, generator=generator)
        codebook = torch.empty(codebook_size, codebook_dim, device="cpu")
        nn.init.normal_(codebook, generator=generator)
        self.register_buffer("random_projection", projection)
        self.register_buffer("codebook", codebook)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Return the token of every frame.

        Args:
            frames: (B, T, input_dim) float32: four normalised mel frames, one after the other.

        Returns:
            (B, T) int64 indices into the codebook.
        """
        no_autocast = torch.autocast(frames.device.type, enabled=False)
        with no_autocast, float32_arithmetic(frames.device, allow_tf32=False):
            projected = F.normalize((frames @ self.random_projection).flatten(0, 1), dim=1)
            distances = torch.cdist(F.normalize(self.codebook, dim=1), projected)
        return distances.argmin(dim=0).reshape(frames.shape[:2])


def build_quantizers(config: ModelConfig) -> list[RandomProjectionQuantizer]:
    """Return the fresh quantisers of a model, one for each codebook."""
    return [
        RandomProjectionQuantizer(
            MEL_FRAMES_PER_TOKEN * config.n_mels, config.codebook_dim, config.codebook_size, QUANTIZER_SEED + index
        )
        for index in range(config.num_codebooks)
    ]
