"""How a model is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError


@dataclass(frozen=True)
class TuningRecipe:
    """Everything that a fine-tuning's course follows from, beside labels and audio.

    A step is ``num_slots`` micro-batches of ``num_crops`` crops, shared out among the workers: two workers of one
    slot each take the same step as one worker of two.

    Args:
        weights_sha256: Of the checkpoint that it begins with.
        labels_sha256: Of the tracks, their labels and splits.
        layer: Hidden state that the head gets, or its mean over time; what comes after it is not trained.
        head_kind: ``linear`` or ``mlp``.
        num_steps: Steps of the optimiser at most.
        peak_lr: Learning rate of the encoder after the warm-up.
        head_lr: That of the head.
        num_warmup_steps: Steps over which they rise.
        weight_decay: Of AdamW, for weights of two dimensions or more.
        max_grad_norm: Gradients are scaled down to this norm.
        window_s: Length of a crop.
        num_crops: Crops of a micro-batch.
        num_slots: Micro-batches of a step.
        dropout: Of all dropout layers of the encoder.
        patience: Measurements without a better one after which it stops.
        precision: ``float32`` or ``bfloat16`` (autocast).
        seed: Of the head and all draws.
    """

    weights_sha256: str
    labels_sha256: str
    layer: int
    head_kind: str = "linear"
    num_steps: int = 2000
    peak_lr: float = 1e-5
    head_lr: float = 1e-4
    num_warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    window_s: float = 30.0
    num_crops: int = 8
    num_slots: int = 2
    dropout: float = 0.1
    patience: int = 5
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window_s < 1:
            raise UsageError(f"expected crops of a second or more, found {self.window_s} s")

    @property
    def window_frames(self) -> int:
        """Mel frames of a crop."""
        return round(self.window_s * 25) * 4
