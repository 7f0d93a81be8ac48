from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from musicfm_model.gpu.shapes import (
    FRAME_STEP,
    MEL_STEP,
    attention_without_plans,
    clear_beyond,
    count_padded,
    pad_frames,
    pad_mel,
)
from musicfm_model.model import MusicFM25Hz


@pytest.mark.parametrize("num_mel", [1, MEL_STEP - 1, MEL_STEP, MEL_STEP + 1, 3000])
def test_a_mel_is_padded_with_zeros_to_the_next_step(num_mel: int) -> None:
    padded = pad_mel(torch.ones(2, 3, num_mel))
    assert padded.shape == (2, 3, count_padded(num_mel))
    assert padded.shape[2] % MEL_STEP == 0
    assert 0 <= padded.shape[2] - num_mel < MEL_STEP
    assert torch.equal(padded.sum(dim=2), torch.full((2, 3), float(num_mel)))


def test_frames_of_all_lengths_and_batches_come_in_few_shapes() -> None:
    shapes = {
        pad_frames(torch.empty(batch_size, num_frames, 1, device="meta")).shape[:2]
        for batch_size in range(1, 33)
        for num_frames in range(1, 751)
    }
    assert len(shapes) == 5 * 7
    assert {batch_size for batch_size, _ in shapes} == {1, 2, 4, 8, 16, 24, 32}
    assert {num_frames for _, num_frames in shapes} == {number * FRAME_STEP for number in range(1, 6)}


@pytest.mark.parametrize("seconds", [6, 12, 24, 30])
def test_whole_windows_are_not_padded(seconds: int) -> None:
    mel = torch.empty(16, 2, 100 * seconds)
    assert pad_mel(mel) is mel
    frames = torch.empty(16, 25 * seconds, 2)
    assert pad_frames(frames) is frames


@pytest.mark.parametrize(("batch_size", "num_frames"), [(1, 1), (3, 5), (9, 257)])
def test_what_is_added_to_frames_is_zero_and_lies_behind(batch_size: int, num_frames: int) -> None:
    frames = torch.rand(batch_size, num_frames, 4) + 1
    padded = pad_frames(frames)
    assert torch.equal(padded[:batch_size, :num_frames], frames)
    assert padded.count_nonzero() == frames.numel()


def test_what_lies_beyond_is_cleared_in_place() -> None:
    x = torch.ones(2, 3, 4, 5)
    assert clear_beyond(x, 3) is x
    assert torch.equal(x.sum(dim=(0, 1, 2)), torch.tensor([24.0, 24.0, 24.0, 0.0, 0.0]))
    assert clear_beyond(x, 5).sum() == 72.0


def is_left_to_cudnn() -> bool:
    cuda: Any = torch.backends.cuda
    return bool(cuda.cudnn_sdp_enabled())


def test_attention_is_not_left_to_cudnn_inside_the_block_only() -> None:
    assert is_left_to_cudnn()
    with attention_without_plans():
        with attention_without_plans():
            assert not is_left_to_cudnn()
        assert not is_left_to_cudnn()
    assert is_left_to_cudnn()
    with pytest.raises(RuntimeError, match="out of memory"), attention_without_plans():
        raise RuntimeError("out of memory")
    assert is_left_to_cudnn()


def test_who_asks_for_cudnn_alone_gets_it() -> None:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), attention_without_plans():
        assert is_left_to_cudnn()


def test_training_keeps_the_attention_that_pytorch_chooses(golden_model: MusicFM25Hz) -> None:
    seen: list[bool] = []
    golden_model.conformer.register_forward_pre_hook(lambda *_: seen.append(is_left_to_cudnn()))
    golden_model.encode_frames(torch.zeros(1, 4, golden_model.embed_dim), (1,))
    assert seen == [True]
