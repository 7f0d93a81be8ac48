"""Holds what the pipeline decodes of a damaged file against FFmpeg's own decode, and against the undamaged file.

Nothing of the pipeline decodes, mixes or resamples on the side that it is held against.
"""

from __future__ import annotations

import functools
import io
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample as resample_by_spectrum
from scipy.signal import resample_poly

from pipeline.config import SAMPLE_RATE_HZ
from pipeline.decode.audio import DecodedAudio
from pipeline.decode.isolation import DecoderProcess
from pipeline.errors import Reason, TrackError
from tests.fuzz import mutations
from tests.fuzz.recordings import Recording

Waveform = NDArray[np.float32]

TIMEOUT_S = 60.0
LENGTH_S, CORRELATION = 0.05, 0.99  # what still counts as equal
MISSING_S = 1.2  # what a file may lose, with the padding of two encoders

# These harm nothing: a file so changed must be decoded, and as before.
HARMLESS = (mutations.leave, mutations.put_tag_before, mutations.put_tag_behind)

# Kinds of which a decoder cannot know that a part is gone: their packets say nothing of those that are not there.
STATES_NO_LENGTH = ("libmp3lame-write_xing", "mp2", "adts", "ac3", "live", "mpegts", "nut", "avi", "voc", "flv")
STATES_NO_LENGTH_AT_ITS_END = (*STATES_NO_LENGTH, "ogg", "OGG")
IN_ONE_PIECE = (mutations.flip_bits, mutations.overwrite, mutations.zero)
HAS_CHECKSUMS = ("flac", "FLAC", "wavpack", "tta")


class Verdict(StrEnum):
    """What became of a file."""

    REFUSED = "refused"
    EQUAL = "equal"
    DEVIATES = "deviates where FFmpeg is wrong"
    CRASHED = "crashed or hung"
    REFUSED_SOUND = "sound and yet refused"
    SILENT = "silently wrong"


FAULTS = (Verdict.SILENT, Verdict.CRASHED, Verdict.REFUSED_SOUND)


@dataclass(frozen=True)
class Outcome:
    """A verdict and its reason."""

    verdict: Verdict
    name: str
    detail: str
    data: bytes


class Judge:
    """Makes files and judges what the pipeline decodes of them.

    Args:
        recordings: What is damaged.
        seed: Of all choices.
        oracle: ``library`` asks the FFmpeg in PyAV, ``program`` the one on the ``PATH``.
    """

    def __init__(self, recordings: Sequence[Recording], seed: int, oracle: str) -> None:
        self.recordings = recordings
        self.seed = seed
        self.oracle = decode_by_program if oracle == "program" else decode_by_library
        self._child = DecoderProcess(TIMEOUT_S)

    def stop(self) -> None:
        """End the child process that decodes."""
        self._child.stop()

    def judge(self, number: int) -> Outcome:
        """Make file ``number`` and judge it."""
        random = np.random.default_rng([self.seed, number])
        recording = self.recordings[int(random.integers(len(self.recordings)))]
        mutation = mutations.MUTATIONS[random.integers(len(mutations.MUTATIONS))]
        data = mutation(recording, random)
        verdict, detail = self._compare(recording, mutation, data)
        return Outcome(verdict, f"{mutation.__name__} of {recording.name}", detail, data)

    def _compare(self, recording: Recording, mutation: mutations.Mutation, data: bytes) -> tuple[Verdict, str]:
        try:
            found = self._child.decode(data, 3600.0)
        except TrackError as error:
            if error.reason is Reason.WORKER_CRASHED:
                return Verdict.CRASHED, error.message
            is_sound = mutation in HARMLESS or data == recording.data
            return (Verdict.REFUSED_SOUND if is_sound else Verdict.REFUSED), f"{error.reason}: {error.message}"
        fault = find_fault(recording, mutation, data, found)
        if fault:
            return Verdict.SILENT, fault
        if mutation in HARMLESS:
            return Verdict.EQUAL, ""
        expected = self.oracle(data)
        difference = find_difference(found.waveform, expected)
        if not difference:
            return Verdict.EQUAL, ""
        if not find_difference(found.waveform, decode_clean(recording.data)[0]):
            return Verdict.DEVIATES, f"as the undamaged file, and FFmpeg not: {difference}"
        return Verdict.SILENT, f"beside FFmpeg: {difference}"


def find_fault(recording: Recording, mutation: mutations.Mutation, data: bytes, found: DecodedAudio) -> str | None:
    """Say what is wrong with what was decoded by what is known of the music; None where nothing is."""
    clean, *source = decode_clean(recording.data)
    if mutation in HARMLESS:
        return find_difference(found.waveform, clean)
    if [found.source_sample_rate_hz, found.num_channels] != source:
        return None  # it is read as something else, as FFmpeg reads it
    whole_s = clean.size / SAMPLE_RATE_HZ
    is_join = mutation in (mutations.join, mutations.join_itself)
    if is_join:
        behind = recording.data if mutation is mutations.join_itself else recording.other
        whole_s += decode_clean(behind)[0].size / SAMPLE_RATE_HZ
    missing_s = whole_s - found.duration_s
    unknown = STATES_NO_LENGTH if mutation in IN_ONE_PIECE else STATES_NO_LENGTH_AT_ITS_END
    is_known = is_join or not any(part in recording.name for part in unknown)
    if missing_s > MISSING_S and is_known and mutation is not mutations.cut_start:
        return f"{missing_s:.1f} of {whole_s:.1f} s are left out"
    if mutation in IN_ONE_PIECE and any(part in recording.name for part in HAS_CHECKSUMS):
        bad = find_bad_seconds(found.waveform, clean)
        if len(bad) > 2 and abs(missing_s) < LENGTH_S:
            return f"noise in seconds {bad}"
    return None


def find_difference(found: Waveform, expected: Waveform) -> str | None:
    """Say where two waveforms differ; None where they are equal enough."""
    difference_s = (found.size - expected.size) / SAMPLE_RATE_HZ
    if abs(difference_s) > LENGTH_S:
        return f"{found.size / SAMPLE_RATE_HZ:.2f} s instead of {expected.size / SAMPLE_RATE_HZ:.2f} s"
    bad = find_bad_seconds(found, expected)
    return f"seconds {bad} are not the same" if bad else None


def find_bad_seconds(found: Waveform, expected: Waveform) -> list[int]:
    """Return the seconds in which two waveforms do not correlate; a short rest counts to the last of them."""
    num_samples = min(found.size, expected.size)
    num_seconds = max(1, round(num_samples / SAMPLE_RATE_HZ))
    bad = []
    for second in range(num_seconds):
        start = second * SAMPLE_RATE_HZ
        stop = num_samples if second == num_seconds - 1 else start + SAMPLE_RATE_HZ
        one, other = (waveform[start:stop].astype(np.float64) for waveform in (found, expected))
        with np.errstate(all="ignore"):
            difference, power = np.mean((one - other) ** 2), np.sqrt(np.mean(one**2) * np.mean(other**2))
            correlation = np.mean(one * other) / power
        if not (correlation > CORRELATION or difference < 1e-9):
            bad.append(second)
    return bad


@functools.cache
def decode_clean(data: bytes) -> tuple[Waveform, int, int]:
    """Return what FFmpeg decodes of an undamaged file, with rate and channels of the source."""
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(audio=0))
        rate, num_channels = frame.sample_rate, frame.layout.nb_channels
    return decode_by_library(data), rate, num_channels


def decode_by_library(data: bytes) -> Waveform:
    """Return all that the FFmpeg in PyAV decodes of the first audio stream, damaged packets left out."""
    try:
        container = av.open(io.BytesIO(data), "r", metadata_errors="ignore")
    except av.FFmpegError:
        return np.zeros(0, np.float32)
    blocks, rate = [], 0
    with container:
        packets = container.demux(container.streams.audio[:1])
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                break
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                rate, samples = frame.sample_rate, frame.to_ndarray()
                is_planar = frame.format.is_planar
                blocks.append(samples if is_planar else samples.reshape(-1, frame.layout.nb_channels).T)
    return resample(_mix(blocks), rate) if rate else np.zeros(0, np.float32)


def decode_by_program(data: bytes) -> Waveform:
    """Return what the program ``ffmpeg`` decodes."""
    command = ["ffmpeg", "-v", "quiet", "-i", "-", "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=TIMEOUT_S)
    if not done.stdout:
        return np.zeros(0, np.float32)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32", always_2d=True)
    return resample(samples.mean(axis=1), rate)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Return a waveform at 24 kHz."""
    common = math.gcd(rate, SAMPLE_RATE_HZ)
    if rate // common < 200_000:
        result: Waveform = resample_poly(waveform, SAMPLE_RATE_HZ // common, rate // common)
    else:  # of a header that lies: the filter would be too long
        result = resample_by_spectrum(waveform, math.ceil(waveform.size * SAMPLE_RATE_HZ / rate))
    return result.astype(np.float32, copy=False)


def _mix(blocks: Sequence[NDArray[Any]]) -> Waveform:
    """Return the mean of the channels, (num_samples,), of blocks of (num_channels, num_samples), full scale 1."""
    if len({len(block) for block in blocks}) > 1:  # the channels change midway
        return np.concatenate([_mix([block]) for block in blocks])
    samples = np.concatenate(blocks, axis=1)
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float32) / 128 - 1
    elif samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.itemsize - 1))
    mono: Waveform = samples.mean(axis=0, dtype=np.float32)
    return mono
