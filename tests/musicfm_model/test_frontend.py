from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicfm_model.frontend import ConvFrontend
from musicfm_model.model import MusicFM25Hz
from tests.musicfm_model.oracles import conv_frontend, relative_error, to_arrays


def test_agrees_with_numpy(tiny_model: MusicFM25Hz, generator: torch.Generator) -> None:
    mel = torch.randn(2, 128, 21, generator=generator)

    found = tiny_model.conv(mel)

    assert found.shape == (2, 6, 32)
    weights = to_arrays(tiny_model.conv.state_dict())
    for item in range(2):
        assert relative_error(found[item], conv_frontend(mel[item].double().numpy(), weights)) < 1e-5


@given(st.integers(1, 64))
@settings(deadline=None, max_examples=20)
def test_four_mel_frames_make_one_and_a_rest_makes_another(num_frames: int) -> None:
    frontend = ConvFrontend(conv_dim=2, embed_dim=3, n_mels=8).eval()

    assert frontend(torch.zeros(1, 8, num_frames)).shape == (1, math.ceil(num_frames / 4), 3)


def test_golden_figures(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    mel = golden_model._normalize(golden["mel_db"])
    error = relative_error(golden_model.conv(mel), golden["subsampled"])
    print({"subsampled": error})
    assert error < 1e-5
