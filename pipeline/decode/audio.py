"""A file's bytes to a mono float32 waveform at 24 kHz, and the facts of its source.

FFmpeg comes first; libsndfile takes what FFmpeg does not know. The content decides, never the file's ending.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import MIN_SAMPLES, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from pipeline.decode.ffmpeg import Declined, decode_with_ffmpeg
from pipeline.decode.libsndfile import decode_with_soundfile
from pipeline.decode.mixdown import Mixdown
from pipeline.decode.tags import Tags, read_tags
from pipeline.decode.wrapping import cut_tags, require_binary
from pipeline.errors import Reason, Stage, TrackError

# -80 dBFS. The last bit of a 16-bit file is at -90, its dither at some -85: a file that never rises above this
# holds the converter's noise and nothing else. The quietest recorded music peaks 40 dB higher.
_SILENT_AMPLITUDE = 1e-4

_SILENT_FRAME_POWER = 1e-6  # -60 dBFS

# 40 dB over full scale. The loudest masters reach 3 once they are compressed; damaged packets make a decoder of
# floats put out 10,000 and more. In files of floats (PCM, WavPack) any scale may be meant.
_LOUDEST_AMPLITUDE = 100.0
_CODECS_OF_ANY_SCALE = ("pcm_f", "wavpack")


@dataclass(frozen=True)
class DecodedAudio:
    """A track's waveform and what is known of its source; the figures as ``schema.SOURCE_FIELDS`` has them.

    Args:
        waveform: Mono float32 samples at 24 kHz, (num_samples,): the mean of the channels.
        codec: Short lower-case name, such as ``mp3``, ``flac``, ``vorbis``, ``pcm_s16``.
        source_sample_rate_hz: Rate of the source.
        num_channels: Channels of the source.
        duration_s: What was decoded, in seconds of the source.
        rms: Root mean square of the waveform, full scale 1.
        peak: Largest magnitude in any channel of the source, full scale 1.
        clipped_share: Share of the source's samples of magnitude ``mixdown.CLIPPED_AMPLITUDE`` or more.
        silent_share: Share of the waveform's whole 40 ms frames with a root mean square under -60 dBFS.
        tags: What the file says of itself.
    """

    waveform: NDArray[np.float32]
    codec: str
    source_sample_rate_hz: int
    num_channels: int
    duration_s: float
    rms: float
    peak: float
    clipped_share: float
    silent_share: float
    tags: Tags


def decode_audio(data: bytes, max_duration_s: float = 7200.0) -> DecodedAudio:
    """Decode, mix to mono by mean, resample to 24 kHz and measure.

    An ogg file or raw stream (mp3 without a Xing or VBRI frame, aac) states no length, so a part of it that was
    cut off at the end is not missed. A length estimated from a bit rate is never held against a file.

    Args:
        data: The whole file.
        max_duration_s: Refuse anything longer; before decoding, where the header tells.

    Raises:
        TrackError: At stage ``decode``: the file is empty, unreadable, truncated by over 1 s, too short for
            the model, too long, silent, or has samples that are no finite numbers or far over full scale.
    """
    if not data:
        raise TrackError(Stage.DECODE, Reason.EMPTY_FILE, "expected an audio file, found 0 bytes")
    whole, data = data, cut_tags(data)
    require_binary(data)
    tags = read_tags(whole)
    try:
        mixdown = decode_with_ffmpeg(data, max_duration_s)
    except Declined as declined:
        mixdown = decode_with_soundfile(data, max_duration_s, declined)
    waveform = mixdown.waveform
    frame_energy, rms = _measure_level(waveform)
    _require_music(mixdown, waveform, rms)
    return DecodedAudio(
        waveform=waveform,
        codec=mixdown.codec,
        source_sample_rate_hz=mixdown.sample_rate_hz,
        num_channels=mixdown.num_channels,
        duration_s=mixdown.duration_s,
        rms=rms,
        peak=mixdown.peak,
        clipped_share=mixdown.num_clipped / mixdown.num_values,
        silent_share=float(np.mean(frame_energy < SAMPLES_PER_FRAME * _SILENT_FRAME_POWER)),
        tags=tags,
    )


def _measure_level(waveform: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return the energy of each whole 40 ms frame, and the root mean square of the whole waveform."""
    whole = waveform[: waveform.size // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
    frames, rest = whole.reshape(-1, SAMPLES_PER_FRAME), waveform[whole.size :]
    with np.errstate(invalid="ignore", over="ignore"):
        frame_energy: NDArray[np.float32] = np.einsum("ij,ij->i", frames, frames)
        energy = frame_energy.sum(dtype=np.float64) + np.dot(rest, rest)
        if not np.isfinite(energy):  # squares of over 1e19 are too large for float32
            energy = np.einsum("i,i->", waveform, waveform, dtype=np.float64)
        return frame_energy, float(np.sqrt(energy / max(1, waveform.size)))


def _require_music(mixdown: Mixdown, waveform: NDArray[np.float32], rms: float) -> None:
    """Raise ``TrackError`` for what no model should see: too short, not finite, or silent."""
    if waveform.size < MIN_SAMPLES:
        least_ms, decoded_ms = (round(1000 * number / SAMPLE_RATE_HZ) for number in (MIN_SAMPLES, waveform.size))
        message = (
            f"expected at least {least_ms} ms of music ({MIN_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz), "
            f"found {decoded_ms} ms ({waveform.size} samples)"
        )
        raise TrackError(Stage.DECODE, Reason.TOO_SHORT, message)
    if not np.isfinite([mixdown.peak, rms]).all():
        message = "expected finite samples, found NaN, infinity or magnitudes beyond float32"
        raise TrackError(Stage.DECODE, Reason.NON_FINITE_AUDIO, message)
    if mixdown.peak > _LOUDEST_AMPLITUDE and not mixdown.codec.startswith(_CODECS_OF_ANY_SCALE):
        message = (
            f"expected samples around full scale, found {mixdown.peak:,.0f} times that, which no encoder of "
            f"{mixdown.codec} was given: the file is damaged"
        )
        raise TrackError(Stage.DECODE, Reason.UNREADABLE, message)
    if mixdown.peak < _SILENT_AMPLITUDE:
        loudest = f"the loudest sample is {abs(mixdown.peak):.1e} of full scale"
        raise TrackError(Stage.DECODE, Reason.SILENT, f"expected music over -80 dBFS, {loudest}")
    if max(waveform.max(), -waveform.min()) < _SILENT_AMPLITUDE:
        message = "expected music over -80 dBFS, the channels cancel each other out: their mean stays below that"
        raise TrackError(Stage.DECODE, Reason.SILENT, message)
