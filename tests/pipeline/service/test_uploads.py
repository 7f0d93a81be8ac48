import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from musicfm_model.checkpoint import load_checkpoint
from pipeline.config import Recipe
from pipeline.decode.audio import decode_audio
from pipeline.errors import Reason, TrackError
from pipeline.search.query import AudioQuery
from pipeline.service.uploads import MAX_WAITING, DecoderProcess, UploadEmbedder
from tests.corpus import MUSIC

CLIP = (MUSIC / "crossroads.wav").read_bytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    decoder = DecoderProcess()
    decoder.start()
    yield decoder
    decoder.stop()


def pid_of(decoder: DecoderProcess) -> int:
    assert decoder._process is not None
    assert decoder._process.pid is not None
    return decoder._process.pid


def signal_soon(pid: int, number: signal.Signals) -> None:
    threading.Timer(0.3, os.kill, (pid, number)).start()


def test_what_the_child_decodes_is_what_the_catalog_decodes(decoder: DecoderProcess) -> None:
    expected = decode_audio(CLIP)
    found = decoder.decode(CLIP, 60.0)
    np.testing.assert_array_equal(found.waveform, expected.waveform)
    assert (found.codec, found.duration_s) == (expected.codec, expected.duration_s)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", Reason.EMPTY_FILE), (b"<html></html>", Reason.UNREADABLE), (os.urandom(50_000), Reason.UNREADABLE)],
)
def test_a_bad_file_says_why_and_costs_no_child(decoder: DecoderProcess, data: bytes, reason: Reason) -> None:
    before = pid_of(decoder)
    with pytest.raises(TrackError) as found:
        decoder.decode(data, 60.0)
    assert found.value.reason is reason
    assert pid_of(decoder) == before


def test_a_long_file_is_refused(decoder: DecoderProcess) -> None:
    with pytest.raises(TrackError) as found:
        decoder.decode(CLIP, 1.0)
    assert found.value.reason is Reason.TOO_LONG


def test_a_file_that_kills_its_child_is_told_so_and_the_next_one_gets_another(decoder: DecoderProcess) -> None:
    killed = pid_of(decoder)
    os.kill(killed, signal.SIGSTOP)  # so that it is at work when it dies
    signal_soon(killed, signal.SIGKILL)
    with pytest.raises(TrackError) as found:
        decoder.decode(CLIP, 60.0)
    assert found.value.reason is Reason.WORKER_CRASHED
    assert decoder.decode(CLIP, 60.0).codec == "pcm_s16"
    assert pid_of(decoder) != killed


def test_a_file_that_never_ends_is_given_up(decoder: DecoderProcess) -> None:
    hung = pid_of(decoder)
    decoder.timeout_s, before = 0.5, decoder.timeout_s
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(TrackError, match="decodes within"):
        decoder.decode(CLIP, 60.0)
    decoder.timeout_s = before
    assert decoder.decode(CLIP, 60.0).codec == "pcm_s16"
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_one_bad_file_costs_the_others_nothing(decoder: DecoderProcess) -> None:
    def try_one(number: int) -> str:
        try:
            return decoder.decode(CLIP if number % 2 else b"no music", 60.0).codec
        except TrackError as error:
            return error.reason.value

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(try_one, range(16)))
    assert found == ["unreadable", "pcm_s16"] * 8


def test_a_child_that_is_stopped_is_gone() -> None:
    decoder = DecoderProcess()
    decoder.start()
    pid = pid_of(decoder)
    decoder.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture(scope="module")
def uploads(tiny_checkpoint: str, decoder: DecoderProcess) -> UploadEmbedder:
    checkpoint = load_checkpoint(str(tiny_checkpoint))
    recipe = Recipe(checkpoint.sha256, 2)
    uploads = UploadEmbedder(AudioQuery(checkpoint, recipe.recipe_id, recipe.definition, "cpu", 60.0))
    uploads.decoder = decoder
    return uploads


@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_an_upload_has_the_vectors_that_a_query_by_audio_has(uploads: UploadEmbedder, resolution: str) -> None:
    upload = uploads.embed(CLIP, resolution)
    assert upload.duration_s == 8.0
    np.testing.assert_array_equal(upload.heard.vectors, uploads.audio_query.embed(CLIP, resolution).vectors)
    assert upload.frames.shape == (64, 32)


def test_a_full_queue_asks_to_come_back_and_places_are_given_back(uploads: UploadEmbedder) -> None:
    taken = [uploads.take_place() for _ in range(MAX_WAITING)]
    for place in taken:
        place.__enter__()
    with pytest.raises(HTTPException) as found, uploads.take_place():
        pass
    assert (found.value.status_code, found.value.headers) == (503, {"retry-after": "10"})
    for place in taken:
        place.__exit__(None, None, None)
    with uploads.take_place():
        time.sleep(0)
