"""A probe whose head is trained by Ray Train's workers, as those of fine-tuning train a model."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.probing.fitting import Sharing
from pipeline.probing.probe import ProbeResult, ProbeSettings, find_annotated, run_probe
from pipeline.training.group import Group, join_group, leave_group, run_group

RESULT_FILE = "result.pickle"


def run_shared_probe(settings: ProbeSettings, num_workers: int) -> ProbeResult:
    """Train a head on stored features with several workers, and measure it.

    Args:
        settings: What is probed; its ``scratch`` is a folder that every node sees.
        num_workers: Of Ray Train.

    Raises:
        UsageError: No annotated track is in the store, or a recipe has to be named.
        StorageError: The store cannot be read.
        RunError: The group broke off, there are too few tracks among the reasons, or the folder cannot be used.
    """
    find_annotated(settings)  # a mistake is told before any worker starts
    try:
        with tempfile.TemporaryDirectory(dir=settings.scratch, prefix="musicfm-probe-") as name:
            folder = Path(name)
            run_group(_run_worker, (settings, folder), Group("probe", folder / "ray", num_workers, use_gpu=False))
            result: ProbeResult = pickle.loads((folder / RESULT_FILE).read_bytes())
    except OSError as error:
        raise RunError(
            f"cannot use {settings.scratch or tempfile.gettempdir()}: {error}; name --scratch"
        ) from error
    return result


def _run_worker(config: dict[str, Any]) -> None:
    """Do this Ray Train worker's part; the first one hands the result over."""
    settings, folder = config["settings"]
    worker = join_group()

    def agree(loss: float) -> float:
        return float(worker.share({"loss": loss})["loss"])

    result = run_probe(settings, Sharing(worker.rank, worker.num_workers, worker.wrap, agree))
    if worker.is_first:
        (folder / RESULT_FILE).write_bytes(pickle.dumps(result))
    leave_group()
