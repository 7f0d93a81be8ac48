"""Copies for browsers against an independent reader (libsndfile) and the signal that went in."""

import asyncio
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.service import playable
from pipeline.service.audio import AudioFile, answer_with_audio, is_playable
from pipeline.service.playable import PlayableCopies, UnplayableError, make_copy
from tests.corpus import MUSIC


def make_tones(num_samples: int, rate_hz: int, num_channels: int) -> NDArray[np.float32]:
    seconds = np.arange(num_samples) / rate_hz
    tones = [0.4 * np.sin(2 * np.pi * 220 * (channel + 1) * seconds) for channel in range(num_channels)]
    return np.stack(tones, axis=1).astype(np.float32)


def write_with_ffmpeg(path: Path, codec: str, sample_format: str, samples: NDArray[np.float32]) -> None:
    """Encode stereo at 44.1 kHz."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=44_100, layout="stereo", format=sample_format, bit_rate=192_000)
        assert isinstance(stream, av.AudioStream)
        whole = (samples * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(whole, "s16", "stereo")
        frame.sample_rate = 44_100
        for part in (frame, None):
            output.mux(stream.encode(part))


def read_copy(path: Path) -> tuple[NDArray[np.float32], int]:
    copy = make_copy(AudioFile(str(path)))
    samples, rate_hz = soundfile.read(io.BytesIO(copy.read(0, copy.size_bytes)), dtype="float32", always_2d=True)
    return samples, rate_hz


@pytest.mark.parametrize(("rate_hz", "num_channels"), [(8_000, 1), (44_100, 2), (48_000, 2)])
def test_an_aiff_is_copied_sample_by_sample(tmp_path: Path, rate_hz: int, num_channels: int) -> None:
    tones = make_tones(2 * rate_hz + 17, rate_hz, num_channels)
    soundfile.write(tmp_path / "a.aiff", tones, rate_hz, "PCM_16")
    expected, _ = soundfile.read(tmp_path / "a.aiff", dtype="float32", always_2d=True)
    found, found_rate_hz = read_copy(tmp_path / "a.aiff")
    assert found_rate_hz == rate_hz
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "codec", "sample_format"),
    [
        ("a.wma", "wmav2", "fltp"),
        ("a.m4a", "alac", "s16p"),
        ("a.mka", "ac3", "fltp"),
        ("a.wav", "adpcm_ms", "s16"),
        ("a.wv", "wavpack", "s16p"),
    ],
)
def test_what_browsers_lack_sounds_the_same(tmp_path: Path, name: str, codec: str, sample_format: str) -> None:
    tones = make_tones(44_100 * 2, 44_100, 2)
    write_with_ffmpeg(tmp_path / name, codec, sample_format, tones)
    found, rate_hz = read_copy(tmp_path / name)
    assert rate_hz == 44_100
    assert abs(len(found) - len(tones)) < 8192  # a codec's padding
    middle = slice(22_050, 66_150)
    spectra = [np.abs(np.fft.rfft(samples[middle], axis=0)) / 22_050 for samples in (found, tones)]
    np.testing.assert_allclose(spectra[0][[220, 440]], spectra[1][[220, 440]], atol=0.02)


def test_much_of_both_becomes_what_browsers_take(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.aiff", make_tones(192_000, 192_000, 6), 192_000, "PCM_24")
    found, rate_hz = read_copy(tmp_path / "a.aiff")
    assert (rate_hz, found.shape[1]) == (48_000, 2)
    assert len(found) == pytest.approx(48_000, abs=64)


def test_a_copy_is_answered_range_by_range_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(playable, "make_copy", lambda audio: made.append(audio.uri) or make_copy(audio))  # type: ignore[func-returns-value]
    audio = AudioFile(str(MUSIC / "laboratory.wma"))

    async def ask() -> tuple[bytes, bytes]:
        copies = PlayableCopies()
        first, again = await asyncio.gather(copies.get(audio), copies.get(audio))
        assert first is again
        whole = first.read(0, first.size_bytes)
        response = await answer_with_audio(await copies.get(audio), "bytes=1000-1999", None)
        assert response.status_code == 206
        assert response.headers["content-type"] == "audio/flac"
        assert response.headers["content-range"] == f"bytes 1000-1999/{len(whole)}"
        return whole, bytes(response.body)

    whole, part = asyncio.run(ask())
    assert part == whole[1000:2000]
    assert made == [audio.uri]
    other = make_copy(audio)  # as another process would, which answers the next range
    assert other.read(0, other.size_bytes) == whole
    assert other.etag != audio.etag


def test_few_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.aiff", make_tones(8_000, 8_000, 1), 8_000, "PCM_16")
    one = make_copy(AudioFile(str(tmp_path / "0.aiff"))).size_bytes
    monkeypatch.setattr(playable, "MAX_KEPT_BYTES", 2 * one + one // 2)

    async def ask() -> None:
        copies = PlayableCopies()
        found = [await copies.get(AudioFile(str(tmp_path / f"{number}.aiff"))) for number in (0, 1, 0, 2, 3)]
        assert list(copies._kept.values()) == found[3:]
        assert found[0].read(0, 4) == b"fLaC"  # one that is being sent stays readable

    asyncio.run(ask())


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    copy = make_copy(AudioFile(str(MUSIC / "laboratory.wma")))
    assert copy.size_bytes > 1000
    assert list(tmp_path.iterdir()) == []
    number = copy._file.fileno()
    del copy
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("content", [b"", b"Dear reader, this is no music.", bytes(100_000)])
def test_what_is_no_music_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wma").write_bytes(content)
    with pytest.raises(UnplayableError):
        make_copy(AudioFile(str(tmp_path / "a.wma")))


def test_a_copy_that_would_fill_the_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playable, "MAX_COPY_BYTES", 50_000)
    with pytest.raises(UnplayableError, match="over"):
        make_copy(AudioFile(str(MUSIC / "laboratory.wma")))


def test_endings_tell_what_browsers_play() -> None:
    assert all(is_playable(f"s3://bucket/x.{ending}") for ending in ("mp3", "FLAC", "m4a", "ogg", "wav"))
    assert not any(is_playable(f"/music/x.{ending}") for ending in ("wma", "aiff", "AIF", "ape", "wv", "tta", ""))
