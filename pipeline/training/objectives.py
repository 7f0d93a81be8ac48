"""The network with what it is trained by: heads that are dropped at export, and the terms of the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicfm_model.model import MusicFM25Hz
from musicfm_model.pretraining import prediction_loss
from pipeline.training.crops import Batch
from pipeline.training.encode import encode, normalize
from pipeline.training.recipe import FRAMES_PER_TOKEN, Recipe

PROJECTOR_DIM = 512
PROJECTION_DIM = 128


class Projector(nn.Module):
    """Pooled frames to the space of the contrast: two batch-normed linear maps.

    Args:
        embed_dim: Width of a frame.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * embed_dim)
        self.inner = nn.Linear(2 * embed_dim, PROJECTOR_DIM, bias=False)
        self.inner_norm = nn.BatchNorm1d(PROJECTOR_DIM)
        self.outer = nn.Linear(PROJECTOR_DIM, PROJECTION_DIM)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map (B, 2 * embed_dim) to (B, PROJECTION_DIM)."""
        inner = F.relu(self.inner_norm(self.inner(self.norm(pooled))))
        out: Tensor = self.outer(inner)
        return out


class Pretraining(nn.Module):
    """A model and the heads beside it; a forward pass gives the loss of a micro-batch and its parts.

    Masked crops and those of the contrast go through the network as one batch, so that its batch norms know the
    mixture that they are trained on.

    Args:
        musicfm: The model, in float32.
        recipe: What the loss is made of.
    """

    def __init__(self, musicfm: MusicFM25Hz, recipe: Recipe) -> None:
        super().__init__()
        self.musicfm = musicfm
        self.recipe = recipe
        n_mels = musicfm.preprocessor_melspec_2048.n_mels
        self.regression = nn.Linear(musicfm.embed_dim, FRAMES_PER_TOKEN * n_mels)
        projected = recipe.contrast_layers if recipe.contrast_s and recipe.contrast_weight else ()
        self.projectors = nn.ModuleDict({str(layer): Projector(musicfm.embed_dim) for layer in projected})
        musicfm.cls_token.requires_grad_(False)  # nothing reads it
        if not recipe.regression_weight:
            self.regression.requires_grad_(False)
        for module in musicfm.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout

    def normalize(self, log_mels: Tensor) -> Tensor:
        """Return (B, T, n_mels) in dB by the model's statistics."""
        return normalize(self.musicfm, log_mels)

    def encode(self, log_mels: Tensor, layers: set[int]) -> dict[int, Tensor]:
        """Return hidden states (B, T / 4, embed_dim) of log-mels (B, T, n_mels) in dB."""
        return encode(self.musicfm, log_mels, layers)

    def tokenize(self, log_mels: Tensor) -> Tensor:
        """Return the target tokens (B, T / 4) of log-mels (B, T, n_mels) in dB."""
        stacked = self.stack(self.normalize(log_mels))
        tokens: Tensor = self.musicfm.quantizer_melspec_2048_0(stacked)
        return tokens

    def stack(self, frames: Tensor) -> Tensor:
        """Put four mel frames one after the other: (B, T, n_mels) to (B, T / 4, 4 * n_mels)."""
        return frames.reshape(len(frames), -1, FRAMES_PER_TOKEN * frames.shape[2])

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts, detached: scalars in float32.

        Parts are ``cross_entropy``, ``accuracy``, ``regression``, ``contrast_<layer>`` and ``vector_<layer>``, as
        far as the recipe has them.
        """
        crops = torch.cat([batch.masked, batch.contrast])
        return self.score(self.encode(crops, self.layers()), batch)

    def layers(self) -> set[int]:
        """Return the hidden states that the loss looks at."""
        return {self.musicfm.num_layers, *self.recipe.contrast_layers}

    def score(self, states: dict[int, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and parts of hidden states, as ``forward`` does.

        Args:
            states: Those of ``layers``, of the masked crops and then the others.
            batch: The micro-batch.
        """
        last, num_masked = states[self.musicfm.num_layers], len(batch.masked)
        loss = last.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}
        if num_masked:
            loss = loss + self._score_prediction(last[:num_masked], batch, parts)
        if num_masked < len(last):
            for layer in self.recipe.contrast_layers:
                frames = states[layer][num_masked:]
                loss = loss + self._score_contrast(layer, frames, batch.contrast_tracks, parts)
        return loss, {name: part.detach().float() for name, part in parts.items()}

    def _score_prediction(self, frames: Tensor, batch: Batch, parts: dict[str, Tensor]) -> Tensor:
        where = batch.masked_tokens.unbind(1)
        masked_frames = frames[where]
        tokens = self.tokenize(batch.clean)[where]
        loss, parts["accuracy"] = prediction_loss(self.musicfm.linear(masked_frames), tokens)
        parts["cross_entropy"] = loss
        if self.recipe.regression_weight:
            targets = self.stack(self.normalize(batch.clean))[where]
            parts["regression"] = F.mse_loss(self.regression(masked_frames).float(), targets)
            loss = loss + self.recipe.regression_weight * parts["regression"]
        return loss

    def _score_contrast(self, layer: int, frames: Tensor, tracks: Tensor, parts: dict[str, Tensor]) -> Tensor:
        recipe, loss = self.recipe, frames.new_zeros((), dtype=torch.float32)
        mean, deviation = pool_over_time(frames)
        if recipe.contrast_weight:
            projected = self.projectors[str(layer)](torch.cat([mean, deviation], dim=1))
            part = contrast_pairs(projected, tracks, recipe.temperature)
            parts[f"contrast_{layer}"] = part
            loss = loss + recipe.contrast_weight * part
        if recipe.vector_weight:
            part = contrast_pairs(mean - mean.mean(dim=0), tracks, recipe.temperature)
            parts[f"vector_{layer}"] = part
            loss = loss + recipe.vector_weight * part
        return loss


def pool_over_time(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over time of (B, T, D), two of (B, D) float32."""
    frames = frames.float()
    mean = frames.mean(dim=1)
    return mean, ((frames - mean[:, None]).square().mean(dim=1) + 1e-5).sqrt()


def contrast_pairs(vectors: Tensor, tracks: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of pairs (SimCLR, arXiv 2002.05709): each vector is to find its partner among all others.

    Args:
        vectors: (2 * num_pairs, D); a pair is two neighbours.
        tracks: (2 * num_pairs,) int64; other pairs of the same track are no negatives.
        temperature: Cosines are divided by it.

    Returns:
        A scalar in nats, float32.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.float(), dim=1)
        scores = unit @ unit.T / temperature
    index = torch.arange(len(vectors), device=vectors.device)
    partner = index ^ 1
    is_left_out = tracks[:, None] == tracks
    is_left_out[index, partner] = False
    return F.cross_entropy(scores.masked_fill(is_left_out, -torch.inf), partner)
