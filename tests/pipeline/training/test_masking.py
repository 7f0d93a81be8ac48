import torch
from torch import Tensor

from musicfm_model.log_mel import LogMel
from musicfm_model.pretraining import mask_waveform
from pipeline.training.masking import (
    block_energies,
    list_masked_tokens,
    make_noise_bank,
    mask_log_mels,
    noise_shares,
)
from pipeline.training.recipe import MASK_FRAMES, MASK_PROB, MASK_S
from tests.corpus import load_music

NUM_CROPS, STRETCHES = 24, 10


def mask_both_ways() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return log-mels of masked music, made by masking waveforms and by masking log-mels, and what was masked."""
    transform = LogMel()
    samples = STRETCHES * 9600
    music = torch.from_numpy(load_music(seconds=NUM_CROPS + 4.0, sample_rate=24_000).mean(axis=1))
    wav = torch.stack([music[start * 24_000 :][:samples] for start in range(NUM_CROPS)])
    torch.manual_seed(5)
    masked_wav, tokens = mask_waveform(wav, MASK_S, MASK_PROB, 240)
    is_masked = torch.zeros(NUM_CROPS, STRETCHES, dtype=torch.bool)
    is_masked[tokens[:, 0], tokens[:, 1] // 10] = True
    bank = make_noise_bank(transform, seed=9)
    noise = torch.stack([bank[number * 100 :][: STRETCHES * MASK_FRAMES] for number in range(NUM_CROPS)])
    clean = transform(wav).transpose(1, 2)
    mine = mask_log_mels(clean, noise, is_masked)
    return transform(masked_wav).transpose(1, 2), mine, clean, is_masked, tokens


def test_masking_log_mels_is_masking_the_waveform() -> None:
    theirs, mine, clean, is_masked, tokens = mask_both_ways()
    share = noise_shares(is_masked)
    assert torch.equal(list_masked_tokens(is_masked), tokens)
    unseen, alone, edge = share == 0, share > 0.999, (share > 0.02) & (share < 0.98)
    # Frames that see no noise are the music's own, on both ways.
    assert torch.equal(mine[unseen], clean[unseen])
    assert float((theirs[unseen] - clean[unseen]).abs().max()) < 0.02
    # Noise alone: the same distribution in every band, of which each way drew its own.
    print(
        "noise", (theirs[alone].mean(0) - mine[alone].mean(0)).abs().max(), theirs[alone].std(), mine[alone].std()
    )
    assert float((theirs[alone].mean(dim=0) - mine[alone].mean(dim=0)).abs().max()) < 0.5
    assert float((theirs[alone].std(dim=0) - mine[alone].std(dim=0)).abs().max()) < 0.5
    # Edges: the powers add up to what the mixed window has, on average within a decibel.
    difference = theirs[edge] - mine[edge]
    print("edges", difference.mean(), difference.std(), int(edge.sum()))
    assert abs(float(difference.mean())) < 1.0


def test_shares_of_a_window_add_up() -> None:
    energies = block_energies()
    assert abs(float(energies.sum()) - 1) < 1e-9
    assert len(energies) == 10  # five hops to either side
    shares = noise_shares(torch.tensor([[False, True, False]]))
    assert shares.shape == (1, 120)
    assert float(shares[0, 60]) == 1.0
    # At an edge a window lies half in noise; far from it, not at all.
    assert abs(float(shares[0, 40]) - 0.5) < 1e-3  # the window is periodic: one sample more before than after
    assert float(shares[0, 30]) == 0.0


def test_everything_masked_is_noise() -> None:
    noise = torch.randn(2, 80, 16)
    found = mask_log_mels(torch.zeros(2, 80, 16), noise, torch.ones(2, 2, dtype=torch.bool))
    assert torch.allclose(found, noise, atol=1e-4)
