"""A small corpus of real music, and a model that trains in seconds."""

from pathlib import Path

import torch

from musicfm_model.config import ModelConfig
from musicfm_model.log_mel import LogMel
from pipeline.training.corpus import HELD_OUT, TRAIN, Corpus, CorpusWriter, compute_log_mel, open_corpus
from pipeline.training.recipe import Augmentation, Recipe
from tests.corpus import load_music

SIZES = ModelConfig(embed_dim=16, num_layers=2, num_heads=2, ffn_dim=16, conv_dim=4, codebook_size=64)
RECIPE = Recipe(
    num_steps=6,
    num_warmup_steps=2,
    crop_lengths_s=(1.2, 2.0),
    masked_s=4.0,
    contrast_s=8.0,
    contrast_layers=(1,),
    augmentation=Augmentation(prob=0.5),
)


def write_corpus(folder: Path, num_tracks: int = 3) -> Path:
    """Write stretches of one recording, at several speeds, as a corpus: two thirds to train on."""
    writer = CorpusWriter(folder)
    transform = LogMel()
    for number in range(num_tracks):
        music = torch.from_numpy(
            load_music(seconds=6.0 + number, sample_rate=16_000 + 4_000 * number).mean(axis=1)
        )
        part = HELD_OUT if number == num_tracks - 1 else TRAIN
        writer.add(f"track-{number}", compute_log_mel(transform, music).numpy(), f"artist-{number}", part)
    writer.close()
    return folder


def open_train(folder: Path) -> Corpus:
    return open_corpus(folder, TRAIN)
