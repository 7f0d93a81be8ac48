"""One line on standard error while a model trains."""

from __future__ import annotations

from tqdm import tqdm

SHOWN = ("cross_entropy", "accuracy", "grad_norm", "audio_s_per_s")


class ProgressLine:
    """Shows steps, time left, and the newest figures; what was measured on held-out tracks gets a line that stays.

    Args:
        num_steps: Of the run.
    """

    def __init__(self, num_steps: int) -> None:
        self._bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True)

    def show(self, figures: dict[str, float]) -> None:
        """Show a line of the curve."""
        self._bar.update(figures["step"] - self._bar.n)
        if "held_out.cross_entropy" in figures:
            self._bar.write(describe_gates(figures))
            return
        self._bar.set_postfix({name: f"{figures[name]:.3g}" for name in SHOWN if name in figures}, refresh=True)

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


def describe_gates(figures: dict[str, float]) -> str:
    """Return one line on held-out figures: prediction beside the unigram's, and the best layers' recall."""
    parts = [
        f"step {figures['step']:.0f}: held-out cross-entropy {figures['held_out.cross_entropy']:.3f} "
        f"(unigram {figures['held_out.unigram_cross_entropy']:.3f}), codes used "
        f"{figures['held_out.codes_used']:.0%}"
    ]
    for kind in ("mean.centred", "mean_std.whitened"):
        recalls = {key.split(".")[1]: value for key, value in figures.items() if key.endswith(f".{kind}")}
        if recalls:
            best = max(recalls, key=recalls.__getitem__)
            parts.append(f"{kind.replace('.', ' ')} recall@1 {recalls[best]:.3f} at {best}")
    return ", ".join(parts)
