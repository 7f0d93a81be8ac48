"""Whether the device computes what it should, before anything is timed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.gpu.setting import PRECISIONS, Setting
from benchmarks.gpu.throughput import build
from musicfm_model.model import MusicFM25Hz

TESTS = ("tests/musicfm_model/test_gpu.py", "tests/pipeline/embed/test_embedder.py")
NOTHING_COLLECTED = 5  # pytest's exit status


def run_tests(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Run the tests that need a GPU: golden figures in all precisions, and what the embedder makes of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (setting.out / "pytest.txt").write_text(done.stdout + done.stderr)
    put("exit status", 0 if done.returncode == NOTHING_COLLECTED and not setting.is_gpu else done.returncode)
    put("summary", done.stdout.strip().splitlines()[-1:])


def check_values(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Compare every precision with float32 on the processor, and a window alone with the same one in a batch."""
    waveforms = setting.draw_waveforms(setting.batch_sizes[-1])
    plain = MusicFM25Hz.from_checkpoint(setting.checkpoint)
    expected = plain.get_latent(waveforms[-1:].cpu(), setting.layer)
    for precision in PRECISIONS:
        model = build(setting, precision)
        alone = model.get_latent(waveforms[-1:], setting.layer)
        found = {"error against float32 on the processor": _compare(alone.cpu(), expected)}
        for batch_size in setting.batch_sizes[-2:]:
            together = model.get_latent(waveforms[-batch_size:], setting.layer)
            found[f"the last of {batch_size} against itself alone"] = _compare(together[-1:], alone)
        put(precision, found)


def _compare(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
