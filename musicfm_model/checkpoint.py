"""Loading, checking and converting checkpoints: the one place that knows how they are stored."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fsspec.core import url_to_fs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from musicfm_model.checkpoint_files import (
    MEAN_KEY,
    PUBLISHED,
    STD_KEY,
    Options,
    check_md5,
    find_stats,
    local_copy,
    parse_stats,
    read_stats,
)
from musicfm_model.config import ModelConfig, infer_config, list_shapes
from musicfm_model.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]

_PREFIX = "model."  # the published files were saved by a trainer that held the model under this name

_POSITIONAL_CONV = "conformer.pos_conv_embed.conv."
UNUSED_TENSORS = frozenset(
    _POSITIONAL_CONV + name
    for name in (
        "bias",
        "weight_g",
        "weight_v",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    )
)
"""The positional convolution: the published encoder builds and saves it, and never calls it.

Weight norm is saved under the first pair of names by older versions of torch, under the second by newer ones.
"""

# The code from before 2024-02-13 (github.com/minzwon/musicfm up to ce4ba6d) named its modules so.
_WITHDRAWN_PREFIXES = ("quantizer_melspec.", "preprocessor_melspec.")


@dataclass(frozen=True)
class Checkpoint:
    """A checked set of weights with the statistics that belong to it.

    Args:
        state_dict: Tensors by published name, without the ``model.`` prefix and the unused ones; on the CPU.
        config: Sizes, read off the tensors.
        mean: Mean of the log-mel frames, in dB.
        std: Their standard deviation, in dB.
        sha256: Digest of tensors and statistics; the same for a ``.pt`` file and its ``.safetensors`` twin.
    """

    state_dict: dict[str, Tensor]
    config: ModelConfig
    mean: float
    std: float
    sha256: str


def load_checkpoint(
    checkpoint: str, stats: str | None = None, storage_options: Options | None = None
) -> Checkpoint:
    """Load a checkpoint, strictly: every tensor is used or known to be unused, and none is missing.

    Memory holds one copy of the weights (and the page cache another, which it gives up when needed).

    Args:
        checkpoint: ``msd`` or ``fma`` for the published files, or any fsspec URL or local path of a ``.pt``
            file of the published form or a ``.safetensors`` file with the same tensors.
        stats: URL or path of the statistics file. By default the one embedded in a ``.safetensors`` file by
            ``save_checkpoint``, else the one beside the checkpoint (see ``find_stats``).
        storage_options: Keyword arguments of the URLs' file system; the published names need none.

    Raises:
        CheckpointError: A file is missing, damaged, withdrawn by its authors, or holds something else.
    """
    published = PUBLISHED.get(checkpoint)
    if published is None:
        url, options, md5 = checkpoint, storage_options, None
    elif stats is None:
        url, options, md5 = published.url, None, published.md5
    else:
        raise CheckpointError(
            f"the published checkpoint {checkpoint} has its own statistics, found {stats} as well: leave "
            f"them out, or name the checkpoint by its URL {published.url}"
        )
    with local_copy(url, options) as local:
        check_md5(local, url, md5)
        read = _read_safetensors if url.lower().endswith(".safetensors") else _read_pickle
        tensors, metadata = read(local, url)
    config = _check_tensors(tensors, url)
    if published is not None:
        mean, std = read_stats(published.stats_url, md5=published.stats_md5)
    elif stats is None and MEAN_KEY in metadata:
        mean, std = _parse_metadata(metadata, url)
    else:
        mean, std = read_stats(stats or find_stats(url, options), options)
    return Checkpoint(tensors, config, mean, std, hash_weights(tensors, mean, std))


def resolve_checkpoint(
    model_path: str | Checkpoint | None, stat_path: str | None, default_stats: str
) -> Checkpoint | None:
    """Return what the published constructor's two paths name: a checkpoint, loaded if need be, or None for none.

    Args:
        model_path: A loaded checkpoint, what ``load_checkpoint`` takes, or nothing.
        stat_path: Of the statistics file.
        default_stats: The published default of that, which published names, with statistics of their own, ignore.

    Raises:
        CheckpointError: As from ``load_checkpoint``.
    """
    if isinstance(model_path, Checkpoint):
        return model_path
    if not model_path:
        return None
    brings_stats = model_path in PUBLISHED and stat_path == default_stats
    return load_checkpoint(model_path, None if brings_stats else stat_path)


def save_checkpoint(checkpoint: Checkpoint, url: str, storage_options: Options | None = None) -> None:
    """Write a checkpoint as one ``.safetensors`` file with its statistics embedded.

    Args:
        checkpoint: What to write.
        url: Any fsspec URL or local path, ending in ``.safetensors``.
        storage_options: Keyword arguments of its file system.

    Raises:
        CheckpointError: The name has another ending, or the file cannot be written.
    """
    if not url.endswith(".safetensors"):
        raise CheckpointError(f"{url}: expected a target that ends in .safetensors")
    metadata = {"format": "pt", MEAN_KEY: repr(checkpoint.mean), STD_KEY: repr(checkpoint.std)}
    try:
        with TemporaryDirectory(prefix="musicfm-") as folder:
            local = Path(folder) / "checkpoint.safetensors"
            save_file(checkpoint.state_dict, local, metadata)
            fs, path = url_to_fs(url, **(storage_options or {}))
            fs.makedirs(fs._parent(path), exist_ok=True)
            fs.put_file(str(local), path)
    except Exception as error:
        raise CheckpointError(
            f"cannot write {url}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def hash_weights(tensors: Mapping[str, Tensor], mean: float, std: float) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of the tensors, by name, and the statistics."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    digest.update(struct.pack("<dd", mean, std))
    return digest.hexdigest()


def _read_pickle(local: Path, url: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the used tensors of a file of the published form, and no metadata."""
    try:
        content = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{url}: expected a PyTorch checkpoint that holds tensors and plain values only, "
            f"found {_describe_file(local)} ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{url}: expected a dictionary, found a {type(content).__name__}")
    if "state_dict" not in content:
        _check_not_withdrawn(content, url)
        found = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise CheckpointError(f'{url}: expected a "state_dict" at the top level, found {found}')
    state_dict = content["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(x, Tensor) for x in state_dict.values()):
        raise CheckpointError(f'{url}: expected tensors by name under "state_dict", found something else')
    # A trainer's file may hold an optimiser's state too: mapped, it stays on disk, and only these are copied.
    return {name: _widen(state_dict[key]) for name, key in _list_used(state_dict).items()}, {}


def _read_safetensors(local: Path, url: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the used tensors and the metadata of a safetensors file."""
    try:
        with safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, so that nothing depends on the mapped file afterwards.
            tensors = {name: _widen(file.get_tensor(key)) for name, key in _list_used(file.keys()).items()}
    except Exception as error:
        raise CheckpointError(
            f"{url}: expected a safetensors file, found {_describe_file(local)} ({type(error).__name__})"
        ) from error
    return tensors, metadata


def _widen(tensor: Tensor) -> Tensor:
    """Return a copy, in float32 where a file keeps half precision to be small: each half is a float32, exactly."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor.clone()


def _list_used(keys: Any) -> dict[str, str]:
    """Map the model's name of each tensor to its key in the file, without those known to be unused."""
    keys = list(keys)
    prefix = _PREFIX if all(str(key).startswith(_PREFIX) for key in keys) else ""
    names = {str(key).removeprefix(prefix): key for key in keys}
    return {name: key for name, key in names.items() if name not in UNUSED_TENSORS}


def _check_tensors(tensors: Mapping[str, Tensor], url: str) -> ModelConfig:
    """Check names, shapes, dtypes and that all values are finite, and return the sizes."""
    _check_not_withdrawn(tensors, url)
    try:
        config = infer_config(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{url}: {error}") from error
    expected = list_shapes(config)
    faults = [
        _name_some("missing tensors", expected.keys() - tensors.keys()),
        _name_some("unexpected tensors", tensors.keys() - expected.keys()),
    ]
    for name in sorted(expected.keys() & tensors.keys()):
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        expected_dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        if shape != expected[name]:
            faults.append(f"{name} of shape {shape} where {expected[name]} is expected")
        elif dtype != expected_dtype:
            faults.append(f"{name} of {dtype} where {expected_dtype} is expected")
        elif not torch.isfinite(tensors[name]).all():
            faults.append(f"{name} with values that are not finite: a training that diverged, or a damaged file")
    faults = [fault for fault in faults if fault]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{url}: expected the tensors of a MusicFM 25 Hz model of {config.num_layers} layers and "
            f"{config.embed_dim} dimensions, found {'; '.join(faults[:5])}{more}"
        )
    return config


def _check_not_withdrawn(tensors: Mapping[Any, Any], url: str) -> None:
    if any(str(key).removeprefix(_PREFIX).startswith(_WITHDRAWN_PREFIXES) for key in tensors):
        raise CheckpointError(
            f"{url}: expected a MusicFM checkpoint of 2024-02-13 or later, found one from before "
            "(tensors quantizer_melspec.* or preprocessor_melspec.*), which its authors withdrew as "
            "incorrect: download pretrained_msd.pt or pretrained_fma.pt again, or use the names msd or fma"
        )


def _parse_metadata(metadata: Mapping[str, str], url: str) -> tuple[float, float]:
    try:
        content = {key: float(metadata[key]) for key in (MEAN_KEY, STD_KEY)}
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{url}: expected numbers as {MEAN_KEY} and {STD_KEY} in the metadata, found {dict(metadata)}"
        ) from error
    return parse_stats(content, url)


def _name_some(title: str, names: set[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {title} ({', '.join(sorted(names)[:3])}{more})" if names else ""


def _describe_file(local: Path) -> str:
    """Say in a few words what a file that does not load seems to be."""
    size_bytes = local.stat().st_size
    with local.open("rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: fetch the file itself"
    if head.lstrip().startswith(b"<"):
        return "a web page: download the file itself"
    if head.startswith(b"PK") and not zipfile.is_zipfile(local):
        return f"a truncated archive of {size_bytes} bytes: download it again"
    if head.startswith((b"PK", b"\x80")):
        return f"a pickle of other things, or a damaged one ({size_bytes} bytes)"
    return f"{size_bytes} bytes of something else, or a damaged file"
