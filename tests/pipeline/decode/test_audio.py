import functools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from pipeline.config import MIN_SAMPLES
from pipeline.decode import audio, ffmpeg
from pipeline.decode.audio import decode_audio
from pipeline.decode.mixdown import Mixdown
from pipeline.errors import Reason, Stage, TrackError
from tests.corpus import MUSIC, encode_clip, load_music, make_failures
from tests.encoders import encode_bytes, encode_in_container, encode_mp3_without_length


@functools.cache
def make_stereo(sample_rate: int) -> NDArray[np.float32]:
    """Two different pieces on the two channels, so that a lost channel shows."""
    names = ("desert.flac", "caves.mp3")
    return np.concatenate([load_music(name, 2.5, sample_rate) for name in names], axis=1)


def resample_in_scipy(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    common = math.gcd(rate, 24_000)
    resampled: NDArray[np.float64] = resample_poly(waveform.astype(np.float64), 24_000 // common, rate // common)
    return resampled


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    num_samples = min(found.size, expected.size)
    difference = found[:num_samples] - expected[:num_samples]
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected[:num_samples] ** 2)))


def catch(data: bytes, max_duration_s: float = 7200.0) -> TrackError:
    with pytest.raises(TrackError) as caught:
        decode_audio(data, max_duration_s)
    assert caught.value.stage is Stage.DECODE
    return caught.value


# How far the two filters, and then a lossy encoder, may take the music from its source. One channel lost, or an
# offset of 10 samples, gives over 0.7.
@pytest.mark.parametrize(
    ("ending", "rate", "codec", "tolerance"),
    [
        (".wav", 8_000, "pcm_s16", 0.01),
        (".wav", 44_100, "pcm_s16", 0.01),
        (".flac", 22_050, "flac", 0.01),
        (".flac", 96_000, "flac", 0.01),
        (".aiff", 48_000, "pcm_s16", 0.01),
        (".ogg", 44_100, "vorbis", 0.15),
        (".ogg", 32_000, "vorbis", 0.15),
        (".opus", 48_000, "opus", 0.15),
        (".opus", 24_000, "opus", 0.15),
        (".mp3", 44_100, "mp3", 0.15),
        (".mp3", 16_000, "mp3", 0.15),
        (".m4a", 44_100, "aac", 0.15),
        (".m4a", 22_050, "aac", 0.15),
        (".wma", 44_100, "wmav2", 0.15),
        (".wma", 32_000, "wmav2", 0.15),
    ],
)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_waveform_is_the_resampled_mean_of_the_source(
    ending: str, rate: int, codec: str, tolerance: float, num_channels: int, tmp_path: Path
) -> None:
    source = make_stereo(rate)[:, :num_channels]
    encode_clip(tmp_path / f"clip{ending}", source, rate)
    audio = decode_audio((tmp_path / f"clip{ending}").read_bytes())
    assert (audio.codec, audio.num_channels) == (codec, num_channels)
    assert audio.source_sample_rate_hz == (48_000 if codec == "opus" else rate)  # opus knows no other
    assert audio.duration_s == pytest.approx(2.5, abs=0.12)
    if codec == "wmav2":  # FFmpeg drops the delay of Microsoft's encoder, 2048 samples more than its own has
        source = source[2048:]
    assert relative_error(audio.waveform, resample_in_scipy(source.mean(axis=1), rate)) < tolerance


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64"])
@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_lossless_music_at_24_khz_is_left_as_it_is(container: str, num_channels: int) -> None:
    steps = np.random.default_rng(3).integers(-20_000, 20_000, (5_000, num_channels), dtype=np.int16)
    audio = decode_audio(encode_bytes(steps, 24_000, format=container, subtype="PCM_16"))
    np.testing.assert_allclose(audio.waveform, (steps / 2**15).mean(axis=1), atol=1e-7)
    assert audio.waveform.dtype == np.float32


@pytest.mark.parametrize(("name", "seconds"), [("caves.mp3", 30), ("mountain.mp3", 41), ("desert.flac", 10)])
def test_length_is_exact_where_the_encoder_tells_its_padding(name: str, seconds: int) -> None:
    audio = decode_audio((MUSIC / name).read_bytes())
    assert audio.waveform.size == 24_000 * seconds
    assert audio.duration_s == seconds


def test_every_demo_clip_decodes_but_the_broken_one() -> None:
    clips = [path for path in sorted(MUSIC.iterdir()) if path.suffix != ".md"]
    assert len(clips) == 13
    for path in clips:
        if path.stem == "broken":
            assert catch(path.read_bytes()).reason is Reason.TRUNCATED
        else:
            assert 8 <= decode_audio(path.read_bytes()).duration_s <= 41


def test_quality_figures_equal_a_plain_count() -> None:
    rng = np.random.default_rng(4)
    source = rng.normal(0, 0.3, (24_000 * 2 + 500, 2)).clip(-1.0, 0.9995).astype(np.float32)
    source[960 * 3 : 960 * 10] *= 3e-3  # to -64 dBFS of the mean
    source[960 * 20 : 960 * 25] *= 6e-3  # to -58
    audio = decode_audio(encode_bytes(source, 24_000, format="WAV", subtype="FLOAT"))
    mono = source.astype(np.float64).mean(axis=1)
    num_silent = sum(
        20 * math.log10(math.sqrt(sum(mono[start : start + 960] ** 2) / 960)) < -60
        for start in range(0, 50 * 960, 960)
    )
    assert num_silent == 7
    assert audio.silent_share == num_silent / 50
    assert audio.clipped_share == sum(abs(value) >= 0.999 for value in source.ravel()) / source.size > 0
    assert audio.peak == max(abs(value) for value in source.ravel())
    assert audio.rms == pytest.approx(math.sqrt(sum(mono**2) / mono.size), rel=1e-6)


def test_each_kind_of_bad_file_has_its_reason(tmp_path: Path) -> None:
    expected = make_failures(tmp_path)
    errors = {name: catch((tmp_path / name).read_bytes()) for name in expected}
    assert {name: error.reason for name, error in errors.items()} == expected
    assert not [error.message for error in errors.values() if "\n" in error.message]
    assert set(expected.values()) >= {"truncated", "unreadable", "empty_file", "silent", "too_short"}


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "FLOAT"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_truncation_shows_in_every_container_that_libsndfile_writes(container: str, subtype: str) -> None:
    data = encode_bytes(load_music(seconds=4.0), 44_100, format=container, subtype=subtype)
    assert decode_audio(data).duration_s == pytest.approx(4.0, abs=0.1)
    error = catch(data[: len(data) // 2])
    assert error.reason is Reason.TRUNCATED
    assert "by the header and" in error.message


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "aac"),
        ("asf", "wmav2"),
        ("matroska", "aac"),
        ("wv", "wavpack"),
        ("tta", "tta"),
        ("mp3", "libmp3lame"),
    ],
)
def test_truncation_shows_in_every_container_that_ffmpeg_writes(container: str, codec: str) -> None:
    data = encode_in_container(load_music(seconds=4.0), 44_100, container, codec)
    assert decode_audio(data).duration_s == pytest.approx(4.0, abs=0.1)
    assert catch(data[: len(data) // 2]).reason is Reason.TRUNCATED


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), bytes(5000), b"junk" * 700])
@pytest.mark.parametrize("rate", [44_100, 96_000])
def test_what_stands_behind_a_flac_takes_no_music_away(rate: int, behind: bytes) -> None:
    clean = encode_bytes(make_stereo(rate), rate, format="FLAC", subtype="PCM_16")
    expected, found = decode_audio(clean), decode_audio(clean + behind)
    assert found.duration_s == expected.duration_s == 2.5
    np.testing.assert_array_equal(found.waveform, expected.waveform)


@pytest.mark.parametrize("size", [100, 100_000, 900_000])
@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("AIFF", "PCM_24"), ("FLAC", "PCM_16")])
def test_a_tag_before_a_file_takes_no_music_away(container: str, subtype: str, size: int) -> None:
    clean = encode_bytes(make_stereo(44_100), 44_100, format=container, subtype=subtype)
    length = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    found = decode_audio(b"ID3\x03\x00\x00" + length + bytes(size) + clean)
    np.testing.assert_array_equal(found.waveform, decode_audio(clean).waveform)
    cut = b"ID3\x03\x00\x00" + length + bytes(size) + clean[: len(clean) // 2]
    assert catch(cut).reason is Reason.TRUNCATED


def test_less_than_a_second_may_be_missing() -> None:
    data = encode_bytes(load_music(seconds=4.0), 44_100, format="WAV")
    assert decode_audio(data[: -int(0.9 * 44_100) * 4]).duration_s == pytest.approx(3.1)
    assert catch(data[: -int(1.1 * 44_100) * 4]).reason is Reason.TRUNCATED


def test_what_states_no_length_decodes_to_what_is_there() -> None:
    music = load_music(seconds=4.0, sample_rate=48_000)
    for data in (
        encode_bytes(music, 48_000, format="OGG", subtype="VORBIS"),
        encode_bytes(music, 48_000, format="OGG", subtype="OPUS"),
        encode_mp3_without_length(music, 48_000, 96_000),
        encode_in_container(music, 48_000, "adts", "aac"),
    ):
        assert 0.9 < decode_audio(data[: len(data) // 2]).duration_s < 2.5


def test_an_mp4_cut_before_its_index_says_so() -> None:
    data = encode_in_container(load_music(), 44_100, "adts", "aac")
    message = catch(b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2" + data).message
    assert "index (moov)" in message


def test_a_wav_that_ends_with_its_header_is_truncated() -> None:
    assert catch(encode_bytes(load_music(), 44_100, format="WAV")[:44]).reason is Reason.TRUNCATED


@pytest.mark.parametrize("num_samples", [0, MIN_SAMPLES - 1])
def test_one_sample_less_than_the_model_can_take(num_samples: int) -> None:
    music = load_music(seconds=1.0, sample_rate=24_000)
    error = catch(encode_bytes(music[:num_samples], 24_000, format="WAV"))
    assert error.reason is Reason.TOO_SHORT
    assert str(num_samples) in error.message
    assert decode_audio(encode_bytes(music[:MIN_SAMPLES], 24_000, format="WAV")).waveform.size == MIN_SAMPLES


@pytest.mark.parametrize("name", ["ocean.mp3", "palace.m4a", "icy-land.opus", "laboratory.wma", "desert.flac"])
def test_too_long_by_the_header(name: str) -> None:
    data = (MUSIC / name).read_bytes()
    error = catch(data, max_duration_s=9.0)
    assert error.reason is Reason.TOO_LONG
    assert "--max-duration-s" in error.message
    assert decode_audio(data, max_duration_s=20.5).duration_s > 9


def test_too_long_by_what_is_decoded() -> None:
    data = encode_mp3_without_length(load_music(seconds=6.0), 44_100, 64_000)
    error = catch(data, max_duration_s=4.0)
    assert error.reason is Reason.TOO_LONG
    assert decode_audio(data, max_duration_s=7.0).duration_s > 5.9


@pytest.mark.parametrize("rate", [100, 999, 768_001, 2_000_000])
def test_absurd_rates_are_refused(rate: int) -> None:
    error = catch(encode_bytes(load_music(), rate, format="WAV"))
    assert error.reason is Reason.UNREADABLE
    assert str(rate) in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_one_bad_number_is_enough(value: float) -> None:
    music = load_music(seconds=1.0).copy()
    music[20_000:20_005] = value
    error = catch(encode_bytes(music, 44_100, format="WAV", subtype="FLOAT"))
    assert error.reason is Reason.NON_FINITE_AUDIO


@pytest.mark.parametrize(("subtype", "is_damaged"), [("aac", True), ("mp3", True), ("pcm_f32", False)])
def test_what_is_far_over_full_scale_is_damage_but_in_files_of_floats(
    subtype: str, is_damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few flipped bits of aac come out at 40,000 times full scale, and are heard in all that follows."""
    waveform = np.sin(np.arange(48_000, dtype=np.float32)) * 20_000
    data = encode_bytes(waveform, 24_000, format="WAV", subtype="FLOAT")
    real = ffmpeg.decode_with_ffmpeg

    def decode_as(data: bytes, max_duration_s: float) -> Mixdown:
        mixdown = real(data, max_duration_s)
        mixdown.codec = subtype
        return mixdown

    monkeypatch.setattr(audio, "decode_with_ffmpeg", decode_as)
    if is_damaged:
        error = catch(data)
        assert (error.reason, f"no encoder of {subtype}" in error.message) == (Reason.UNREADABLE, True)
    else:
        assert decode_audio(data).peak == pytest.approx(20_000, rel=0.01)


@pytest.mark.parametrize(("peak", "is_silent"), [(0.9e-4, True), (1.1e-4, False)])
def test_silence_ends_at_80_db_below_full_scale(peak: float, is_silent: bool) -> None:
    music = load_music(seconds=1.0, sample_rate=24_000) / np.float32(0.9)
    tone = np.full((24_000, 1), peak) * np.where(np.arange(24_000) % 50 < 25, 1, -1)[:, None]
    for samples in (music[:, :1] * np.float32(peak / np.abs(music[:, :1]).max()), tone):
        data = encode_bytes(samples, 24_000, format="WAV", subtype="FLOAT")
        if is_silent:
            assert catch(data).reason is Reason.SILENT
        else:
            assert decode_audio(data).silent_share == 1.0


def test_the_ending_of_a_name_plays_no_part(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "really.flac", load_music(), 44_100)
    (tmp_path / "really.flac").rename(tmp_path / "said_to_be.mp3")
    assert decode_audio((tmp_path / "said_to_be.mp3").read_bytes()).codec == "flac"
