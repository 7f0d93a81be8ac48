from pathlib import Path

import numpy as np
import pytest
import torch

from musicfm_model.log_mel import LogMel
from pipeline.errors import UsageError
from pipeline.training import corpus as corpus_module
from pipeline.training.corpus import HELD_OUT, TRAIN, CorpusWriter, compute_log_mel, join_corpora, open_corpus
from tests.corpus import load_music


def write_random(folder: Path, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    written = {name: rng.normal(-20, 15, (length, 8)).astype(np.float16) for name, length in lengths.items()}
    writer = CorpusWriter(folder, n_mels=8)
    for name, rows in written.items():
        writer.add(name, rows, f"by {name}", HELD_OUT if name.startswith("h") else TRAIN)
    writer.close()
    return written


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write_random(tmp_path, {"a": 30, "h": 20, "b": 7000})
    train, held_out = open_corpus(tmp_path, TRAIN), open_corpus(tmp_path, HELD_OUT)
    assert (train.track_ids, held_out.track_ids) == (["a", "b"], ["h"])
    assert train.groups == ["by a", "by b"]
    for found in (train, held_out):
        for index, name in enumerate(found.track_ids):
            first, num = int(found.first_rows[index]), int(found.num_frames[index])
            np.testing.assert_array_equal(found.log_mels[first : first + num].numpy(), written[name])
    values = np.concatenate([written["a"], written["b"]]).astype(np.float64)
    mean, std = train.measure_stats()
    assert (mean, std) == pytest.approx((values.mean(), values.std()), rel=1e-6)


def test_joined_corpora_keep_their_rows(tmp_path: Path) -> None:
    written = write_random(tmp_path / "1", {"a": 10}) | write_random(tmp_path / "2", {"b": 5, "h": 9, "c": 4})
    joined = join_corpora(open_corpus(tmp_path / name, TRAIN) for name in ("1", "2"))
    assert joined.track_ids == ["a", "b", "c"]
    for index, name in enumerate(joined.track_ids):
        first = int(joined.first_rows[index])
        np.testing.assert_array_equal(joined.log_mels[first : first + len(written[name])], written[name])


def test_a_corpus_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a corpus of log-mels"):
        open_corpus(tmp_path, TRAIN)
    write_random(tmp_path, {"a": 10})
    with (tmp_path / "log_mels.f16").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UsageError, match="none that is whole"):
        open_corpus(tmp_path, TRAIN)


def test_a_long_track_in_chunks_is_the_track_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = LogMel()
    wav = torch.from_numpy(load_music(seconds=5.0, sample_rate=24_000).mean(axis=1))[:119_777]
    whole = transform(wav[None])[0].T
    monkeypatch.setattr(corpus_module, "CHUNK_FRAMES", 100)
    found = compute_log_mel(transform, wav)
    assert found.shape == whole.shape
    assert found.dtype == torch.float16
    assert float((found.float() - whole).abs().max()) < 0.04  # a half holds 100 dB to 0.03
