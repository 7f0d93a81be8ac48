"""FFmpeg as a decoder, into one mono signal at the source's rate.

It reads whatever it knows: its packets tell how long a recording is whatever the header says, and what of it is
damaged.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from pipeline.decode.losses import NO_TIME, Lengths, PacketLog
from pipeline.decode.mixdown import BLOCK_VALUES, Mixdown
from pipeline.decode.piped import mend_piped
from pipeline.decode.stated_length import (
    asf_duration_s,
    compare_bytes,
    count_ogg_payload,
    find_audio_bytes,
    find_recordings,
    is_unknown_size,
    mp3_duration_s,
    wav_duration_s,
)
from pipeline.decode.wrapping import count_tag_bytes, count_zeroed_bytes, find_adts_start, require_alone
from pipeline.errors import Reason, Stage, TrackError

_JITTER_S = 0.002  # of times that a container rounds to a millisecond

# Encoding (PCM, float, extensible), channels, rate, bytes a second, bytes a frame and bits a sample of a wav file.
_PCM_WAV = re.compile(rb"fmt .{4}(?:[\x01\x03]\0|\xfe\xff)(..).{8}(..)(..)", re.DOTALL)

# FFmpeg's names of the formats whose duration it takes from the header. For raw aac, ac3 and others it estimates
# one from the bit rate, for ogg, mpegts and nut it takes the last packet's time.
_MATROSKA, _MP4 = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"
_FORMATS_WITH_DURATION = {
    *("flac", "wv", "tta", "ape", "mpc", "dsf", "iff", "aiff", "caf", "flv", "asf"),
    *(_MATROSKA, _MP4),
}
_FORMATS_THAT_COUNT_TWICE = {"wav", "w64", "aiff", "caf"}  # bytes and samples, or bytes of a sample and of a frame
_FORMATS_WITH_END = {_MATROSKA, "asf"}  # what they state is the time at which the recording ends
# Behind the last packet here, as far as its place is known, an index may follow; or chunks, which `compare_bytes`
# tells from audio.
_FORMATS_WITHOUT_END = {
    *("mpeg", "avi"),
    *("wav", "w64", "aiff", "caf", "au", "dsf", "iff"),
}
_BARE_FORMATS = {"mp3", "aac", "ac3", "eac3", "dts", "truehd", "mlp", "loas", "amr"}

# Codecs whose packets carry a checksum that their encoders get right, which FFmpeg looks at when told to. Those in
# MPEG audio are often wrong in sound files.
_CHECKED_CODECS = {"flac", "wavpack", "tta", "ape", "ac3", "eac3"}


class Declined(Exception):  # noqa: N818 - no error: libsndfile is asked next
    """FFmpeg does not know the file, or finds nothing in it that it can decode."""


def decode_with_ffmpeg(data: bytes, max_duration_s: float) -> Mixdown:
    """Decode the first audio stream through FFmpeg, stepping over damaged packets.

    Args:
        data: The whole file.
        max_duration_s: The limit.

    Raises:
        Declined: libsndfile may do better.
        TrackError: The file is truncated, damaged or several in one, the rate is absurd, or the duration over the
            limit.
    """
    data = mend_piped(data)
    present_share = compare_bytes(data)
    if present_share == 0:
        raise _failure(Reason.TRUNCATED, "the file ends before the audio that its header states")
    mixdown, lengths, log = _decode(data, max_duration_s, is_strict=True)
    lengths.require_agreement()
    require_alone(data, log.end_bytes)
    # A frame with a wrong checksum is missing, at times without an error; or it is one packet with the next.
    whole_s = max(lengths.packets_s, lengths.stated_s or 0.0) - _JITTER_S
    is_whole = whole_s <= mixdown.duration_s <= log.duration_s + _JITTER_S
    if log.is_damaged or (mixdown.codec in _CHECKED_CODECS and not is_whole):
        # Little enough: as FFmpeg plays it, checksums or not.
        mixdown, _, _ = _decode(data, max_duration_s, is_strict=False)
    return mixdown


def _decode(data: bytes, max_duration_s: float, is_strict: bool) -> tuple[Mixdown, Lengths, PacketLog]:
    """Return what FFmpeg decodes, how long it should be, and what the packets told."""
    # Tags need not be valid UTF-8. A playlist that calls itself a track must not open other files.
    options = {"protocol_whitelist": ""}
    if _is_plain_pcm(data):
        options["max_size"] = "65536"  # packets of 4 KB each cost as much as one of mp3
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore", options=options) as container:
            streams = container.streams.audio
            if not streams or streams[0].codec_context is None:
                missing = "decoder for the audio" if streams else "audio"
                raise Declined(f"no {missing} in this {container.format.long_name} file")
            return _mix_stream(container, streams[0], data, max_duration_s, is_strict)
    except (av.FFmpegError, ValueError) as error:
        raise Declined(getattr(error, "strerror", None) or str(error)) from error


def _is_plain_pcm(data: bytes) -> bool:
    """Say whether a file is PCM in a wav whose frames have the size that the header states.

    FFmpeg cuts packets by that size: by a wrong one it would lose the beat at each of them.
    """
    layout = _PCM_WAV.search(data, 0, 4096)
    if layout is None:
        return False
    num_channels, frame_bytes, sample_bits = (int.from_bytes(field, "little") for field in layout.groups())
    return frame_bytes == num_channels * -(-sample_bits // 8)


def _mix_stream(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    data: bytes,
    max_duration_s: float,
    is_strict: bool,
) -> tuple[Mixdown, Lengths, PacketLog]:
    """Mix down all that can be decoded; see ``_decode``."""
    codec = re.sub(r"(?<=\d)[lb]e$", "", stream.codec_context.codec.canonical_name)
    if is_strict and codec in _CHECKED_CODECS:
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    stated_s = _read_stated_duration(container, stream, data)
    mixdown = Mixdown(codec, stream.rate, stated_s, max_duration_s)
    log = PacketLog()
    fifo = av.AudioFifo()  # joins a codec's short frames
    sample_rate_hz = num_channels = 0
    frames_at_once, tick_s = 1, 0.0
    add_time, add_num_samples = log.times.append, log.num_samples.append  # looked up once: frames are many
    for number, frame in enumerate(_decode_frames(container, stream, log, data), start=1):
        if frame.sample_rate != sample_rate_hz or frame.layout.nb_channels != num_channels:
            if number > 1:  # the queue would crash on other channels
                raise _failure(Reason.UNREADABLE, "the sample rate or the channels change midway")
            sample_rate_hz, num_channels = frame.sample_rate, frame.layout.nb_channels
            mixdown.sample_rate_hz = sample_rate_hz  # of HE-AAC, twice what the stream says
            frames_at_once = max(1, BLOCK_VALUES // max(1, frame.samples * num_channels))
            tick_s = float(frame.time_base or 0)
        time = frame.pts
        add_time(NO_TIME if time is None else time)
        add_num_samples(frame.samples)
        frame.pts = None
        fifo.write(frame)
        if number % frames_at_once == 0:
            mixdown.add(_drain(fifo))
            log.pack()
    if fifo.samples:
        mixdown.add(_drain(fifo))
    if log.is_damaged and not mixdown.num_samples:
        raise Declined("no packet can be decoded")
    log.duration_s = int(log.durations.read().sum()) * float(stream.time_base or 0)
    packets_s = max(log.duration_s, mixdown.duration_s + log.sum_gaps(tick_s, mixdown.sample_rate_hz))
    name = container.format.name
    lost_share = _measure_loss(name, log, data)
    is_exact = name in _FORMATS_THAT_COUNT_TWICE and codec.startswith("pcm_")
    lengths = Lengths(mixdown.duration_s, packets_s, stated_s, compare_bytes(data), lost_share, is_exact)
    return mixdown, lengths, log


def _decode_frames(
    container: av.container.InputContainer, stream: av.AudioStream, log: PacketLog, data: bytes
) -> Iterator[av.AudioFrame]:
    """Yield the frames of all packets that can be decoded, until the container ends."""
    is_ogg = container.format.name == "ogg"
    recordings = find_recordings(data) if is_ogg else []
    others = [other for other in container.streams if other != stream and _has_packets(other)]
    # Packets are many: a call of a method more for each costs a tenth of a millisecond a clip.
    add_size, add_position, add_duration = log.sizes_bytes.append, log.positions.append, log.durations.append
    decode = stream.codec_context.decode
    try:
        for packet in container.demux(stream, *others):
            size_bytes, position = packet.size, packet.pos
            if others and packet.stream_index != stream.index:
                log.other_bytes += size_bytes
                log.other_end_bytes = max(log.other_end_bytes, (position or 0) + size_bytes)
                continue
            add_duration(0 if packet.is_discard else packet.duration or 0)
            add_position(-1 if position is None else position)
            if is_ogg and size_bytes and position is not None:
                is_first = bool(recordings) and position >= recordings[0]
                recordings = [start for start in recordings if start > position] if is_first else recordings
                log.note_page(position, is_first)
            try:
                frames = decode(packet)
            except av.FFmpegError:
                add_size(-size_bytes)
                continue
            add_size(size_bytes)
            yield from frames
    except av.FFmpegError:  # what is left shows as unread bytes
        return


def _has_packets(stream: av.stream.Stream) -> bool:
    """Say whether a stream beside the music is one: no cover, and nothing that FFmpeg only supposes."""
    is_known = getattr(stream, "codec_context", None) is not None
    return is_known and not stream.disposition & Disposition.attached_pic


def _measure_loss(name: str, log: PacketLog, data: bytes) -> float:
    """Return the size of what stands for music and cannot be decoded, by the size of what can be read.

    Around a bare stream there are tags and rubbish, which come as packets that do not decode.
    """
    good, before, between, behind = log.count_bytes()
    if name == "aac":  # what FFmpeg skips between frames comes in no packet
        lost = len(data) - find_adts_start(data) - good - behind
    elif name in _BARE_FORMATS:
        lost = between
    elif name in _FORMATS_WITHOUT_END:
        lost = before + between + behind
    elif name == "ogg":
        lost = count_ogg_payload(data) - good
    else:
        lost = before + between + behind + len(data[log.end_bytes :].rstrip(b"\0"))
    if lost > 0:
        lost -= count_tag_bytes(data)
    if name in _BARE_FORMATS:
        lost = max(lost, count_zeroed_bytes(data))
    return max(0, lost) / max(1, good + log.other_bytes)


def _read_stated_duration(
    container: av.container.InputContainer, stream: av.AudioStream, data: bytes
) -> float | None:
    """Return the duration that the header states, in seconds; None where it states none or FFmpeg guesses."""
    name = container.format.name
    if name == "mp3":
        return mp3_duration_s(data)
    if name in ("wav", "w64"):
        return wav_duration_s(data)
    if name not in _FORMATS_WITH_DURATION:
        return None
    if name == _MATROSKA and len(container.streams) > 1:
        return None  # one figure for all streams: a video beside the music may be longer
    if name in ("aiff", "caf") and is_unknown_size(data, find_audio_bytes(data)[1]):
        return None  # from a pipe: the number of frames is made up, too
    if name == "asf":
        stated_s = asf_duration_s(data)
    elif stream.duration and stream.time_base:
        stated_s = float(stream.duration * stream.time_base)
    else:
        stated_s = container.duration / av.time_base if container.duration else None
    if stated_s and name in _FORMATS_WITH_END and stream.start_time and stream.time_base:
        start_s = float(stream.start_time * stream.time_base)
        return stated_s - start_s if 0 < start_s < stated_s else stated_s
    return stated_s


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
