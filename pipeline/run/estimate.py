"""Estimate: what a planned run will read, write, take and cost, from a trial of some of its files.

Nothing here knows of Ray: a trial, the plan's rows and what the cluster is go in, figures come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from musicfm_model.config import ModelConfig
from musicfm_model.cost import count_window_tflop
from pipeline.config import (
    RESOLUTIONS,
    SHARED_WINDOW_S,
    Precision,
    WindowPolicy,
    list_window_lengths_s,
)
from pipeline.run.gpus import GPU_TFLOPS
from pipeline.run.trial import Trial, size_pools
from pipeline.store.parts import STORED_BYTES_PER_VALUE

LEDGER_ROW_BYTES = 300  # of `tracks`, in parts of a thousand rows
CLOSING_S = 1.5  # the last commits and the report

GPU_SHARE = 0.5  # of those rates that the model reaches: 0.53 in bfloat16 and 0.51 in tf32 on an H200


@dataclass(frozen=True)
class Cluster:
    """What a run would have.

    Args:
        num_cpus: Cores.
        num_actors: Model actors.
        start_s: Seconds until the first track reaches a model: Ray, worker processes, the model's start.
    """

    num_cpus: float
    num_actors: int
    start_s: float


@dataclass(frozen=True)
class Prices:
    """What an hour or a month costs, in any currency; None where nobody said.

    Args:
        gpu_hour: One GPU for an hour.
        core_hour: One CPU core for an hour.
        gb_month: A gigabyte (10⁹ bytes) stored for a month.
    """

    gpu_hour: float | None = None
    core_hour: float | None = None
    gb_month: float | None = None


@dataclass(frozen=True)
class RunEstimate:
    """What a run over planned tracks comes to.

    Args:
        num_tracks: Tracks to look at.
        num_tried: Files that were tried for it; none gives zeros below.
        num_failed: How many of those cannot be embedded.
        num_known: How many of those have content that the store knows, and cost no more than a read.
        failures: track_id, uri, stage, reason and message of the failed ones.
        audio_s: Seconds of audio in all planned tracks.
        bytes_read: Bytes of their files.
        bytes_written: Bytes of all that a run writes.
        bytes_by_resolution: Of those, the features of each resolution; the rest is the ledger's.
        decode_core_s: Core-seconds of reading, decoding and resampling.
        model_s: Seconds of one model on the device: GPU-seconds, where it is one.
        model_core_s: Core-seconds of the models.
        write_core_s: Core-seconds of encoding and writing.
        device: ``cuda`` or ``cpu``.
        machine: Name of the GPU or processor.
        num_cpus: Cores that the estimate reckons with.
        num_actors: Model actors that it reckons with.
        cores_per_actor: Cores that keep one of them busy.
        bottleneck: ``decode``, ``model`` or ``write``.
        model_busy_share: Share of the time in which the models compute.
        start_s: Seconds before the first track is embedded.
        seconds: Wall time of the run, its start and end included.
        core_hours: What decoding, models and writing take of the cores.
        gpu_hours: What the models take of GPUs.
        cost: Of the machines for the wall time; None without prices.
        storage_cost_per_month: Of what is written; None without a price.
    """

    num_tracks: int = 0
    num_tried: int = 0
    num_failed: int = 0
    num_known: int = 0
    failures: Sequence[Mapping[str, str | None]] = ()
    audio_s: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_by_resolution: dict[str, int] = field(default_factory=dict)
    decode_core_s: float = 0.0
    model_s: float = 0.0
    model_core_s: float = 0.0
    write_core_s: float = 0.0
    device: str = ""
    machine: str = ""
    num_cpus: float = 0.0
    num_actors: int = 0
    cores_per_actor: float = 0.0
    bottleneck: str = ""
    model_busy_share: float = 0.0
    start_s: float = 0.0
    seconds: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    cost: float | None = None
    storage_cost_per_month: float | None = None


def estimate_run(
    planned: pa.Table,
    trial: Trial,
    cluster: Cluster,
    embed_dim: int,
    num_recipes: int = 1,
    prices: Prices = Prices(),
) -> RunEstimate:
    """Extrapolate a trial to all planned tracks.

    Args:
        planned: Rows of ``schema.PLAN``; at least one.
        trial: Of some of them.
        cluster: What the run would have.
        embed_dim: Width of a vector.
        num_recipes: Recipes, each of which gives a track a row in the ledger.
        prices: For the costs.
    """
    bytes_read = _sum_sizes(planned)
    counted = _count_files(planned, trial, bytes_read)
    if not trial.model_s_per_audio_s:
        return RunEstimate(**counted)
    num_sound = planned.num_rows * trial.num_sound / trial.num_files
    audio_s = num_sound * trial.audio_s_per_file * _compare_sizes(bytes_read / planned.num_rows, trial)
    by_resolution = {name: round(rate * audio_s) for name, rate in trial.bytes_out.items()}
    num_rows = num_sound * num_recipes
    if "global" in by_resolution:  # a trial's few vectors are little beside the end of their file
        by_resolution["global"] = round(num_rows * STORED_BYTES_PER_VALUE * embed_dim)
    advice = size_pools(trial, cluster.num_cpus, cluster.num_actors)
    seconds = cluster.start_s + audio_s / advice.audio_s_per_s + CLOSING_S
    work = {
        "decode_core_s": trial.decode_core_s * audio_s,
        "model_core_s": trial.model_core_s * audio_s,
        "write_core_s": trial.write_core_s * audio_s,
    }
    model_s = trial.model_s_per_audio_s * audio_s
    num_gpus = cluster.num_actors if trial.device == "cuda" else 0
    bytes_written = round(sum(by_resolution.values()) + num_rows * LEDGER_ROW_BYTES)
    return RunEstimate(
        **counted,
        **work,
        audio_s=audio_s,
        bytes_written=bytes_written,
        bytes_by_resolution=by_resolution,
        model_s=model_s,
        device=trial.device,
        machine=trial.machine,
        num_cpus=cluster.num_cpus,
        num_actors=cluster.num_actors,
        cores_per_actor=advice.cores_per_actor,
        bottleneck=advice.bottleneck,
        model_busy_share=advice.model_busy_share,
        start_s=cluster.start_s,
        seconds=seconds,
        core_hours=sum(work.values()) / 3600,
        gpu_hours=model_s / 3600 if num_gpus else 0.0,
        cost=_price_machines(seconds, num_gpus, cluster.num_cpus, prices),
        storage_cost_per_month=prices.gb_month and bytes_written / 1e9 * prices.gb_month,
    )


def transfer_trial(
    trial: Trial,
    gpu: str,
    config: ModelConfig,
    layer: int,
    windows: WindowPolicy,
    precision: Precision,
    resolutions: Sequence[str],
) -> Trial:
    """Say what a trial would have found with the model on a GPU that is not at hand.

    The model's time follows from its operations and the GPU's rate; feeding it is taken to keep one core busy.
    Decoding and writing stay as measured.

    Args:
        trial: Made here.
        gpu: Key of ``gpus.GPU_TFLOPS``.
        config: Sizes of the model.
        layer: The deepest layer that is stored.
        windows: Window policy: under ``task`` each window length passes the model.
        precision: Arithmetic.
        resolutions: Wanted resolutions.
    """
    rate = GPU_TFLOPS[gpu][{"float32": 0, "tf32": 1}.get(precision, 2)]
    num_passes = len(list_window_lengths_s(resolutions, windows))
    model_s = count_window_tflop(config, layer) * num_passes / (rate * GPU_SHARE)
    return Trial(
        **{
            **vars(trial),
            "device": "cuda",
            "machine": gpu.upper(),
            "model_s": model_s,
            "window_s": SHARED_WINDOW_S,
            "model_core_s": model_s / SHARED_WINDOW_S,
        }
    )


def describe_estimate(estimate: RunEstimate) -> list[str]:
    """Say an estimate in a few lines for people."""
    if not estimate.num_tracks:
        return ["nothing to do: no track is new or changed"]
    lines = [
        f"{estimate.num_tracks:,} tracks to look at; {estimate.num_tried} files tried, {estimate.num_failed} of "
        f"them cannot be embedded, {estimate.num_known} the store knows already"
    ]
    if not estimate.audio_s:
        return lines
    names = [name for name in RESOLUTIONS if name in estimate.bytes_by_resolution]
    written = ", ".join(f"{name} {estimate.bytes_by_resolution[name] / 1e6:,.1f}" for name in names)
    device = f"{estimate.num_actors} × {estimate.machine}" if estimate.gpu_hours else estimate.machine
    lines += [
        f"audio    {estimate.audio_s / 3600:,.2f} hours",
        f"read     {estimate.bytes_read / 1e6:,.1f} MB",
        f"written  {estimate.bytes_written / 1e6:,.1f} MB ({written}, with the ledger)",
        f"work     {estimate.core_hours:,.3f} core-hours, {estimate.gpu_hours:,.3f} GPU-hours "
        f"(decode {estimate.decode_core_s:,.0f}, model {estimate.model_core_s:,.0f}, write "
        f"{estimate.write_core_s:,.0f} core-seconds; model {estimate.model_s:,.0f} s)",
        f"pools    {estimate.cores_per_actor:,.1f} cores keep one model busy; with {estimate.num_cpus:g} cores "
        f"and {device} models are busy {estimate.model_busy_share:.0%} of the time: the bottleneck is "
        f"{estimate.bottleneck}",
        f"time     about {estimate.seconds:,.0f} s, of which {estimate.start_s:,.0f} s to start",
    ]
    if estimate.cost is not None:
        lines.append(f"cost     {estimate.cost:,.2f} for the machines")
    if estimate.storage_cost_per_month is not None:
        lines.append(f"storage  {estimate.storage_cost_per_month:,.2f} a month")
    return lines


def _count_files(planned: pa.Table, trial: Trial, bytes_read: int) -> dict[str, Any]:
    return {
        "num_tracks": planned.num_rows,
        "num_tried": trial.num_files,
        "num_failed": trial.num_failed,
        "num_known": len(trial.known),
        "failures": trial.failures,
        "bytes_read": bytes_read,
    }


def _compare_sizes(mean_bytes: float, trial: Trial) -> float:
    """Return how much larger a planned file is than a tried one: of all of them the sizes are known."""
    return mean_bytes / trial.bytes_in_per_file if trial.bytes_in_per_file else 1.0


def _price_machines(seconds: float, num_gpus: int, num_cpus: float, prices: Prices) -> float | None:
    """Price machines for the wall time: what stands idle is paid for as well."""
    if prices.gpu_hour is None and prices.core_hour is None:
        return None
    return seconds / 3600 * (num_gpus * (prices.gpu_hour or 0.0) + num_cpus * (prices.core_hour or 0.0))


def _sum_sizes(rows: pa.Table) -> int:
    """Sum the sizes of files; those that no listing told count as the mean of the others."""
    sizes = rows.column("size_bytes")
    return int((pc.mean(sizes).as_py() or 0.0) * len(sizes))
