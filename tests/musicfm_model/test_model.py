from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from musicfm_model.config import infer_config
from musicfm_model.conformer import ConformerLayer
from tests.checkpoints import STATS, TINY, write_random_checkpoint
from tests.musicfm_model.oracles import relative_error
from tests.musicfm_model.test_conformer import count_layers


@pytest.fixture
def wav(generator: torch.Generator) -> Tensor:
    """Five clips of two seconds: swelling tones of different pitch over noise."""
    time_s = torch.arange(48_000) / 24_000
    pitches_hz = torch.tensor([110.0, 220.0, 331.0, 880.0, 3000.0])[:, None]
    tones = torch.sin(2 * torch.pi * pitches_hz * time_s) * time_s.remainder(0.5)
    return tones + 0.01 * torch.randn(5, 48_000, generator=generator)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_predictions(golden: dict[str, Tensor], golden_checkpoint: Checkpoint, attention: str) -> None:
    model = MusicFM25Hz.from_checkpoint(golden_checkpoint, attention=attention)

    logits, hidden_states = model.get_predictions(golden["wav"])

    assert len(hidden_states) == 4
    errors = {f"hidden_{i}": relative_error(x, golden[f"hidden_{i}"]) for i, x in enumerate(hidden_states)}
    errors["logits"] = relative_error(logits["melspec_2048"], golden["logits"])
    print(attention, errors)
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("length", ["1s", "5s37"])
def test_golden_latents_of_other_lengths(
    golden: dict[str, Tensor], golden_model: MusicFM25Hz, length: str
) -> None:
    found = golden_model.get_latent(golden[f"wav_{length}"], layer_ix=2)

    assert found.shape == golden[f"latent2_{length}"].shape
    error = relative_error(found, golden[f"latent2_{length}"])
    print({f"latent2_{length}": error})
    assert error < 1e-5


def test_golden_masked_prediction(golden: dict[str, Tensor], golden_model: MusicFM25Hz) -> None:
    torch.manual_seed(99)

    logits, hidden_states, losses, accuracies = golden_model(golden["wav"])

    assert len(hidden_states) == 4
    assert relative_error(logits["melspec_2048"], golden["logits_masked"]) < 1e-5
    assert losses["melspec_2048"].item() == pytest.approx(golden["masked_loss"].item(), abs=1e-5)
    assert accuracies["melspec_2048"].item() == pytest.approx(golden["masked_accuracy"].item(), abs=1e-6)


def test_the_published_call_gives_the_same_as_the_short_one(tiny_path: Path, wav: Tensor) -> None:
    published = MusicFM25Hz(
        is_flash=False, stat_path=str(tiny_path.with_name("tiny_stats.json")), model_path=str(tiny_path)
    )
    assert published.training
    published.eval()
    flash = MusicFM25Hz(is_flash=True, stat_path=None, model_path=str(tiny_path)).eval()

    expected = published.get_latent(wav, layer_ix=2)

    assert torch.equal(flash.get_latent(wav, layer_ix=2), expected)
    assert published.num_layers == TINY.num_layers
    assert published.embed_dim == TINY.embed_dim


def test_the_published_arguments_keep_their_names_and_defaults() -> None:
    defaults = {name: p.default for name, p in inspect.signature(MusicFM25Hz.__init__).parameters.items()}

    published = {
        "num_codebooks": 1,
        "codebook_dim": 16,
        "codebook_size": 4096,
        "features": ("melspec_2048",),
        "hop_length": 240,
        "n_mels": 128,
        "conv_dim": 512,
        "encoder_dim": 1024,
        "encoder_depth": 12,
        "mask_hop": 0.4,
        "mask_prob": 0.6,
        "is_flash": False,
        "stat_path": "./data/fma_stats.json",
        "model_path": "./data/pretrained_fma.pt",
    }
    assert [(n, d) for n, d in defaults.items() if n in published] == list(published.items())
    assert inspect.signature(MusicFM25Hz.get_latent).parameters["layer_ix"].default == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_depth": 4}, "num_layers 4 asked for, the checkpoint has 3"),
        ({"features": ["chromagram"]}, r"unknown features \['chromagram'\]"),
        ({"attention": "linear"}, "unknown attention 'linear'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"is_flash": True, "attention": "eager"}, "asks for fused attention"),
        ({"attention": "flash"}, "bfloat16 or float16 only, found precision 'float32'"),
        ({"model_path": None, "stat_path": None}, "needs a statistics file"),
    ],
)
def test_impossible_arguments_are_named(tiny_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MusicFM25Hz(**({"model_path": str(tiny_path), "stat_path": None} | arguments))


def test_a_fresh_model_learns(tiny_path: Path, wav: Tensor) -> None:
    torch.manual_seed(0)
    model = MusicFM25Hz(
        conv_dim=4,
        encoder_dim=32,
        encoder_depth=1,
        codebook_size=64,
        n_mels=16,
        stat_path=str(tiny_path.with_name("tiny_stats.json")),
        model_path=None,
    )
    assert model.training
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = model(wav[:2])[2]["melspec_2048"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.9 * losses[0]
    without_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == {"cls_token"}


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_latent_is_its_hidden_state_and_costs_its_layers_only(
    tiny_model: MusicFM25Hz, wav: Tensor, layer: int
) -> None:
    hidden_states = tiny_model.get_predictions(wav)[1]
    computed, predicted = count_layers(tiny_model), []
    tiny_model.linear.register_forward_hook(lambda *_: predicted.append(True))

    found = tiny_model.get_latent(wav, layer_ix=layer)

    assert torch.equal(found, hidden_states[layer])
    assert computed == list(range(layer))
    assert not predicted


def test_layers_not_asked_for_are_never_read(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    expected = tiny_model.get_latent(wav, layer_ix=2)
    for parameter in (*tiny_model.conformer.layers[2].parameters(), *tiny_model.linear.parameters()):
        parameter.data.fill_(math.nan)

    assert torch.equal(tiny_model.get_latent(wav, layer_ix=2), expected)
    assert tiny_model.get_latent(wav, layer_ix=3).isnan().all()


def test_several_layers_come_out_of_one_pass(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    expected = {layer: tiny_model.get_latent(wav, layer) for layer in (2, 0)}
    computed = count_layers(tiny_model)

    found = tiny_model.get_hidden_states(wav, [2, 0])

    assert computed == [0, 1]
    assert found.keys() == {0, 2}
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


def test_negative_layers_count_from_the_end(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    found = tiny_model.get_hidden_states(wav, [-1, -4, 3, 0])

    assert torch.equal(found[-1], found[3])
    assert torch.equal(found[-4], found[0])


@pytest.mark.parametrize("layer", [4, 12, -5])
def test_a_layer_that_does_not_exist_is_named(tiny_model: MusicFM25Hz, wav: Tensor, layer: int) -> None:
    with pytest.raises(ValueError, match=f"no layer {layer}: the model has 3, so expected 0 to 3"):
        tiny_model.get_latent(wav, layer_ix=layer)


def test_no_layer_at_all_is_refused(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    with pytest.raises(ValueError, match="expected at least one layer"):
        tiny_model.get_hidden_states(wav, [])


def test_the_last_latent_has_gone_through_the_final_norm(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    latent = tiny_model.get_latent(wav, layer_ix=3)
    norm = tiny_model.conformer.layer_norm

    normed = (latent - norm.bias) / norm.weight

    assert normed.mean(-1).abs().max() < 1e-4
    assert torch.allclose(normed.std(-1, correction=0), torch.ones(latent.shape[:2]), atol=1e-3)


@given(num_samples=st.integers(1025, 12_000))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_is_a_frame_for_every_40_ms(tiny_model: MusicFM25Hz, num_samples: int) -> None:
    shape = tiny_model.get_latent(torch.zeros(1, num_samples), layer_ix=1).shape

    assert shape == (1, math.ceil(num_samples // 240 / 4), TINY.embed_dim)


def test_a_clip_does_not_depend_on_its_batch(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    together = tiny_model.get_hidden_states(wav, [1, 3])
    order = [3, 0, 4, 2, 1]
    shuffled = tiny_model.get_hidden_states(wav[order], [1, 3])

    for layer in (1, 3):
        alone = torch.cat([tiny_model.get_latent(clip[None], layer) for clip in wav])
        assert relative_error(together[layer], alone) < 1e-5
        assert relative_error(shuffled[layer], alone[order]) < 1e-5


def test_clips_and_frames_differ(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    latents = tiny_model.get_latent(wav, layer_ix=2)

    assert relative_error(latents[0], latents[1]) > 0.01
    assert relative_error(latents[:, :-1], latents[:, 1:]) > 0.01


def test_back_ends_agree(tiny_checkpoint: Checkpoint, wav: Tensor) -> None:
    sdpa, eager = (
        MusicFM25Hz.from_checkpoint(tiny_checkpoint, attention).get_latent(wav, 3)
        for attention in ("sdpa", "eager")
    )

    assert relative_error(sdpa, eager) < 1e-5


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        ("float32", torch.float32, 0.0),
        ("tf32", torch.float32, 0.0),
        ("bfloat16", torch.bfloat16, 0.05),
        ("float16", torch.float16, 0.01),
    ],
)
def test_precisions_agree_on_the_cpu(
    tiny_checkpoint: Checkpoint, wav: Tensor, precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    expected = MusicFM25Hz.from_checkpoint(tiny_checkpoint).get_latent(wav, 3)
    model = MusicFM25Hz.from_checkpoint(tiny_checkpoint, precision=precision)

    found = model.get_latent(wav, 3)

    assert found.dtype == dtype
    assert relative_error(found, expected.detach()) <= tolerance
    mel = model.preprocessor_melspec_2048
    assert {tensor.dtype for tensor in mel.state_dict().values()} == {torch.float32}


def test_halving_the_published_way_keeps_the_front_end(tiny_path: Path, wav: Tensor) -> None:
    model = MusicFM25Hz(is_flash=True, stat_path=None, model_path=str(tiny_path)).eval()
    tokens, latents = model.get_targets(wav.half()), model.get_latent(wav.half(), layer_ix=2)
    mel = model.preprocessor_melspec_2048(wav.half())

    halved = model.half()

    assert torch.equal(halved.preprocessor_melspec_2048(wav.half()), mel)
    assert torch.equal(halved.get_targets(wav.half())["melspec_2048"], tokens["melspec_2048"])
    found = halved.get_latent(wav.half(), layer_ix=2)
    assert found.dtype == torch.float16
    assert relative_error(found, latents.detach()) < 0.01
    assert torch.equal(halved.conformer.embed_positions.inv_freq, model.conformer.embed_positions.inv_freq)


def test_evaluation_is_repeatable_and_training_drops(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    assert not tiny_model.training
    assert torch.equal(tiny_model.get_latent(wav, 3), tiny_model.get_latent(wav, 3))

    training = copy.deepcopy(tiny_model).train()
    assert not torch.equal(training.get_latent(wav, 3), training.get_latent(wav, 3))


def test_a_target_is_the_token_of_four_successive_mel_frames(tiny_model: MusicFM25Hz, wav: Tensor) -> None:
    mel = (tiny_model.preprocessor_melspec_2048(wav) - STATS["melspec_2048_mean"]) / STATS["melspec_2048_std"]

    tokens = tiny_model.get_targets(wav)["melspec_2048"]

    assert tokens.shape == (5, 50)
    for token in range(50):
        stacked = torch.cat([mel[:, :, 4 * token + step] for step in range(4)], dim=1)
        expected = tiny_model.quantizer_melspec_2048_0(stacked[:, None])[:, 0]
        assert torch.equal(tokens[:, token], expected)
    assert len(set(tokens.flatten().tolist())) > 5


def test_targets_need_whole_tokens(tiny_model: MusicFM25Hz) -> None:
    with pytest.raises(ValueError, match="expected a multiple of 4 mel frames of 240 samples, found 6"):
        tiny_model.get_targets(torch.zeros(1, 1440))


def test_too_short_a_clip_is_named(tiny_model: MusicFM25Hz) -> None:
    with pytest.raises(ValueError, match="expected at least 1025 samples"):
        tiny_model.get_latent(torch.zeros(1, 1024), layer_ix=1)


def test_sizes_come_from_the_checkpoint(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "other.pt", TINY, seed=2)

    model = MusicFM25Hz(model_path=str(tmp_path / "other.pt"), stat_path=None)

    assert model.codebook_size == TINY.codebook_size
    assert model.conformer.embed_positions.inv_freq.shape == (TINY.head_dim // 2,)


def test_a_fresh_model_has_the_heads_and_the_width_that_were_asked_for(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text(json.dumps({"melspec_2048_mean": 0.0, "melspec_2048_std": 1.0}))
    model = MusicFM25Hz(
        codebook_size=64,
        conv_dim=4,
        encoder_dim=24,
        encoder_depth=1,
        stat_path=str(tmp_path / "stats.json"),
        model_path=None,
        num_heads=3,
        ffn_dim=40,
    )
    found = infer_config(model.state_dict())
    assert (found.num_heads, found.ffn_dim, found.embed_dim) == (3, 40, 24)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_of_attention_is_the_modules_own(tiny_path: Path, wav: Tensor, attention: str) -> None:
    model = MusicFM25Hz.from_checkpoint(load_checkpoint(str(tiny_path)), attention=attention).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Batch norms still go by the batch, the same one twice: nothing else is drawn.
    once, again = (model.get_latent(wav, 1) for _ in range(2))
    assert torch.equal(once, again)
    layer = model.conformer.layers[0]
    assert isinstance(layer, ConformerLayer)
    layer.self_attn.dropout.p = 0.5
    assert not torch.equal(once, model.get_latent(wav, 1))
