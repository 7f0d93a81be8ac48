"""Trial: what some files of a catalog cost on this machine, stage by stage, and how large each pool has to be."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.config import SAMPLE_RATE_HZ, Recipe, RunSettings, list_window_lengths_s
from pipeline.decode.tracks import decode_tracks
from pipeline.embed.embedder import Embedder
from pipeline.embed.window import plan_windows
from pipeline.schema import DECODED, FEATURE_LIST
from pipeline.store.write import WriteSettings, keep_mantissa_bits, write_parts

NUM_TRIED = 50
WARM_UP_S = 2.0
_MIN_GROUP = 8  # tracks that are decoded, embedded and written together, as a run does


@dataclass(frozen=True)
class Trial:
    """What some planned files cost on this machine.

    Core-seconds count every thread of the process, so they do not depend on what else the machine does.

    Args:
        num_files: Files that were read.
        num_failed: How many of them cannot be embedded; where none can, the figures below are zero.
        audio_s_per_file: Seconds of audio in a file that can be.
        bytes_in_per_file: Bytes of a file that was read.
        decode_core_s: Core-seconds of reading, hashing, decoding and resampling, for a second of audio.
        model_s: Seconds that one model on this device takes for a window.
        window_s: Seconds of audio that come to one window: under 30 where windows overlap or are shorter.
        model_core_s: Core-seconds of the model for a second of audio: on a GPU what feeding it takes.
        write_core_s: Core-seconds of pooling, encoding and writing, for a second of audio.
        bytes_out: Bytes of the ``frames`` parts for a second of audio, by resolution. The ledger is not in it.
        device: ``cuda`` or ``cpu``.
        machine: Name of the GPU or the processor.
        known: Id and content hash of the files whose content needs no model: the store knows it.
        failures: track_id, uri, stage, reason and message of those that failed.
    """

    num_files: int
    num_failed: int
    audio_s_per_file: float = 0.0
    bytes_in_per_file: float = 0.0
    decode_core_s: float = 0.0
    model_s: float = 0.0
    window_s: float = 0.0
    model_core_s: float = 0.0
    write_core_s: float = 0.0
    bytes_out: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    machine: str = ""
    known: tuple[tuple[str, str], ...] = ()
    failures: tuple[Mapping[str, str | None], ...] = ()

    @property
    def num_sound(self) -> int:
        """How many files the model would be given."""
        return self.num_files - self.num_failed - len(self.known)

    @property
    def model_s_per_audio_s(self) -> float:
        """Seconds of one model for a second of audio."""
        return self.model_s / self.window_s if self.window_s else 0.0


@dataclass(frozen=True)
class PoolAdvice:
    """What limits a run, and how many cores keep its models busy.

    Args:
        bottleneck: ``decode``, ``model`` or ``write``.
        cores_per_actor: CPU cores that keep one model actor busy; of a model on the CPU also those it computes on.
        num_cpus: Cores that there are.
        num_actors: Model actors that there are.
        audio_s_per_s: Seconds of audio that they get through in a second.
        model_busy_share: Share of the time in which the models compute.
        message: The same in one line.
    """

    bottleneck: str
    cores_per_actor: float
    num_cpus: float
    num_actors: int
    audio_s_per_s: float
    model_busy_share: float
    message: str


def choose_files(planned: pa.Table, num_files: int = NUM_TRIED) -> pa.Table:
    """Return some planned tracks, evenly spaced."""
    spacing = np.linspace(0, planned.num_rows - 1, min(num_files, planned.num_rows), dtype=np.int64)
    return planned.take(spacing)


def run_trial(
    rows: pa.Table,
    embedder: Embedder,
    recipes: Mapping[str, Recipe],
    settings: RunSettings,
    model_budget_s: float = 10.0,
    known: npt.NDArray[np.uint64] | None = None,
) -> Trial:
    """Take planned tracks through every stage; nothing is written to the store.

    Args:
        rows: Rows of ``schema.PLAN``; at least one.
        embedder: As a run would start it.
        recipes: Recipes of the run, by id.
        settings: What the run would compute.
        model_budget_s: The model takes tracks, a batch at a time, until so many seconds have passed.
        known: From ``known_content.list_prefixes``: content that the store knows.
    """
    device, size = embedder.settings.device, max(embedder.settings.batch_size, _MIN_GROUP)
    tally = _Tally()
    for start in range(0, rows.num_rows, size):
        sound = _decode(rows.slice(start, size), settings, tally, known)
        if sound.num_rows == 0 or tally.model_s >= model_budget_s:
            continue
        if not tally.num_windows:
            _embed(embedder, _shorten(sound.slice(0, 1), WARM_UP_S), _Tally(), settings)
        _write(_embed(embedder, sound, tally, settings), recipes, tally)
    looked_at: dict[str, Any] = {
        "num_files": rows.num_rows,
        "num_failed": len(tally.failures),
        "known": tuple(tally.known),
        "failures": tuple(tally.failures),
        "device": device,
    }
    if not tally.num_sound:
        return Trial(**looked_at)
    return Trial(
        **looked_at,
        audio_s_per_file=tally.audio_s / tally.num_sound,
        bytes_in_per_file=pc.mean(rows.column("size_bytes")).as_py() or 0.0,
        decode_core_s=tally.decode_core_s / tally.audio_s,
        model_s=tally.model_s / tally.num_windows,
        window_s=tally.embedded_s / tally.num_windows,
        model_core_s=tally.model_core_s / tally.embedded_s,
        write_core_s=tally.write_core_s / tally.embedded_s,
        bytes_out={name: num_bytes / tally.embedded_s for name, num_bytes in sorted(tally.bytes_out.items())},
        machine=_name_machine(device),
    )


def size_pools(trial: Trial, num_cpus: float, num_actors: int = 1) -> PoolAdvice:
    """Say what limits a run on given pools, and how many cores keep one model busy.

    Args:
        trial: From ``run_trial``, with at least one file that could be embedded.
        num_cpus: Cores of the whole pool.
        num_actors: Model actors.

    Raises:
        ValueError: The trial has no figures.
    """
    if not trial.model_s_per_audio_s:
        raise ValueError(
            f"none of {trial.num_files} tried files can be embedded: there is nothing to size a pool by"
        )
    around = trial.decode_core_s + trial.write_core_s
    core_s = around + trial.model_core_s  # of the model: what it computes on, or what feeding the GPU takes
    cores_per_actor = core_s / trial.model_s_per_audio_s
    by_model = num_actors / trial.model_s_per_audio_s
    by_cores = num_cpus / core_s
    audio_s_per_s = min(by_model, by_cores)
    if by_model <= by_cores or (trial.device == "cpu" and trial.model_core_s >= around):
        bottleneck = "model"
    else:
        bottleneck = "decode" if trial.decode_core_s >= trial.write_core_s else "write"
    busy = audio_s_per_s / by_model
    message = (
        f"bottleneck: {bottleneck}; one model actor on {trial.machine} takes {cores_per_actor:.1f} CPU cores "
        f"({trial.decode_core_s / trial.model_s_per_audio_s:.2f} decode, "
        f"{trial.write_core_s / trial.model_s_per_audio_s:.2f} write, "
        f"{trial.model_core_s / trial.model_s_per_audio_s:.2f} the model's own); with {num_cpus:g} cores and "
        f"{num_actors} actors {audio_s_per_s:.0f} s of audio a second, models busy {busy:.0%} of the time"
    )
    return PoolAdvice(bottleneck, cores_per_actor, num_cpus, num_actors, audio_s_per_s, busy, message)


@dataclass
class _Tally:
    """Sums over the tried files; the model sees some of them, ``embedded_s`` of the ``audio_s``."""

    num_sound: int = 0
    known: list[tuple[str, str]] = field(default_factory=list)
    failures: list[dict[str, str | None]] = field(default_factory=list)
    audio_s: float = 0.0
    decode_core_s: float = 0.0
    embedded_s: float = 0.0
    num_windows: int = 0
    model_s: float = 0.0
    model_core_s: float = 0.0
    write_core_s: float = 0.0
    bytes_out: dict[str, float] = field(default_factory=dict)


def _decode(
    rows: pa.Table, settings: RunSettings, tally: _Tally, known: npt.NDArray[np.uint64] | None
) -> pa.Table:
    """Decode planned rows; return those that can be embedded."""
    start_core_s = time.process_time()
    with _one_thread():
        decoded = pa.concat_tables(
            decode_tracks(rows, settings.audio_options, settings.max_duration_s, known=known)
        )
    tally.decode_core_s += time.process_time() - start_core_s
    sound = decoded.filter(pc.is_valid(decoded.column("waveform")))
    tally.num_sound += sound.num_rows
    facts = decoded.select(["track_id", "uri", "stage", "error_type", "error_message", "content_hash"])
    for row in facts.filter(pc.is_null(decoded.column("waveform"))).to_pylist():
        if row["stage"] is None:
            tally.known.append((row["track_id"], row["content_hash"]))
        else:
            told = {"reason": row["error_type"], "message": row["error_message"]}
            tally.failures.append({name: row[name] for name in ("track_id", "uri", "stage")} | told)
    tally.audio_s += pc.sum(sound.column("duration_s")).as_py() or 0.0
    return sound


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as Ray does in its tasks: several spin while they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _embed(embedder: Embedder, sound: pa.Table, tally: _Tally, settings: RunSettings) -> pa.Table:
    start_s, start_core_s = time.perf_counter(), time.process_time()
    embedded = pa.concat_tables(embedder.embed_rows(sound))
    tally.model_s += time.perf_counter() - start_s
    tally.model_core_s += time.process_time() - start_core_s
    tally.embedded_s += pc.sum(sound.column("duration_s")).as_py()
    lengths = pc.list_value_length(sound.column("waveform")).to_pylist()
    windows_s = list_window_lengths_s(settings.resolutions, settings.windows)
    tally.num_windows += sum(len(plan_windows(length, window_s)) for length in lengths for window_s in windows_s)
    return embedded


def _shorten(row: pa.Table, seconds: float) -> pa.Table:
    """Return a decoded row with the start of its waveform."""
    waveform = row.column("waveform")[0].values[: int(seconds * SAMPLE_RATE_HZ)]
    column = pa.ListArray.from_arrays(pa.array([0, len(waveform)], pa.int32()), waveform, type=FEATURE_LIST)
    return row.set_column(row.schema.get_field_index("waveform"), DECODED.field("waveform"), column)


def _write(embedded: pa.Table, recipes: Mapping[str, Recipe], tally: _Tally) -> None:
    """Write parts into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        start_core_s = time.process_time()
        with _one_thread():
            written = write_parts(embedded, WriteSettings(folder, keep_mantissa_bits(recipes), "trial"))
        tally.write_core_s += time.process_time() - start_core_s
    for part in written.column("parts")[0].as_py():
        tally.bytes_out[part["resolution"]] = tally.bytes_out.get(part["resolution"], 0.0) + part["size_bytes"]


def _name_machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
