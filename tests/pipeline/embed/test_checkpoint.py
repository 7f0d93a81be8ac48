from pathlib import Path

import pytest

from musicfm_model.checkpoint import load_checkpoint as load_with_the_model
from musicfm_model.errors import CheckpointError as ModelCheckpointError
from pipeline.embed.checkpoint import load_checkpoint
from pipeline.errors import CheckpointError


def test_it_is_what_the_model_loads(tiny_checkpoint: Path) -> None:
    assert load_checkpoint(str(tiny_checkpoint)).sha256 == load_with_the_model(str(tiny_checkpoint)).sha256


def test_a_broken_one_is_told_in_the_models_words(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ModelCheckpointError) as expected:
        load_with_the_model(str(tmp_path / "broken.pt"))
    with pytest.raises(CheckpointError) as found:
        load_checkpoint(str(tmp_path / "broken.pt"))
    assert str(found.value) == str(expected.value)
    assert "\n" not in str(found.value)
