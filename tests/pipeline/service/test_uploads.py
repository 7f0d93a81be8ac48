import time
from collections.abc import Iterator

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from musicfm_model.checkpoint import load_checkpoint
from pipeline.config import Recipe
from pipeline.decode.isolation import DecoderProcess
from pipeline.search.query import AudioQuery
from pipeline.service.uploads import MAX_WAITING, UploadEmbedder
from tests.corpus import MUSIC

CLIP = (MUSIC / "crossroads.wav").read_bytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    decoder = DecoderProcess()
    decoder.start()
    yield decoder
    decoder.stop()


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
    np.testing.assert_array_equal(upload.file.vectors, uploads.audio_query.embed(CLIP, resolution).vectors)
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
