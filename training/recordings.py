"""What is learnt of each recording by listening to it: its length, tags, hash, and whether it is there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from training.review import CorpusError

MIN_DURATION_S = 20.0
"""Shorter files are jingles and effects, not music."""

EXCERPT_S = 40.0
"""How much of a recording's start is compared with the others."""

FRAME_S = 0.1
NUM_FRAMES = round(EXCERPT_S / FRAME_S)
SAME = 0.85
"""Correlation of chroma from which on two recordings count as one; see training/corpus.md."""


@dataclass(frozen=True)
class Recording:
    """One file.

    Args:
        title: Its tag, or its file's name.
        artist: Its tag; empty where there is none.
        album: Its tag.
        genre: Its tag.
        duration_s: Length in seconds.
        content_hash: SHA-256 of the file's bytes, hexadecimal.
        chroma: ``measure_chroma`` of its start, (NUM_FRAMES, 12).
    """

    title: str
    artist: str
    album: str
    genre: str
    duration_s: float
    content_hash: str
    chroma: NDArray[np.float32]


def read_recording(path: Path) -> Recording:
    """Read a file's tags, length and start, and make sure that its end is there.

    Raises:
        CorpusError: libsndfile cannot read it, or it is shorter than its header says.
    """
    try:
        with soundfile.SoundFile(path) as file:
            start = file.read(round(EXCERPT_S * file.samplerate), dtype="float32", always_2d=True)
            file.seek(max(file.frames - file.samplerate, 0))
            if not len(file.read(file.samplerate, dtype="float32", always_2d=True)):
                raise CorpusError(f"{path} ends before the {file.frames} samples that its header states")
            return Recording(
                title=file.title.strip() or path.stem,
                artist=file.artist.strip(),
                album=file.album.strip(),
                genre=file.genre.strip(),
                duration_s=file.frames / file.samplerate,
                content_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
                chroma=measure_chroma(start.mean(axis=1), file.samplerate),
            )
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"cannot read {path}: {error}") from error


def measure_chroma(waveform: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    """Measure how much of each pitch class sounds, ten times a second.

    Args:
        waveform: Mono samples, (num_samples,).
        sample_rate_hz: Their rate.

    Returns:
        (NUM_FRAMES, 12), zeros after the end; each class has mean 0 over the frames that are there, and all values
        together have length 1, so that a product of two is a correlation.
    """
    hop_length, frame_length = round(FRAME_S * sample_rate_hz), round(2 * FRAME_S * sample_rate_hz)
    chroma = np.zeros((NUM_FRAMES, 12), np.float32)
    if len(waveform) < frame_length:
        return chroma
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame_length)[::hop_length][:NUM_FRAMES]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(frame_length).astype(np.float32), axis=1))
    frequencies_hz = np.fft.rfftfreq(frame_length, 1 / sample_rate_hz)
    in_band = (frequencies_hz > 100) & (frequencies_hz < 2_000)
    pitch_class = np.round(12 * np.log2(frequencies_hz[in_band] / 440)).astype(int) % 12
    # The root keeps one loud chord from outweighing all else.
    values = np.sqrt(spectrum[:, in_band]) @ np.eye(12)[pitch_class]
    values -= values.mean(axis=0)
    chroma[: len(values)] = values / max(float(np.linalg.norm(values)), 1e-9)
    return chroma


def find_duplicates(recordings: Sequence[Recording]) -> dict[int, int]:
    """Find recordings that are there twice, in whatever encoding and with whatever silence before them.

    Args:
        recordings: In the order of preference: the first of several equal ones is kept.

    Returns:
        Position of each one that is too much, to the position of the one that it repeats.
    """
    spectra = [np.fft.rfft(recording.chroma, 2 * NUM_FRAMES, axis=0) for recording in recordings]
    repeats: dict[int, int] = {}
    for later, recording in enumerate(recordings):
        for earlier in range(later):
            if earlier in repeats:
                continue
            products = np.fft.irfft((spectra[earlier] * spectra[later].conj()).sum(axis=1))
            if recording.content_hash == recordings[earlier].content_hash or products.max() >= SAME:
                repeats[later] = earlier
                break
    return repeats
