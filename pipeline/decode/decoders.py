"""The two decoders, libsndfile and FFmpeg, both into one mono signal at the source's rate.

Of an mp3 both give the same samples, to 3e-6 of full scale (measured), so it does not matter which one read it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.decode.resample import Resampler
from pipeline.decode.stated_length import asf_duration_s, find_present_share, mp3_duration_s
from pipeline.errors import Reason, Stage, TrackError

CLIPPED_AMPLITUDE = 0.999
"""Samples from here on count as clipped: 16-bit full scale is 0.99997, and limiters stop just below it."""

_TRUNCATED_S = 1.0  # less than this may be missing: encoder padding, a damaged frame or two

_RATES_HZ = range(1_000, 768_001)  # below is no music, above no converter: the header is damaged

_BLOCK_VALUES = 2**16  # decoded at once, over all channels: 256 KiB stay in a core's cache

# libsndfile's names of encodings, in FFmpeg's spelling without the byte order.
_CODECS = {
    "PCM_16": "pcm_s16",
    "PCM_24": "pcm_s24",
    "PCM_32": "pcm_s32",
    "FLOAT": "pcm_f32",
    "DOUBLE": "pcm_f64",
    "ULAW": "pcm_mulaw",
    "ALAW": "pcm_alaw",
    "MPEG_LAYER_III": "mp3",
    **dict.fromkeys(("ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32"), "alac"),
}

# FFmpeg's names of the formats whose duration it takes from the header. For raw aac, ac3 and others it
# estimates one from the bit rate, for ogg it takes the last page's time.
_MATROSKA = "matroska,webm"
_FORMATS_WITH_DURATION = {"mov,mp4,m4a,3gp,3g2,mj2", _MATROSKA, "flac", "wv", "tta", "ape"}


class Declined(Exception):  # noqa: N818 - no error: FFmpeg is asked next
    """libsndfile does not know the file, or would not read all of it.

    Args:
        message: Why.
        stated_s: The duration that libsndfile found in the header, if it found one.
    """

    def __init__(self, message: str, stated_s: float | None = None) -> None:
        super().__init__(message)
        self.stated_s = stated_s


class Mixdown:
    """The mean of the channels, resampled block by block, and what only the channels can tell.

    Args:
        codec: Name of the codec.
        sample_rate_hz: Rate of the source.
        stated_s: Duration that the header states, if it does.
        max_duration_s: Limit on the stated duration and on the actual one.

    Raises:
        TrackError: The rate is absurd, or the stated duration is over the limit.
    """

    def __init__(self, codec: str, sample_rate_hz: int, stated_s: float | None, max_duration_s: float) -> None:
        if sample_rate_hz not in _RATES_HZ:
            expected = f"expected a sample rate of {_RATES_HZ.start} to {_RATES_HZ.stop - 1} Hz"
            raise _failure(Reason.UNREADABLE, f"{expected}, found {sample_rate_hz} Hz")
        self.codec = codec
        self.sample_rate_hz = sample_rate_hz
        self.stated_s = stated_s
        self.num_channels = 0
        self.num_samples = 0
        self.num_values = 0
        self.num_clipped = 0
        self.peak = 0.0
        self._max_duration_s = max_duration_s
        self._resampler: Resampler | None = None  # HE-AAC tells its rate in its first frame
        self._require_short_enough(stated_s or 0.0)

    @property
    def duration_s(self) -> float:
        """What was decoded so far, in seconds."""
        return self.num_samples / self.sample_rate_hz

    @property
    def waveform(self) -> NDArray[np.float32]:
        """Mono float32 samples at 24 kHz, (num_samples,), once all blocks are added."""
        return self._resampler.finish() if self._resampler else np.empty(0, np.float32)

    def add(self, block: NDArray[np.float32]) -> None:
        """Take a block of samples, (num_samples, num_channels), full scale 1.

        Raises:
            TrackError: The duration is now over the limit.
        """
        self.num_samples += block.shape[0]
        self.num_channels = block.shape[1]
        self.num_values += block.size
        self._require_short_enough(self.duration_s)
        self.peak = float(np.max([self.peak, block.max(), -block.min()]))  # NaN where there is one
        if not self.peak < CLIPPED_AMPLITUDE:
            self.num_clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED_AMPLITUDE))
        self._resampler = self._resampler or Resampler(self.sample_rate_hz)
        with np.errstate(invalid="ignore", over="ignore"):
            # The mean, in a fraction of the time that `mean` takes over so short an axis.
            weights = np.full(self.num_channels, 1 / self.num_channels, np.float32)
            self._resampler.add(block[:, 0] if self.num_channels == 1 else block @ weights)

    def require_whole(self, data: bytes) -> None:
        """Compare what was decoded with what the file's header states.

        Raises:
            TrackError: Over a second is missing.
        """
        present_share = find_present_share(data)
        if present_share == 0:
            raise _failure(Reason.TRUNCATED, "the file ends before the audio that its header states")
        stated_s = max(self.stated_s or 0.0, self.duration_s / present_share)
        if stated_s - self.duration_s > _TRUNCATED_S:
            found = f"found {self.duration_s:.1f} s: the file is cut short or damaged"
            raise _failure(Reason.TRUNCATED, f"expected {stated_s:.1f} s by the header, {found}")

    def _require_short_enough(self, duration_s: float) -> None:
        if duration_s > self._max_duration_s:
            message = f"expected at most {self._max_duration_s:g} s, found {duration_s:.0f} s or more"
            raise _failure(Reason.TOO_LONG, f"{message}; --max-duration-s sets the limit")


def decode_with_soundfile(data: bytes, max_duration_s: float) -> Mixdown:
    """Decode through libsndfile.

    Args:
        data: The whole file.
        max_duration_s: The limit.

    Raises:
        Declined: FFmpeg may do better.
        TrackError: The rate is absurd, or the duration over the limit.
    """
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise Declined(error.error_string) from error
    with file:
        _require_known_length(file, data)
        codec = "flac" if file.format == "FLAC" else _CODECS.get(file.subtype, file.subtype.lower())
        mixdown = Mixdown(codec, file.samplerate, file.frames / file.samplerate, max_duration_s)
        block = np.empty((max(1, _BLOCK_VALUES // file.channels), file.channels), np.float32)
        problem = "no samples"
        try:
            # No more than is left: behind the last frame of a flac libsndfile would take a tag for a damaged one.
            while wanted := min(len(block), file.frames - mixdown.num_samples):
                num_samples = file.buffer_read_into(block[:wanted], "float32")
                if num_samples == 0:
                    break
                mixdown.add(block[:num_samples])
        except soundfile.LibsndfileError as error:
            problem = error.error_string
    if mixdown.num_samples == 0:
        raise Declined(problem, mixdown.stated_s)
    try:
        mixdown.require_whole(data)
    except TrackError as error:  # FFmpeg can step over damage and go on
        raise Declined(error.message, mixdown.stated_s) from error
    return mixdown


def _require_known_length(file: soundfile.SoundFile, data: bytes) -> None:
    """Raise ``Declined`` for files of which libsndfile would leave out a part and not say so."""
    if file.frames == 0:
        raise Declined("the header states no samples")  # also of a wav that was written to a pipe
    if file.frames > 2**62:
        raise Declined("the header states no length")  # of a flac that was written to a pipe
    if file.subtype.startswith("MPEG") and mp3_duration_s(data) is None:
        # libsndfile takes the first frame's bit rate for all, and stops at the length that this would give.
        raise Declined("no frame states the length")
    if file.format == "OGG" and data.count(b"OggS\x00\x02") > 1:
        raise Declined("several streams, of which libsndfile reads one")


def decode_with_ffmpeg(data: bytes, max_duration_s: float, declined: Declined) -> Mixdown:
    """Decode the first audio stream through FFmpeg, stepping over damaged packets.

    Args:
        data: The whole file.
        max_duration_s: The limit.
        declined: What libsndfile said of it.

    Raises:
        TrackError: The file is unreadable or truncated, the rate is absurd, or the duration over the limit.
    """
    # Tags need not be valid UTF-8. A playlist that calls itself a track must not open other files.
    options = {"protocol_whitelist": ""}
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore", options=options) as container:
            streams = container.streams.audio
            if not streams or streams[0].codec_context is None:
                missing = "decoder for the audio" if streams else "audio"
                raise ValueError(f"no {missing} in this {container.format.long_name} file")
            mixdown = _mix_stream(container, streams[0], data, max_duration_s, declined)
    except (av.FFmpegError, ValueError) as error:
        says = getattr(error, "strerror", None) or str(error)
        is_cut_mp4 = data[4:8] == b"ftyp" and b"moov" not in data
        hint = "; an MP4 file without its index (moov) was cut short" if is_cut_mp4 else ""
        start = f"{len(data)} bytes that begin with {data[:8]!r}"
        message = f"cannot decode {start}: libsndfile says '{declined}', FFmpeg says '{says}'{hint}"
        raise _failure(Reason.UNREADABLE, message) from error
    mixdown.require_whole(data)
    return mixdown


def _mix_stream(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    data: bytes,
    max_duration_s: float,
    declined: Declined,
) -> Mixdown:
    """Mix down all that can be decoded; raise ``ValueError`` where that is nothing or much is damaged."""
    codec = re.sub(r"(?<=\d)[lb]e$", "", stream.codec_context.codec.canonical_name)
    stated_s = declined.stated_s or _read_stated_duration(container, stream, data)
    mixdown = Mixdown(codec, stream.rate, stated_s, max_duration_s)
    fifo = av.AudioFifo()  # joins a codec's short frames
    kept: tuple[int, int, str] | None = None
    good_bytes = lost_bytes = skipped_bytes = 0
    for num_bytes, frames in _decode_packets(container, stream):
        if frames is None:
            skipped_bytes += num_bytes
            continue
        for frame in frames:
            found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            kept = kept or found
            if found != kept:  # the queue would crash on other channels
                raise ValueError("the sample rate or the channels change midway")
            mixdown.sample_rate_hz = frame.sample_rate  # of HE-AAC, twice what the stream says
            frame.pts = None
            fifo.write(frame)
        if fifo.samples >= _BLOCK_VALUES // 2:
            mixdown.add(_drain(fifo))
        if frames:  # what was skipped between two good packets is lost music; the rest is tags or rubbish
            lost_bytes += skipped_bytes if good_bytes else 0
            good_bytes, skipped_bytes = good_bytes + num_bytes, 0
    if fifo.samples:
        mixdown.add(_drain(fifo))
    if not good_bytes and skipped_bytes:
        raise ValueError("no packet can be decoded")
    lost_s = mixdown.duration_s * lost_bytes / max(1, good_bytes)
    if stated_s is None and lost_s > _TRUNCATED_S:
        raise ValueError(f"some {lost_s:.1f} s of the music are damaged")
    return mixdown


def _decode_packets(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[tuple[int, list[av.AudioFrame] | None]]:
    """Yield each packet's size in bytes and its frames, None where it is damaged, until the container ends."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        try:
            yield packet.size, [frame for frame in packet.decode() if isinstance(frame, av.AudioFrame)]
        except av.FFmpegError:
            yield packet.size, None


def _read_stated_duration(
    container: av.container.InputContainer, stream: av.AudioStream, data: bytes
) -> float | None:
    """Return the duration that the header states, in seconds; None where it states none or FFmpeg guesses."""
    if container.format.name == "asf":
        return asf_duration_s(data)
    if container.format.name == "mp3":
        return mp3_duration_s(data)
    if container.format.name not in _FORMATS_WITH_DURATION:
        return None
    if container.format.name == _MATROSKA and len(container.streams) > 1:
        return None  # one figure for all streams: a video beside the music may be longer
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _drain(fifo: av.AudioFifo) -> NDArray[np.float32]:
    """Return all waiting samples as (num_samples, num_channels), full scale 1."""
    frame = fifo.read()
    assert frame is not None
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def _failure(reason: Reason, message: str) -> TrackError:
    return TrackError(Stage.DECODE, reason, message)
