"""libsndfile as a decoder, into one mono signal at the source's rate: for what FFmpeg does not know.

It stops at the length that the header states, and of MPEG audio it conceals damage.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile

from pipeline.decode.ffmpeg import Declined
from pipeline.decode.losses import Lengths
from pipeline.decode.mixdown import BLOCK_VALUES, Mixdown
from pipeline.decode.stated_length import compare_bytes, mp3_duration_s
from pipeline.errors import Reason, Stage, TrackError

# libsndfile's names of encodings, in FFmpeg's spelling without the byte order.
_CODECS = {
    "FLOAT": "pcm_f32",
    "DOUBLE": "pcm_f64",
    "ULAW": "pcm_mulaw",
    "ALAW": "pcm_alaw",
    "MPEG_LAYER_III": "mp3",
}

# Of the first four two bytes, or plausible numbers, make a file, so that damaged ones of other formats are taken
# for them. FFmpeg knows the last two, so what it declines is damaged; of a voc, block headers would be played.
_NOT_READ = ("MPC2K", "HTK", "MAT4", "RAW", "SDS", "VOC")


def decode_with_soundfile(data: bytes, max_duration_s: float, declined: Declined) -> Mixdown:
    """Decode through libsndfile what FFmpeg does not know.

    Args:
        data: The whole file.
        max_duration_s: The limit.
        declined: What FFmpeg said of it.

    Raises:
        TrackError: The file is unreadable or truncated, the rate is absurd, or the duration over the limit.
    """
    try:
        is_free_format = data[2:3] < b"\x10" and mp3_duration_s(data) is not None
        if data[:1] == b"\xff" and not is_free_format:
            raise ValueError("not asked: of MPEG audio it conceals damage")
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.subtype.startswith("MPEG") and not is_free_format:
                raise ValueError("MPEG audio, of which it conceals damage")
            if file.format in _NOT_READ:
                raise ValueError(f"{file.format_info}, which is not read: too many damaged files look like it")
            mixdown = _read_soundfile(file, max_duration_s)
            stated_s = file.frames / file.samplerate
    except (soundfile.LibsndfileError, ValueError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        is_cut_mp4 = data[4:8] == b"ftyp" and b"moov" not in data
        hint = "; an MP4 file without its index (moov) was cut short" if is_cut_mp4 else ""
        start = f"{len(data)} bytes that begin with {data[:8]!r}"
        message = f"cannot decode {start}: FFmpeg says '{declined}', libsndfile says '{reason}'{hint}"
        raise TrackError(Stage.DECODE, Reason.UNREADABLE, message) from error
    Lengths(mixdown.duration_s, stated_s=stated_s, present_share=compare_bytes(data)).require_agreement()
    return mixdown


def _read_soundfile(file: soundfile.SoundFile, max_duration_s: float) -> Mixdown:
    """Mix down what libsndfile reads; raise ``ValueError`` where that is nothing."""
    codec = _CODECS.get(file.subtype, file.subtype.lower())
    mixdown = Mixdown(codec, file.samplerate, file.frames / file.samplerate, max_duration_s)
    block = np.empty((max(1, BLOCK_VALUES // file.channels), file.channels), np.float32)
    while num_samples := file.buffer_read_into(block, "float32"):
        mixdown.add(block[:num_samples])
    if not mixdown.num_samples:
        raise ValueError("no samples")
    return mixdown
