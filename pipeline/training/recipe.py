"""What is trained and how: sizes, terms of the loss, augmentation, schedule; and the named presets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from musicfm_model.config import ModelConfig
from pipeline.errors import UsageError

MEL_FRAME_RATE_HZ = 100
FRAMES_PER_TOKEN = 4
MASK_S = 0.4  # published (model/musicfm_25hz.py, mask_hop)
MASK_FRAMES = 40  # mel frames of a masked stretch
MASK_PROB = 0.6  # published (mask_prob)


@dataclass(frozen=True)
class Augmentation:
    """How far a crop's log-mels may be moved, each by a uniform draw of its own.

    Args:
        prob: Share of the crops that are moved at all.
        max_semitones: Pitch, up or down.
        max_stretch: Tempo, as a share: 0.05 for five percent faster or slower.
        max_gain_db: Loudness, up or down.
        max_filter_db: Height of each of the slow waves over the bands that stand for another sound system.
        low_pass_prob: Share of the moved crops whose upper bands fall off from some band on.
        max_noise_db: Loudest noise floor, relative to the crop's mean power; nothing quieter than 30 dB below it.
    """

    prob: float = 0.8
    max_semitones: float = 2.0
    max_stretch: float = 0.05
    max_gain_db: float = 10.0
    max_filter_db: float = 4.0
    low_pass_prob: float = 0.3
    max_noise_db: float = -15.0


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run's course follows from, beside the corpus.

    A step is ``num_slots`` micro-batches, shared out among the workers: two workers of one slot each take the same
    step as one worker of two slots, since crops, masks and dropout are drawn from (seed, step, slot).

    Args:
        num_steps: Steps of the optimiser.
        peak_lr: Learning rate after the warm-up.
        num_warmup_steps: Steps over which it rises.
        weight_decay: Of AdamW, for weights of two dimensions or more.
        max_grad_norm: Gradients are scaled down to this norm.
        crop_lengths_s: Lengths of the crops, one a step in turn; whole multiples of 0.4 s.
        masked_s: Audio of a slot's masked crops.
        contrast_s: Audio of a slot's unmasked crops, in pairs of one track; 0 for no contrast.
        num_slots: Micro-batches of a step.
        regression_weight: Of the masked log-mel regression beside the masked prediction.
        contrast_weight: Of the contrast through a projector, on mean and deviation over time.
        vector_weight: Of the same contrast on the centred mean over time itself: the vector that a store keeps.
        contrast_layers: Hidden states that the contrast looks at.
        temperature: Of the contrast.
        dropout: Of all dropout layers.
        augmentation: Of every crop; the targets are those of the moved crop.
        precision: ``float32`` or ``bfloat16`` (autocast).
        seed: Of the weights and all draws.
    """

    num_steps: int = 20_000
    peak_lr: float = 4e-4
    num_warmup_steps: int = 1000
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    crop_lengths_s: tuple[float, ...] = (10.0, 4.0)
    masked_s: float = 40.0
    contrast_s: float = 40.0
    num_slots: int = 1
    regression_weight: float = 0.5
    contrast_weight: float = 1.0
    vector_weight: float = 0.5
    contrast_layers: tuple[int, ...] = (2,)
    temperature: float = 0.1
    dropout: float = 0.1
    augmentation: Augmentation = Augmentation()
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for crop_s in self.crop_lengths_s:
            if crop_s <= 0 or abs(crop_s / MASK_S - round(crop_s / MASK_S)) > 1e-6:
                raise UsageError(f"expected crops of whole multiples of {MASK_S} s, found {crop_s} s")
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(f"training computes in float32 or bfloat16, found precision {self.precision!r}")
        if self.num_steps < 1 or self.num_slots < 1:
            raise UsageError(f"expected steps and slots, found {self.num_steps} and {self.num_slots}")

    def crop_frames(self, step: int) -> int:
        """Return how many mel frames the crops of a step have."""
        crop_s = self.crop_lengths_s[step % len(self.crop_lengths_s)]
        return round(crop_s / MASK_S) * MASK_FRAMES


NANO = ModelConfig(embed_dim=192, num_layers=5, num_heads=4, ffn_dim=512, conv_dim=32)
SMALL = ModelConfig(embed_dim=384, num_layers=8, num_heads=6, ffn_dim=1536, conv_dim=128)
PUBLISHED = ModelConfig()

_NANO_RECIPE = Recipe(
    num_steps=3000,
    peak_lr=8e-4,
    num_warmup_steps=360,
    weight_decay=0.02,
    crop_lengths_s=(4.0, 10.0, 4.0, 10.0, 30.0),
    masked_s=400.0,
    contrast_s=640.0,
    contrast_weight=0.5,
    augmentation=Augmentation(prob=0.5, max_gain_db=6.0, max_filter_db=2.0, low_pass_prob=0.2),
    precision="bfloat16",
)
_PUBLISHED_CROPS = Recipe(
    crop_lengths_s=(30.0,),  # paper, section 3.1
    masked_s=240.0,
    contrast_s=0.0,
    regression_weight=0.0,
    contrast_weight=0.0,
    vector_weight=0.0,
    augmentation=Augmentation(prob=0.0),
    num_steps=400_000,
    num_warmup_steps=30_000,
    peak_lr=1e-4,
)
PRESETS: dict[str, tuple[ModelConfig, Recipe]] = {
    "nano": (NANO, _NANO_RECIPE),
    "small": (SMALL, replace(Recipe(), masked_s=160.0, contrast_s=160.0, peak_lr=3e-4)),
    "published": (PUBLISHED, _PUBLISHED_CROPS),
}
"""Sizes and recipe by name.

``nano`` is what the model in ``demo`` was trained by, on a GPU; ``published`` has the published objective alone.
"""
