"""Heads: small models on frozen features, and the files that they are kept in.

A file is safetensors; beside the weights it holds, as JSON, what the head was trained for and on. A head works on
features of that recipe and resolution alone: of others its answers would be noise that looks like answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.errors import HeadError
from pipeline.probing.novelty import measure_novelty
from pipeline.storage import Options, read_file, write_file

HEAD_KINDS = ("linear", "mlp")
HIDDEN_DIM = 512
DROPOUT = 0.2
FRAMES_AT_ONCE = 4096  # that a head is applied to
FORMAT = 2  # 1 had heads for sections that also learned where they begin
_METADATA_KEY = "musicfm_head"


@dataclass(frozen=True)
class HeadSpec:
    """What a head is for.

    Args:
        task: Name of a task.
        kind: ``linear``, or ``mlp`` with one hidden layer.
        recipes: Recipe of the features; of several, those whose learned mix it works on.
        resolution: Of the features.
        embed_dim: Values of a feature vector.
        labels: What the outputs stand for, one an output.
        metrics: As measured on the test tracks: value, low and high of each.
        date: When it was trained, ISO 8601.
        decoding: What turns outputs into predictions, such as the threshold of a peak.
    """

    task: str
    kind: str
    recipes: tuple[str, ...]
    resolution: str
    embed_dim: int
    labels: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    date: str = ""
    decoding: Mapping[str, float] = field(default_factory=dict)


class Head(nn.Module):
    """Standardised features in, one output a label out; a step of time at a time.

    Args:
        spec: What it is for. ``kind``, ``recipes``, ``embed_dim`` and ``labels`` give its shape.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        if spec.kind not in HEAD_KINDS:
            raise HeadError(f"expected a head of kind {' or '.join(HEAD_KINDS)}, found {spec.kind!r}")
        self.spec = spec
        num_recipes, num_labels = len(spec.recipes), len(spec.labels)
        shape = (spec.embed_dim,) if num_recipes == 1 else (num_recipes, spec.embed_dim)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(shape))
        self.mix = nn.Parameter(torch.zeros(num_recipes)) if num_recipes > 1 else None
        if spec.kind == "linear":
            self.layers = nn.Sequential(nn.Linear(spec.embed_dim, num_labels))
        else:
            self.layers = nn.Sequential(
                nn.Linear(spec.embed_dim, HIDDEN_DIM),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(HIDDEN_DIM, num_labels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs before any sigmoid or softmax.

        Args:
            features: float32 of shape (..., embed_dim); with several recipes (..., num_recipes, embed_dim).

        Returns:
            float32 of shape (..., num_labels).
        """
        outputs: Tensor = self.layers(self.blend(features))
        return outputs

    def blend(self, features: Tensor) -> Tensor:
        """Return what the layers are given: features as ``forward`` takes them, scaled, several recipes mixed."""
        features = (features - self.feature_mean) / self.feature_std
        return features if self.mix is None else torch.einsum("...rd,r->...d", features, self.mix.softmax(0))

    def mix_weights(self) -> list[float]:
        """Return the share of each recipe in the mix."""
        return [1.0] if self.mix is None else [float(weight) for weight in self.mix.detach().softmax(0)]

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take over the features' mean and standard deviation; a value that never varies is left unscaled.

        Args:
            mean: float32 of the shape of ``feature_mean``.
            std: The same.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    @property
    def head_id(self) -> str:
        """``<task>-<12 hex digits>`` of what decides its answers: not of its date, nor of its figures."""
        spec = replace(self.spec, metrics={}, date="")
        digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return f"{self.spec.task}-{digest.hexdigest()[:12]}"

    def check_features(self, recipes: Sequence[str], resolution: str) -> None:
        """Make sure that features are of the kind that the head was trained on.

        Args:
            recipes: Their recipes, in the order in which they are mixed.
            resolution: Their resolution.

        Raises:
            HeadError: They are not.
        """
        spec = self.spec
        for what, wanted, given in (
            ("recipe", " + ".join(spec.recipes), " + ".join(recipes)),
            ("resolution", spec.resolution, resolution),
        ):
            if wanted != given:
                raise HeadError(
                    f"expected features of {what} {wanted}, which the head {self.head_id} was trained on, found "
                    f"{what} {given}; train a head on these with musicfm probe --save"
                )


def apply_head(
    head: Head, matrix: npt.NDArray[np.float32], frame_rate_hz: float | None
) -> npt.NDArray[np.float32]:
    """Return a head's outputs for one track, computed some minutes at a time.

    Args:
        head: The head, in evaluation mode, on any device.
        matrix: As ``FeatureSet.read`` returns it.
        frame_rate_hz: Of the features; None where the track is one row.

    Returns:
        float32 of shape (num_frames, num_labels); of a head for sections (num_frames, 1 + num_labels), the first
        value the novelty of its features.
    """
    device = head.feature_mean.device
    blended, outputs = [], []
    with torch.inference_mode():
        for start in range(0, len(matrix), FRAMES_AT_ONCE):
            features = head.blend(torch.tensor(matrix[start : start + FRAMES_AT_ONCE], device=device))
            outputs.append(head.layers(features).cpu().numpy())
            if head.spec.task == "structure":
                blended.append(features.cpu().numpy())
    answers = np.concatenate(outputs)
    if head.spec.task != "structure":
        return answers
    assert frame_rate_hz is not None, "sections are told from frames"
    novelty = measure_novelty(np.concatenate(blended), frame_rate_hz)
    return np.concatenate([novelty[:, None], answers], axis=1)


def save_head(head: Head, url: str, options: Options | None = None) -> None:
    """Write a head to a file.

    Args:
        head: The head; its ``spec`` goes along.
        url: Where to.
        options: File system options.

    Raises:
        StorageError: It cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    metadata = {_METADATA_KEY: json.dumps({"format": FORMAT, **asdict(head.spec)}, allow_nan=False)}
    write_file(url, save(tensors, metadata), options)


def load_head(url: str, options: Options | None = None) -> Head:
    """Read a head from its file, ready to be applied.

    Args:
        url: The file.
        options: File system options.

    Raises:
        HeadError: It is no head, or damaged.
        StorageError: It cannot be read.
    """
    data = read_file(url, options)
    try:
        spec = _read_spec(data)
        head = Head(spec)
        head.load_state_dict(load(data))
    except HeadError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise HeadError(
            f"expected a head as musicfm probe --save writes it in {url}, found none, or a damaged one ({said}); "
            "train it again"
        ) from error
    return head.eval()


def _read_spec(data: bytes) -> HeadSpec:
    """Read a head's description off its file's header (safetensors: a length of 8 bytes, then JSON)."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    described: dict[str, Any] = json.loads(header["__metadata__"][_METADATA_KEY])
    written = described.pop("format")
    if written == 1 and described["task"] == "structure":
        raise HeadError(f"expected a head of format {FORMAT}, found 1, which learned boundaries; train it again")
    if written not in (1, FORMAT):
        raise HeadError(f"expected a head of format {FORMAT}, found {written}; use the version that wrote it")
    for name in ("recipes", "labels"):
        described[name] = tuple(described[name])
    return HeadSpec(**described)
