"""Make the demo's clips from the music of the game HyperRogue (Debian's package hyperrogue-music).

Run as ``python demo/make_clips.py FOLDER``, where FOLDER holds the package's ``music/*.ogg``. Whose music it is
and under which licence stands in ``music/ATTRIBUTION.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

MUSIC = Path(__file__).parent / "music"

_FFMPEG_CODECS = {".mp3": "libmp3lame", ".m4a": "aac", ".wma": "wmav2"}
_BLOCK_SAMPLES = 4096
_TAGS = {"album": "HyperRogue", "genre": "Soundtrack"}


@dataclass(frozen=True)
class Clip:
    """An excerpt of a piece and how it is encoded; the encoder follows from the file's ending."""

    name: str
    title: str
    artist: str
    source: str
    start_s: float
    duration_s: float
    sample_rate: int
    num_channels: int
    bit_rate: int = 96_000


CLIPS = (
    Clip("caribbean.ogg", "Caribbean", "Will Savino", "hr-savino-caribbean.ogg", 12.0, 14.0, 44_100, 2),
    Clip("caves.mp3", "Caves", "Shawn Parrotte", "hr3-caves.ogg", 4.0, 30.0, 22_050, 1, 64_000),
    Clip("caves-later.ogg", "Caves (Later)", "Shawn Parrotte", "hr3-caves.ogg", 42.0, 12.0, 44_100, 2),
    Clip("crossroads.wav", "Crossroads", "Shawn Parrotte", "hr3-crossroads.ogg", 16.0, 8.0, 16_000, 1),
    Clip("desert.flac", "Desert", "Shawn Parrotte", "hr3-desert.ogg", 30.0, 10.0, 22_050, 1),
    Clip("hunting.mp3", "Hunting", "Lincoln Domina", "hr-domina-hunting.ogg", 20.0, 18.0, 32_000, 2),
    Clip("icy-land.opus", "Icy Land", "Shawn Parrotte", "hr3-icyland.ogg", 25.0, 15.0, 48_000, 2),
    Clip("ivory-tower.m4a", "Ivory Tower", "Will Savino", "hr-savino-ivory.ogg", 10.0, 16.0, 32_000, 1, 64_000),
    Clip("laboratory.wma", "Laboratory", "Shawn Parrotte", "hr3-laboratory.ogg", 40.0, 14.0, 44_100, 2),
    Clip("mountain.mp3", "Mountain", "Lincoln Domina", "hr-domina-mountain.ogg", 15.0, 41.0, 44_100, 2),
    Clip("ocean.mp3", "Ocean", "Will Savino", "hr-savino-ocean.ogg", 18.0, 20.0, 44_100, 2, 128_000),
    Clip("palace.m4a", "Palace", "Will Savino", "hr-savino-palace.ogg", 22.0, 20.0, 44_100, 2),
)
"""``caves.mp3`` is as the previews of the MSD are, ``mountain.mp3`` longer than the model's window."""

BROKEN = "broken.mp3"  # the first third of ocean.mp3, as a download that broke off would leave it


def encode_clip(
    path: Path,
    waveform: NDArray[np.float32],
    sample_rate: int,
    bit_rate: int = 96_000,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Encode a waveform, (num_samples, num_channels), by the file's ending.

    Args:
        path: Ends in .mp3, .m4a or .wma (FFmpeg encodes), .opus, or what libsndfile knows (.wav .flac .ogg …).
        waveform: Samples, full scale 1; one or two channels.
        sample_rate: Their rate.
        bit_rate: Bits a second, of what FFmpeg encodes.
        tags: What the file is to say of itself: title, artist, album, genre, track, date.
    """
    if path.suffix in _FFMPEG_CODECS:
        options = {"fflags": "+bitexact"}  # no version and no date: the same clip has the same bytes
        if path.suffix == ".m4a":
            options["movflags"] = "+faststart"  # the index first, as shops write it
        codec = _FFMPEG_CODECS[path.suffix]
        encode_with_ffmpeg(str(path), waveform, sample_rate, codec, bit_rate, options, tags=tags)
        return
    form = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    with soundfile.SoundFile(path, "w", sample_rate, waveform.shape[1], **form) as file:
        for name, text in (tags or {}).items():
            setattr(file, {"track": "tracknumber"}.get(name, name), text)
        file.write(waveform)


def encode_with_ffmpeg(
    file: str | BinaryIO,
    waveform: NDArray[np.float32],
    sample_rate: int,
    codec: str,
    bit_rate: int,
    options: dict[str, str],
    container_format: str | None = None,
    tags: Mapping[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> None:
    """Encode a waveform, (num_samples, num_channels), with any of FFmpeg's encoders.

    Args:
        file: A path, whose ending tells the container, or a file object.
        waveform: Samples, full scale 1; one or two channels.
        sample_rate: Their rate.
        codec: FFmpeg's name of the encoder.
        bit_rate: Bits a second.
        options: Of the container, as FFmpeg's muxers name them.
        container_format: FFmpeg's name of the container, for a file object.
        tags: As FFmpeg names them.
        codec_options: Of the encoder, as FFmpeg names them.
    """
    layout = "mono" if waveform.shape[1] == 1 else "stereo"
    with av.open(file, "w", format=container_format, options=options) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=sample_rate, layout=layout, options=codec_options)
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bit_rate
        for start in range(0, len(waveform), _BLOCK_SAMPLES):
            block = np.ascontiguousarray(waveform[start : start + _BLOCK_SAMPLES].T, np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def load_excerpt(clip: Clip, folder: Path) -> NDArray[np.float32]:
    """Return a clip's samples at its rate and number of channels, (num_samples, num_channels)."""
    path = folder / clip.source
    source_rate = soundfile.info(path).samplerate
    start, stop = (int(seconds * source_rate) for seconds in (clip.start_s, clip.start_s + clip.duration_s))
    samples, _ = soundfile.read(path, start=start, stop=stop, dtype="float32", always_2d=True)
    if clip.num_channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    resampled = torchaudio.functional.resample(torch.from_numpy(samples.T), source_rate, clip.sample_rate)
    excerpt: NDArray[np.float32] = resampled.numpy().T
    return excerpt


def main() -> int:
    """Write all clips."""
    if len(sys.argv) != 2:
        print("usage: python demo/make_clips.py FOLDER_WITH_THE_SOURCES", file=sys.stderr)
        return 2
    for clip in CLIPS:
        waveform = load_excerpt(clip, Path(sys.argv[1]))
        tags = {"title": clip.title, "artist": clip.artist, **_TAGS}
        encode_clip(MUSIC / clip.name, waveform, clip.sample_rate, clip.bit_rate, tags)
    whole = (MUSIC / "ocean.mp3").read_bytes()
    (MUSIC / BROKEN).write_bytes(whole[: len(whole) // 3])
    return 0


if __name__ == "__main__":
    sys.exit(main())
