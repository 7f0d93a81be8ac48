"""The MusicFM 25 Hz model: waveform at 24 kHz in, hidden states at 25 frames a second out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from musicfm_model.attention import check_attention
from musicfm_model.checkpoint import Checkpoint, resolve_checkpoint
from musicfm_model.checkpoint_files import MEAN_KEY, STD_KEY, read_stats
from musicfm_model.config import ModelConfig, check_sizes, resolve_layer
from musicfm_model.conformer import Conformer
from musicfm_model.constants import HOP_LENGTH, MEL_FRAMES_PER_TOKEN
from musicfm_model.folded_frontend import FoldedFrontend
from musicfm_model.frontend import ConvFrontend
from musicfm_model.gpu.fused_frontend import FusedFrontend
from musicfm_model.gpu.shapes import attention_without_plans
from musicfm_model.inference import optimize
from musicfm_model.log_mel import LogMel
from musicfm_model.precision import compute_dtype, float32_arithmetic
from musicfm_model.pretraining import mask_waveform, masked_prediction_loss
from musicfm_model.quantizer import RandomProjectionQuantizer, build_quantizers
from musicfm_model.without_values import without_values

FEATURE = "melspec_2048"  # the one feature that the published code can compute
_STAT_PATH = "./data/fma_stats.json"


class MusicFM25Hz(nn.Module):
    """MusicFM: log-mel frames, two residual convolutions, a Conformer, and a codebook to predict.

    The constructor takes the arguments of the published one (``model/musicfm_25hz.py``), with its defaults, so
    that users change an import alone; ``from_checkpoint`` is shorter. Module names are the published ones.

    With a checkpoint, sizes are read off its tensors; one that says otherwise, unless default, is an error.

    Args:
        num_codebooks: Codebooks; the first one gives the targets.
        codebook_dim: Width of a codebook entry.
        codebook_size: Entries of a codebook.
        features: Only ``["melspec_2048"]``, as in the published checkpoints.
        hop_length: Samples between mel frames.
        n_mels: Mel bands.
        conv_dim: Channels of the residual convolutions.
        encoder_dim: Width of the Conformer.
        encoder_depth: Layers of the Conformer.
        mask_hop: Length of a masked stretch in seconds.
        mask_prob: Probability of masking a stretch.
        is_flash: Accepted for the published call. It asks for PyTorch's fused attention, which is the default
            here anyway and, unlike there, drops nothing in evaluation; flash-attn is ``attention="flash"``.
        stat_path: Statistics file; None to find it beside the checkpoint. ``msd`` and ``fma`` bring their own.
        model_path: Checkpoint (see ``load_checkpoint``), or None for a fresh model.
        attention: Back end ``sdpa``, ``eager`` or ``flash``.
        precision: ``float32``, ``tf32``, ``bfloat16`` or ``float16``.
        num_heads, ffn_dim: Attention heads, of an even width each, and feed-forward width of a fresh model.

    Raises:
        CheckpointError: A file is missing, damaged, or not what is expected.
        ValueError: An argument is unknown, contradicts the checkpoint, or names a back end that cannot work.
    """

    quantizer_melspec_2048_0: RandomProjectionQuantizer

    def __init__(
        self,
        num_codebooks: int = 1,
        codebook_dim: int = 16,
        codebook_size: int = 4096,
        features: Sequence[str] = (FEATURE,),
        hop_length: int = HOP_LENGTH,
        n_mels: int = 128,
        conv_dim: int = 512,
        encoder_dim: int = 1024,
        encoder_depth: int = 12,
        mask_hop: float = 0.4,
        mask_prob: float = 0.6,
        is_flash: bool = False,
        stat_path: str | None = _STAT_PATH,
        model_path: str | Checkpoint | None = "./data/pretrained_fma.pt",
        *,
        attention: str = "sdpa",
        precision: str = "float32",
        num_heads: int = ModelConfig.num_heads,
        ffn_dim: int = ModelConfig.ffn_dim,
    ) -> None:
        super().__init__()
        _check_arguments(features, is_flash, attention, precision)
        dtype = compute_dtype(precision)
        config = ModelConfig(
            num_codebooks=num_codebooks,
            codebook_dim=codebook_dim,
            codebook_size=codebook_size,
            n_mels=n_mels,
            conv_dim=conv_dim,
            embed_dim=encoder_dim,
            num_layers=encoder_depth,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
        )
        checkpoint = resolve_checkpoint(model_path, stat_path, default_stats=_STAT_PATH)
        if checkpoint is not None:
            check_sizes(config, checkpoint.config)
            config = checkpoint.config
            mean, std = checkpoint.mean, checkpoint.std
        elif stat_path is not None:
            mean, std = read_stats(stat_path)
        else:
            raise ValueError("a model without a checkpoint needs a statistics file as stat_path")
        self.config = config
        self.hop_length = hop_length
        self.mask_hop = mask_hop
        self.mask_prob = mask_prob
        self.num_codebooks = config.num_codebooks
        self.codebook_size = config.codebook_size
        self.features = [FEATURE]
        self.stat = {MEAN_KEY: mean, STD_KEY: std}
        self.precision = precision
        # Tensors that a checkpoint is about to replace are not worth drawing.
        with without_values() if checkpoint else nullcontext():
            self._build(config, attention)
        if checkpoint is not None:
            self.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
        self.to(dtype)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, attention: str = "sdpa", precision: str = "float32") -> Self:
        """Build the model of a loaded checkpoint, in evaluation mode.

        In float32 and tf32 on the CPU the model shares the checkpoint's memory: do not train one of two
        models made from the same ``Checkpoint``.

        Args:
            checkpoint: From ``load_checkpoint``.
            attention: Back end ``sdpa``, ``eager`` or ``flash``.
            precision: ``float32``, ``tf32``, ``bfloat16`` or ``float16``.

        Raises:
            ValueError: An unknown name, or ``flash`` where it cannot work.
        """
        return cls(model_path=checkpoint, attention=attention, precision=precision).eval()

    @classmethod
    def for_inference(
        cls, checkpoint: Checkpoint, device: str = "cpu", attention: str = "sdpa", precision: str = "float32"
    ) -> Self:
        """Build a model that cannot be trained or saved, and computes the same faster: ``inference.optimize``.

        Arguments and errors are those of ``from_checkpoint``; ``device`` is any torch device.
        """
        check_attention(attention, precision)
        model = cls.from_checkpoint(checkpoint)  # in float32: rounded after folding
        model.precision = precision
        optimize(model, torch.device(device), attention)
        return model.to(device)

    @property
    def num_layers(self) -> int:
        """Layers of the Conformer: the index of the last hidden state."""
        return len(self.conformer.layers)

    @property
    def embed_dim(self) -> int:
        """Width of a hidden state."""
        return self.linear.in_features

    def get_hidden_states(self, wav: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Return several hidden states out of one pass that stops after the last one asked for.

        Gradients flow unless the caller turns them off.

        Args:
            wav: (B, S) samples at 24 kHz, at least 1025 of them, of any floating dtype, on the model's
                device.
            layers: Indices of hidden states: 0 is the front end's output, ``num_layers`` the encoder's
                output after its final layer norm; negative ones count from the end, so -1 is ``num_layers``.

        Returns:
            For each of ``layers`` (B, T, embed_dim) in the model's dtype, T = ceil(floor(S / 240) / 4).

        Raises:
            ValueError: A layer does not exist, none is named, or the waveform is unusable.
        """
        resolved = {layer: resolve_layer(layer, self.num_layers) for layer in layers}
        if not resolved:
            raise ValueError("expected at least one layer, found none")
        hidden_states = self.encode_frames(self.encode_mel(self.compute_mel(wav)), set(resolved.values()))
        return {layer: hidden_states[index] for layer, index in resolved.items()}

    def compute_mel(self, wav: Tensor) -> Tensor:
        """Return the normalised log-mel of (B, S) samples: (B, n_mels, floor(S / 240)) float32.

        Raises:
            ValueError: The waveform is unusable.
        """
        return self._normalize(self.preprocessor_melspec_2048(wav))

    def encode_mel(self, mel: Tensor) -> Tensor:
        """Return hidden state 0, (B, ceil(F / 4), embed_dim), of a normalised log-mel (B, n_mels, F)."""
        with float32_arithmetic(mel.device, allow_tf32=self.precision == "tf32"):
            frames: Tensor = self.conv(mel.to(self.linear.weight.dtype))
        return frames

    def encode_frames(self, frames: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Return hidden states, from 0 to ``num_layers``, of hidden state 0: (B, T, embed_dim) each."""
        attention = attention_without_plans() if isinstance(self.conv, FusedFrontend) else nullcontext()
        with float32_arithmetic(frames.device, allow_tf32=self.precision == "tf32"), attention:
            hidden_states: dict[int, Tensor] = self.conformer(frames, layers)
        return hidden_states

    def get_latent(self, x: Tensor, layer_ix: int = 12) -> Tensor:
        """Return one hidden state, (B, T, embed_dim), computing no layer beyond it: see ``get_hidden_states``."""
        return self.get_hidden_states(x, [layer_ix])[layer_ix]

    def get_predictions(self, x: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Return the codebook prediction and all hidden states of (B, S) samples at 24 kHz.

        Returns:
            ``{"melspec_2048": logits}`` with logits (B, T, codebook_size), and ``num_layers + 1`` hidden
            states of (B, T, embed_dim).
        """
        hidden_states = self.get_hidden_states(x, range(self.num_layers + 1))
        with float32_arithmetic(x.device, allow_tf32=self.precision == "tf32"):
            logits = self.linear(hidden_states[self.num_layers])
        return {FEATURE: logits}, tuple(hidden_states.values())

    @torch.no_grad()
    def get_targets(self, x: Tensor) -> dict[str, Tensor]:
        """Return the token that the quantiser gives every 25 Hz frame; in float32 whatever the precision.

        Args:
            x: (B, S) samples at 24 kHz whose number of mel frames, floor(S / 240), is a multiple of 4.

        Returns:
            ``{"melspec_2048": tokens}`` with tokens (B, T) int64.

        Raises:
            ValueError: The waveform is unusable, or its last token would be cut short.
        """
        mel = self.compute_mel(x).transpose(1, 2)
        if mel.shape[1] % MEL_FRAMES_PER_TOKEN:
            raise ValueError(
                f"expected a multiple of {MEL_FRAMES_PER_TOKEN} mel frames of {self.hop_length} samples, "
                f"found {mel.shape[1]}: crop the waveform"
            )
        stacked = mel.reshape(len(mel), -1, MEL_FRAMES_PER_TOKEN * mel.shape[2])
        return {FEATURE: self.quantizer_melspec_2048_0(stacked)}

    def masking(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mask random stretches of a waveform; see ``pretraining.mask_waveform``."""
        return mask_waveform(x, self.mask_hop, self.mask_prob, self.hop_length)

    def get_loss(
        self, logits: dict[str, Tensor], target_tokens: dict[str, Tensor], masked_indices: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return losses and accuracies by feature; see ``pretraining.masked_prediction_loss``."""
        loss, accuracy = masked_prediction_loss(logits[FEATURE], target_tokens[FEATURE], masked_indices)
        return {FEATURE: loss}, {FEATURE: accuracy}

    def forward(
        self, x: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...], dict[str, Tensor], dict[str, Tensor]]:
        """Mask (B, S) samples at 24 kHz, predict the tokens of the unmasked ones, and score what was masked.

        Returns:
            Logits and hidden states as from ``get_predictions``, losses and accuracies as from ``get_loss``.
        """
        target_tokens = self.get_targets(x)
        masked, masked_indices = self.masking(x)
        logits, hidden_states = self.get_predictions(masked)
        losses, accuracies = self.get_loss(logits, target_tokens, masked_indices)
        return logits, hidden_states, losses, accuracies

    def _build(self, config: ModelConfig, attention: str) -> None:
        self.preprocessor_melspec_2048 = LogMel(self.hop_length, config.n_mels)
        for index, quantizer in enumerate(build_quantizers(config)):
            self.add_module(f"quantizer_{FEATURE}_{index}", quantizer)
        self.conv: ConvFrontend | FoldedFrontend | FusedFrontend = ConvFrontend(
            config.conv_dim, config.embed_dim, config.n_mels
        )
        self.conformer = Conformer(config, attention)
        self.linear = nn.Linear(config.embed_dim, config.codebook_size)
        # Never read here: the published model keeps it for sequence classification.
        self.cls_token = nn.Parameter(nn.init.normal_(torch.empty(config.embed_dim)))

    def _normalize(self, mel: Tensor) -> Tensor:
        return (mel - self.stat[MEAN_KEY]) / self.stat[STD_KEY]


def _check_arguments(features: Sequence[str], is_flash: bool, attention: str, precision: str) -> None:
    """Raise ``ValueError`` for features that are not the published ones, or a back end that cannot work."""
    if list(features) != [FEATURE]:
        raise ValueError(f"unknown features {list(features)}: expected [{FEATURE!r}]")
    if is_flash and attention == "eager":
        raise ValueError("is_flash asks for fused attention, attention='eager' for none: leave one out")
    check_attention(attention, precision)
