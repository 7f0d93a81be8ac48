from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from musicfm_model.model import MusicFM25Hz
from musicfm_model.pretraining import mask_waveform, masked_prediction_loss


def test_masked_samples_are_those_of_the_masked_tokens() -> None:
    x = torch.full((3, 24_000 * 6 + 5000), 7.0)
    torch.manual_seed(3)

    masked, tokens = mask_waveform(x, mask_hop=0.4, mask_prob=0.5, hop_length=240)

    expected = torch.zeros(x.shape, dtype=torch.bool)
    for item, token in tokens.tolist():
        expected[item, token * 960 : (token + 1) * 960] = True
    assert torch.equal(masked != x, expected)
    assert (x == 7.0).all()
    noise = masked[expected]
    assert abs(noise.mean()) < 0.002
    assert abs(noise.std() - 0.1) < 0.002
    assert 0.2 < expected.float().mean() < 0.8


@pytest.mark.parametrize(("mask_prob", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_nothing_or_everything_can_be_masked(mask_prob: float, share: float) -> None:
    x = torch.full((2, 9600 * 3), 7.0)

    masked, tokens = mask_waveform(x, 0.4, mask_prob, 240)

    assert (masked != x).float().mean() == share
    assert len(tokens) == share * 2 * 30


def test_half_waveforms_stay_half() -> None:
    masked, _ = mask_waveform(torch.zeros(1, 9600, dtype=torch.float16), 0.4, 1.0, 240)

    assert masked.dtype == torch.float16


def test_loss_and_accuracy_agree_with_numpy(generator: torch.Generator) -> None:
    logits = torch.randn(2, 6, 5, generator=generator)
    tokens = torch.randint(5, (2, 6), generator=generator)
    pairs = [(0, 0), (0, 4), (1, 1), (1, 2), (1, 5)]

    loss, accuracy = masked_prediction_loss(logits, tokens, torch.tensor(pairs))

    scores = log_softmax(logits.double().numpy(), axis=-1)
    expected = -np.mean([scores[item, token, tokens[item, token]] for item, token in pairs])
    hits = [int(logits[item, token].argmax()) == int(tokens[item, token]) for item, token in pairs]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert accuracy.item() == pytest.approx(np.mean(hits))


def test_golden_mask(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    torch.manual_seed(99)

    masked, tokens = golden_model.masking(golden["wav"])

    assert torch.equal(tokens, golden["masked_token_indices"])
    is_masked = torch.zeros(masked.shape, dtype=torch.bool)
    for item, token in tokens.tolist():
        is_masked[item, token * 960 : (token + 1) * 960] = True
    assert torch.equal(masked[is_masked], golden["masked_noise"])
    assert torch.equal(masked[~is_masked], golden["wav"][~is_masked])


def test_golden_loss_and_accuracy(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    losses, accuracies = golden_model.get_loss(
        {"melspec_2048": golden["logits_masked"]},
        {"melspec_2048": golden["tokens"]},
        golden["masked_token_indices"],
    )

    assert losses["melspec_2048"].item() == pytest.approx(golden["masked_loss"].item(), abs=1e-5)
    assert accuracies["melspec_2048"].item() == pytest.approx(golden["masked_accuracy"].item(), abs=1e-6)
