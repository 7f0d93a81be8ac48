"""The embedder on a GPU that is not there: which operators run, on what, how often, and where it would wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.config import ModelConfig
from musicfm_model.cost import max_windows
from musicfm_model.model import MusicFM25Hz
from pipeline.config import PRECISIONS, RESOLUTIONS, SAMPLE_RATE_HZ, Precision, WindowPolicy
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.embed.transfer import Departure
from pipeline.schema import DECODED
from tests.checkpoints import TINY, write_random_checkpoint
from tests.fake_gpu import CUDA, Log, build_on_processor, fake_gpu, put_on_fake_gpu

LAYER = 2

# What may touch both the host and the GPU: the embedder's copies of waveforms, of features, and of the rows that a
# pooled resolution averages. Anything else would make the host wait, or fail on a real GPU.
COPIES = {"to", "_to_copy", "copy_", "cpu"}

# Kernels of one batch of four whole windows up to layer 2: a rise costs every batch. In float32 there are more:
# convolutions are products there, window by window.
MOST_KERNELS = {"float32": 195, "tf32": 130, "bfloat16": 130, "float16": 130}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return load_checkpoint(str(path))


def build_block(seconds: list[float], wanted: list[str]) -> pa.Table:
    rows = [
        dict.fromkeys(DECODED.names)
        | {"track_id": f"t{index}", "wanted": wanted, "held": []}
        | {"waveform": np.zeros(round(length * SAMPLE_RATE_HZ), np.float32)}
        for index, length in enumerate(seconds)
    ]
    return pa.Table.from_pylist(rows, schema=DECODED)


def embed(
    checkpoint: Checkpoint,
    patch: pytest.MonkeyPatch,
    precision: Precision,
    windows: WindowPolicy,
    seconds: list[float],
    names: list[str],
    batch_size: int = 4,
) -> tuple[Log, list[pa.Table]]:
    """Embed silence on a GPU that is not there; what would arrive are zeros."""
    model = build_on_processor(checkpoint, precision)
    block = build_block(seconds, [f"musicfm-l2-a/{name}" for name in names])

    def arrive(departure: Departure) -> list[tuple[np.ndarray, bool]]:
        return [(np.zeros(shape, np.float32), True) for shape in departure.shapes]

    with fake_gpu() as (mode, log):
        patch.setattr(MusicFM25Hz, "for_inference", lambda *_: put_on_fake_gpu(mode, model))
        patch.setattr(Departure, "wait", arrive)
        settings = EmbedderSettings({"musicfm-l2-a": LAYER}, windows, precision, "sdpa", "cuda", batch_size)
        embedder = Embedder(checkpoint, settings)
        for part in (log.kernels, log.between, log.dtypes):
            part.clear()
        tables = list(embedder.embed_rows(block))
    return log, tables


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("windows", "seconds", "names"),
    [
        ("shared", [30.0], list(RESOLUTIONS)),
        ("shared", [30.0, 29.99, 2.0, 30.0, 65.0], ["16hz", "global"]),
        ("task", [31.0, 31.0], list(RESOLUTIONS)),
    ],
    ids=["one clip", "clips of several lengths", "front end once a track"],
)
def test_everything_stays_on_the_gpu_but_the_copies(
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    windows: WindowPolicy,
    seconds: list[float],
    names: list[str],
) -> None:
    log, tables = embed(checkpoint, monkeypatch, precision, windows, seconds, names)
    print(dict(log.between), log.kernels.total())
    assert sum(table.num_rows for table in tables) == len(seconds)
    for table in tables:
        assert table.column("error_message").null_count == table.num_rows
    assert set(log.between) <= COPIES
    assert log.dtypes["stft"] == {torch.complex64}
    assert log.dtypes["log10"] == log.dtypes["cos"] == log.dtypes["sin"] == {torch.float32}
    dtype = build_on_processor(checkpoint, precision).linear.weight.dtype
    for name in ("linear", "conv2d", "scaled_dot_product_attention", "layer_norm"):
        assert log.dtypes[name] == {dtype}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_of_a_batch_do_not_become_more(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    few, _ = embed(checkpoint, monkeypatch, precision, "shared", [30.0] * 4, ["25hz"])
    print(few.kernels.total(), few.kernels.most_common())
    assert few.kernels.total() <= MOST_KERNELS[precision]
    assert few.between.total() == 2  # waveforms in, features out
    assert few.kernels["linear"] == 1 + 10 * LAYER


def test_no_tensor_of_a_full_batch_is_too_large_to_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = ModelConfig(embed_dim=32, num_layers=2, num_heads=2, ffn_dim=48, codebook_dim=8, codebook_size=64)
    write_random_checkpoint(tmp_path / "wide.pt", config, seed=1)  # the published convolutions
    checkpoint = load_checkpoint(str(tmp_path / "wide.pt"))
    fits = max_windows(config)
    assert fits == 42
    log, _ = embed(checkpoint, monkeypatch, "bfloat16", "shared", [30.0] * (fits + 3), ["25hz"], batch_size=64)
    assert 2**31 * 0.95 < log.largest < 2**31


def test_one_more_window_would_be(tmp_path: Path) -> None:
    config = ModelConfig(embed_dim=32, num_layers=2, num_heads=2, ffn_dim=48, codebook_dim=8, codebook_size=64)
    write_random_checkpoint(tmp_path / "wide.pt", config, seed=1)
    model = build_on_processor(load_checkpoint(str(tmp_path / "wide.pt")), "bfloat16")
    with fake_gpu() as (mode, log):
        put_on_fake_gpu(mode, model)
        with torch.inference_mode():
            stretches_with_margins = torch.empty(max_windows(config) + 1, 128, 3009, device=CUDA)
            model.encode_mel(stretches_with_margins)
    assert log.largest > 2**31


def test_convolutions_see_few_shapes_of_tracks_of_many_lengths(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new shape costs a GPU up to a quarter of a second: see ``musicfm_model/gpu/shapes.py``."""
    seconds = [0.1 + 1.931 * number for number in range(16)]
    log, _ = embed(checkpoint, monkeypatch, "bfloat16", "shared", seconds, ["25hz"])
    assert set(log.shapes) == {"cudnn_convolution_relu", "cudnn_convolution_add_relu", "conv2d"}
    depthwise = {shape for shape in log.shapes["conv2d"] if shape[2] == 1}
    assert {shape[0] for shape in depthwise} <= {1, 2, 4, 8, 16}
    assert {shape[3] for shape in depthwise} == {150, 300, 450, 600, 750}
    widths = {shape[3] for shapes in log.shapes.values() for shape in shapes - depthwise}
    assert all(width % 15 == 0 for width in widths)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_clips_a_few_milliseconds_apart_have_one_width(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    log, _ = embed(checkpoint, monkeypatch, precision, "shared", [30 - 0.01 * n for n in range(12)], ["25hz"])
    depthwise = {shape for shape in log.shapes["conv2d"] if shape[2] == 1}
    assert {shape[3] for shape in depthwise} == {750}
    assert {shape[3] for shape in log.shapes["conv2d"] - depthwise} == {1500}  # half of 3,000 mel frames
    assert {shape[3] for shape in log.shapes["cudnn_convolution_relu"]} == {1500}
    assert {shape[3] for shape in log.shapes["cudnn_convolution_add_relu"]} == {1500, 750}


def test_inference_on_a_gpu_does_not_leave_attention_to_cudnn(checkpoint: Checkpoint) -> None:
    seen: list[bool] = []
    model = build_on_processor(checkpoint, "bfloat16")
    cuda: Any = torch.backends.cuda
    model.conformer.register_forward_pre_hook(lambda *_: seen.append(cuda.cudnn_sdp_enabled()))
    with torch.inference_mode():
        model.encode_frames(torch.zeros(1, 4, model.embed_dim, dtype=torch.bfloat16), (1,))
    assert seen == [False]


def test_norms_and_tables_are_in_float32_in_every_precision(checkpoint: Checkpoint) -> None:
    model = MusicFM25Hz.from_checkpoint(checkpoint, precision="bfloat16")
    kept: Iterator[torch.Tensor] = iter(
        [
            *model.conformer.embed_positions(10),
            *(layer.conv_module.batch_norm.running_var for layer in cast(Any, model.conformer.layers)),
            model.preprocessor_melspec_2048.mel_stft.mel_scale.fb,
        ]
    )
    assert {tensor.dtype for tensor in kept} == {torch.float32}
