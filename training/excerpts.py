"""Excerpts of tracks, and what may have happened to one before somebody asks for the track it is from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import butter, resample_poly, sosfilt

RATE = 24_000
EXCERPT_S = 10
QUERIES = ("clean", "pitched", "filtered", "compressed")
BAND_HZ = (300, 3400)  # a telephone's
BACKGROUND_EVERY = 2  # tracks trained on: every so many give the background
Samples = NDArray[np.float32]


def read_excerpts(folder: Path, tracks: Iterable[Mapping[str, str]]) -> dict[str, NDArray[Any]]:
    """Read the excerpts of a corpus.

    Args:
        folder: That the manifest's URIs are relative to.
        tracks: Its rows.

    Returns:
        int16 waveforms of (N, 240000): ``reference``, ``background`` and the ``QUERIES``; ``track_ids``.
    """
    parts: dict[str, list[NDArray[np.int16]]] = {name: [] for name in ("reference", "background", *QUERIES)}
    track_ids: list[str] = []
    num_trained_on = 0
    for track in tracks:
        duration_s, path = float(track["duration_s"]), str(folder / track["uri"])
        is_held_out = track["split"] != "train"
        num_trained_on += not is_held_out
        is_left_out = not is_held_out and (num_trained_on - 1) % BACKGROUND_EVERY
        if duration_s < 2 * EXCERPT_S + 2 or is_left_out:
            continue
        spare_s = duration_s - 2 * EXCERPT_S - 1
        try:
            first = read_excerpt(path, spare_s / 4)
            second = read_excerpt(path, duration_s - EXCERPT_S - 1 - spare_s / 4) if is_held_out else None
        except (OSError, ValueError, soundfile.LibsndfileError, av.FFmpegError) as error:
            print(f"{path}: {error}")
            continue
        if second is None:
            parts["background"].append(to_int16(first))
            continue
        parts["reference"].append(to_int16(second))
        semitones = 1 if len(track_ids) % 2 else -1
        track_ids.append(track["track_id"])
        queries = (first, shift_pitch(first, semitones), filter_band(first), compress(first))
        for name, query in zip(QUERIES, queries, strict=True):
            parts[name].append(to_int16(query))
    return {name: np.stack(part) for name, part in parts.items()} | {"track_ids": np.array(track_ids)}


def read_excerpt(path: str, start_s: float) -> Samples:
    """Read ten seconds of a file as mono samples at 24 kHz."""
    with soundfile.SoundFile(path) as file:
        file.seek(int(start_s * file.samplerate))
        samples = file.read(int((EXCERPT_S + 0.1) * file.samplerate), dtype="float32", always_2d=True)
        rate = file.samplerate
    common = math.gcd(rate, RATE)
    return fit(resample_poly(samples.mean(axis=1), RATE // common, rate // common).astype(np.float32))


def fit(samples: Samples) -> Samples:
    """Cut or pad to an excerpt's length."""
    wanted = EXCERPT_S * RATE
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))


def shift_pitch(samples: Samples, semitones: int) -> Samples:
    """Shift pitch at the same tempo: played faster or slower, then stretched back (FFmpeg's ``atempo``)."""
    ratio = 2 ** (semitones / 12)
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="flt", layout="mono", time_base=Fraction(1, RATE))
    chain = [
        source,
        graph.add("asetrate", str(round(RATE * ratio))),
        graph.add("aresample", str(RATE)),
        graph.add("atempo", f"{1 / ratio:.6f}"),
        graph.add("aformat", "sample_fmts=flt"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*chain).configure()
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    graph.push(frame)
    graph.push(None)
    return fit(np.concatenate([part.to_ndarray()[0] for part in pull_frames(graph)]).astype(np.float32))


def pull_frames(graph: Any) -> Iterable[Any]:
    """Yield all frames that a filter graph still has."""
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def filter_band(samples: Samples) -> Samples:
    """Let through what a telephone lets through."""
    sections = butter(4, BAND_HZ, "bandpass", fs=RATE, output="sos")
    filtered: Samples = sosfilt(sections, samples).astype(np.float32)
    return filtered


def compress(samples: Samples) -> Samples:
    """Send samples through MP3 at 64 kbit/s."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("mp3", rate=RATE, layout="mono", format="fltp")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([packet for part in (frame, None) for packet in stream.encode(part)])
    file.seek(0)
    with av.open(file, "r") as source:
        decoded = [frame.to_ndarray()[0] for frame in source.decode(audio=0)]
    return fit(np.concatenate(decoded).astype(np.float32))


def to_int16(samples: Samples) -> NDArray[np.int16]:
    """Return samples as 16-bit integers."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
