"""Windows a second by precision, batch and way of calling, and the published code beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.conformer_variants import capture
from benchmarks.gpu.frontend_variants import compile_for
from benchmarks.gpu.setting import PRECISIONS, Setting, cudnn_tries
from benchmarks.published import load_published
from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import compute_dtype, float32_arithmetic


def measure_throughput(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time the inference model as it is, at every batch size."""
    for precision in PRECISIONS:
        model = build(setting, precision)
        for batch_size in setting.batch_sizes if precision in ("bfloat16", "tf32") else setting.batch_sizes[2:4]:
            waveforms = setting.draw_waveforms(batch_size)
            put(f"{precision}, {batch_size} at once", _measure(setting, model, waveforms))


def measure_modes(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time what production does not use: cuDNN's trying, CUDA graphs, compiled layers."""
    for precision in ("bfloat16", "tf32"):
        waveforms = setting.draw_waveforms(setting.batch_size)
        model = build(setting, precision)
        with cudnn_tries(True):
            put(f"{precision}, eager, cuDNN tries", _measure(setting, model, waveforms))
        put(f"{precision}, as a graph", _measure(setting, model, waveforms, as_graph=True))
        if precision == "bfloat16":
            compile_layers(setting, model)
            put(f"{precision}, compiled layers", _measure(setting, model, waveforms))


def measure_published(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time the published code; reduced precisions by autocast, as its users run it."""
    if setting.reference is None:
        put("published", "no checkout was named (--reference)")
        return
    published = load_published(setting.reference, setting.checkpoint_path).to(setting.device)
    for precision in PRECISIONS:
        dtype = compute_dtype(precision)
        for batch_size in {setting.batch_sizes[2], setting.batch_size}:
            waveforms = setting.draw_waveforms(batch_size)

            def call(waveforms: Tensor = waveforms, dtype: torch.dtype = dtype) -> Any:
                with torch.autocast(setting.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    return published.get_latent(waveforms, layer_ix=setting.layer)

            with float32_arithmetic(setting.device, allow_tf32=precision == "tf32"):
                put(f"{precision}, {batch_size} at once", _measure_call(setting, call, batch_size))


def build(setting: Setting, precision: str) -> MusicFM25Hz:
    """Return the inference model."""
    return MusicFM25Hz.for_inference(setting.checkpoint, str(setting.device), precision=precision)


def compile_layers(setting: Setting, model: MusicFM25Hz) -> None:
    """Have every layer of a model's Conformer compiled; they share one code."""
    layers = [compile_for(setting, layer) for layer in model.conformer.layers]
    model.conformer.layers = nn.ModuleList(layers)


def _measure(setting: Setting, model: MusicFM25Hz, waveforms: Tensor, as_graph: bool = False) -> dict[str, Any]:
    call = partial(model.get_latent, waveforms, setting.layer)
    return _measure_call(setting, call, len(waveforms), as_graph)


def _measure_call(
    setting: Setting, call: Callable[[], Any], num_windows: int, as_graph: bool = False
) -> dict[str, Any]:
    """Return windows a second, TFLOP/s and peak memory of a call, or why it failed."""
    if setting.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = setting.time(capture(setting, call) if as_graph else call, seconds=0.3)
    except RuntimeError as error:
        return {"failed": str(error)[:300]}
    rate = num_windows / seconds
    row = {"windows/s": rate, "TFLOP/s": rate * setting.window_tflop}
    if setting.is_gpu:
        row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row
