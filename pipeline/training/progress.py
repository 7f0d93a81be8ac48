"""What is told while a model trains: one line on standard error, and events for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import UsageError
from pipeline.training.worker import Figures

SHOWN = ("loss", "cross_entropy", "accuracy", "grad_norm", "audio_s_per_s")


@contextmanager
def watch_run(
    num_steps: int, show: bool = False, events_folder: Path | None = None
) -> Iterator[Callable[[Figures], None]]:
    """Give what lines of the curve are told to inside the block.

    Args:
        num_steps: Of the run.
        show: Whether to draw the progress line.
        events_folder: Where TensorBoard's events go; None for none.

    Raises:
        UsageError: tensorboardX is asked for and not installed.
    """
    line = ProgressLine(num_steps) if show else None
    write = open_events(events_folder) if events_folder is not None else None

    def tell(figures: Figures) -> None:
        for listener in (write, line.show if line is not None else None):
            if listener is not None:
                listener(figures)

    try:
        yield tell
    finally:
        if line is not None:
            line.close()


def open_events(folder: Path) -> Callable[[Figures], None]:
    """Return what writes figures as TensorBoard's events.

    A run that was killed and goes on writes the steps since its last state again: with the same values.

    Raises:
        UsageError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "expected tensorboardX for --tensorboard, found none: pip install 'music-feature-store[train]'"
        ) from error
    writers: list[SummaryWriter] = []  # none until there is something to write: a run may have ended already

    def write(figures: Figures) -> None:
        if not writers:
            writers.append(SummaryWriter(str(folder)))
        writer = writers[0]
        for name, value in figures.items():
            if name != "step":
                writer.add_scalar(name.replace(".", "/", 1), value, int(figures["step"]))
        writer.flush()

    return write


class ProgressLine:
    """Shows steps, time left, and the newest figures; what was measured gets a line that stays.

    Args:
        num_steps: Of the run.
    """

    def __init__(self, num_steps: int) -> None:
        self._bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True)

    def show(self, figures: Figures) -> None:
        """Show a line of the curve."""
        self._bar.update(figures["step"] - self._bar.n)
        measured = [f"{name} {value:.4g}" for name, value in figures.items() if name.startswith("valid.")]
        if "held_out.cross_entropy" in figures:
            self._bar.write(describe_gates(figures))
        elif measured:
            self._bar.write(f"step {figures['step']:.0f}: {', '.join(measured)}")
        else:
            shown = {name: f"{figures[name]:.3g}" for name in SHOWN if name in figures}
            self._bar.set_postfix(shown, refresh=True)

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


def describe_gates(figures: Figures) -> str:
    """Return one line on held-out figures: prediction beside the unigram's, and the best layers' recall."""
    parts = [
        f"step {figures['step']:.0f}: held-out cross-entropy {figures['held_out.cross_entropy']:.3f} "
        f"(unigram {figures['held_out.unigram_cross_entropy']:.3f}), codes used "
        f"{figures['held_out.codes_used']:.0%}"
    ]
    for kind in ("mean.centred", "mean_std.whitened"):
        best = find_best_layer(figures, kind)
        if best is not None:
            parts.append(f"{kind.replace('.', ' ')} recall@1 {best[1]:.3f} at layer {best[0]}")
    return ", ".join(parts)


def find_best_layer(figures: Figures, kind: str) -> tuple[int, float] | None:
    """Return the layer of the highest recall of a kind, such as ``mean.centred``, and that recall."""
    recalls = {
        int(key.split(".")[1].removeprefix("layer")): value
        for key, value in figures.items()
        if key.startswith("held_out.layer") and key.endswith(f".{kind}")
    }
    best = max(recalls, key=recalls.__getitem__, default=None)
    return None if best is None else (best, recalls[best])
