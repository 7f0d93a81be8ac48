from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from musicfm_model.model import MusicFM25Hz
from musicfm_model.quantizer import RandomProjectionQuantizer


def test_token_is_the_entry_at_the_smallest_angle(generator: torch.Generator) -> None:
    quantizer = RandomProjectionQuantizer(20, 6, 40, seed=142)
    frames = torch.randn(3, 11, 20, generator=generator)

    tokens = quantizer(frames)

    codebook = quantizer.codebook.double().numpy()
    for item in range(3):
        for frame in range(11):
            projected = frames[item, frame].double().numpy() @ quantizer.random_projection.double().numpy()
            cosines = [entry @ projected / np.linalg.norm(entry) for entry in codebook]
            assert tokens[item, frame] == np.argmax(cosines)


def test_projection_and_codebook_are_the_published_draws() -> None:
    torch.manual_seed(142)
    projection = nn.init.xavier_normal_(torch.empty(512, 16))
    codebook = nn.init.normal_(torch.empty(4096, 16))

    quantizer = RandomProjectionQuantizer(512, 16, 4096, seed=142)

    assert torch.equal(quantizer.random_projection, projection)
    assert torch.equal(quantizer.codebook, codebook)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    RandomProjectionQuantizer(8, 4, 16, seed=142)

    assert torch.equal(torch.rand(3), expected)


def test_tokens_do_not_change_with_the_models_precision(generator: torch.Generator) -> None:
    frames = torch.randn(1, 50, 20, generator=generator)
    quantizer = RandomProjectionQuantizer(20, 6, 40, seed=142)
    expected = quantizer(frames)

    assert torch.equal(quantizer.half()(frames), expected)


def test_golden_tokens(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    assert torch.equal(golden_model.get_targets(golden["wav"])["melspec_2048"], golden["tokens"])
