"""Ways to compute the Conformer's parts on a GPU, each timed alone; a layer eager, compiled, as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.frontend_variants import compile_for
from benchmarks.gpu.setting import Setting
from musicfm_model.conformer import ConformerLayer
from musicfm_model.model import MusicFM25Hz
from musicfm_model.precision import compute_dtype, float32_arithmetic

BACK_ENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def measure_conformers(setting: Setting, put: Callable[[str, Any], None]) -> None:
    """Time parts and layers in bfloat16, tf32 and float32; milliseconds for the batch."""
    for precision in ("bfloat16", "tf32", "float32"):
        dtype = compute_dtype(precision)
        model = MusicFM25Hz.from_checkpoint(setting.checkpoint, precision=precision).to(setting.device)
        layer = model.conformer.layers[0]
        assert isinstance(layer, ConformerLayer)
        num_frames = setting.num_samples // 960
        x = setting.draw(setting.batch_size, num_frames, setting.config.embed_dim, precision=precision)
        rotary = tuple(table.to(dtype) for table in model.conformer.embed_positions(num_frames))
        calls = list_parts(setting, layer, x, rotary) | list_attention(setting, x)
        if precision == "bfloat16":
            compiled = compile_for(setting, layer)
            calls["layer, compiled"] = lambda compiled=compiled, x=x, rotary=rotary: compiled(x, rotary)  # type: ignore[misc]
        with float32_arithmetic(setting.device, allow_tf32=precision == "tf32"):
            for name, call in calls.items():
                put(f"{precision}: {name}", _time(setting, call))
            for name in [name for name in calls if name.startswith("layer,")]:
                put(f"{precision}: {name}, as a graph", _time(setting, calls[name], as_graph=True))


def list_parts(setting: Setting, layer: ConformerLayer, x: Tensor, rotary: Any) -> dict[str, Callable[[], Tensor]]:
    """Return parts of a layer by name: the depthwise convolution in four ways, projections together and apart."""
    weight = layer.conv_module.depthwise_conv.weight.detach()
    width, pad = x.shape[2], weight.shape[2] // 2
    norm = layer.conv_module.batch_norm
    taps = compile_for(setting, _Taps(weight)) if x.dtype == torch.bfloat16 else _Taps(weight)
    attention = layer.self_attn
    both = torch.cat([attention.linear_q.weight, attention.linear_k.weight]).detach()
    half = layer.conv_module.pointwise_conv1.weight.detach().squeeze(2)
    tall, flat = weight.unsqueeze(3), weight.unsqueeze(2)
    return {
        "layer, eager": lambda: layer(x, rotary),
        "depthwise (B, C, T, 1)": lambda: F.conv2d(
            x.transpose(1, 2).unsqueeze(3), tall, padding=(pad, 0), groups=width
        ),
        "depthwise (B, C, 1, T)": lambda: F.conv2d(
            x.transpose(1, 2).unsqueeze(2), flat, padding=(0, pad), groups=width
        ),
        "depthwise (B, C, T)": lambda: F.conv1d(x.transpose(1, 2).contiguous(), weight, padding=pad, groups=width),
        "depthwise by taps": lambda: taps(x),
        "batch norm and swish": lambda: F.silu(norm(x.transpose(1, 2))),
        "gate": lambda: F.glu(torch.cat([x, x], dim=2), dim=2),
        "gate, projection": lambda: F.glu(F.linear(x, half), dim=2),
        "query and key": lambda: attention.linear_k(attention.linear_q(x)),
        "query and key as one": lambda: F.linear(x, both),
        "feed forward": lambda: layer.ffn1(x),
        "layer norm": lambda: layer.ffn1_layer_norm(x),
    }


def list_attention(setting: Setting, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return attention by each of PyTorch's back ends."""
    heads = x.view(*x.shape[:2], setting.config.num_heads, -1).transpose(1, 2)

    def attend(back_end: SDPBackend) -> Tensor:
        with sdpa_kernel(back_end):
            return F.scaled_dot_product_attention(heads, heads, heads)

    calls: dict[str, Callable[[], Tensor]] = {
        f"attention, {name}": lambda back_end=back_end: attend(back_end)  # type: ignore[misc]
        for name, back_end in BACK_ENDS.items()
    }
    return calls | {"attention, PyTorch's choice": lambda: F.scaled_dot_product_attention(heads, heads, heads)}


def capture(setting: Setting, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that replays a CUDA graph of it; a rehearsal calls it as it is."""
    if not setting.is_gpu:
        return call
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class _Taps(torch.nn.Module):
    """A depthwise convolution as a sum of shifted frames, for a compiler to make one kernel of."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.taps = weight.squeeze(1).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        num_taps, num_frames = len(self.taps), x.shape[1]
        padded = F.pad(x, (0, 0, num_taps // 2, num_taps // 2))
        total = x.new_zeros(x.shape, dtype=torch.float32)
        for index in range(num_taps):
            total = total + padded[:, index : index + num_frames].float() * self.taps[index]
        return total.to(x.dtype)


def _time(setting: Setting, call: Callable[[], Any], as_graph: bool = False) -> Any:
    try:
        return 1e3 * setting.time(capture(setting, call) if as_graph else call, seconds=0.15)
    except RuntimeError as error:
        return {"failed": str(error)[:200]}
