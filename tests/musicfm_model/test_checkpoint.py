from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from musicfm_model.checkpoint import Checkpoint, CheckpointError, hash_weights, load_checkpoint, save_checkpoint
from tests.checkpoints import STATS, TINY, random_state_dict, write_random_checkpoint

Content = dict[str, Any]


def change(tiny_path: Path, target: Path, edit: Callable[[Content], object]) -> str:
    """Write a copy of the tiny checkpoint that ``edit`` has changed, with statistics beside it."""
    content = torch.load(tiny_path, weights_only=True)
    edit(content)
    torch.save(content, target)
    target.with_name("stats.json").write_bytes(tiny_path.with_name("tiny_stats.json").read_bytes())
    return str(target)


def test_a_published_form_is_loaded(tiny_path: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_path))

    expected = random_state_dict(TINY, seed=1)
    assert checkpoint.config == TINY
    assert (checkpoint.mean, checkpoint.std) == tuple(STATS.values())
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[name], expected[name]) for name in expected)


def test_only_the_positional_convolution_is_dropped(tiny_path: Path, tiny_checkpoint: Checkpoint) -> None:
    state_dict = torch.load(tiny_path, weights_only=True)["state_dict"]

    dropped = {name.removeprefix("model.") for name in state_dict} - tiny_checkpoint.state_dict.keys()

    assert dropped == {f"conformer.pos_conv_embed.conv.{name}" for name in ("bias", "weight_g", "weight_v")}


def test_the_newer_names_of_weight_norm_are_dropped_too(tmp_path: Path, tiny_path: Path) -> None:
    def rename(content: Content) -> None:
        prefix = "model.conformer.pos_conv_embed.conv."
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            content["state_dict"][f"{prefix}parametrizations.weight.{new}"] = content["state_dict"].pop(
                prefix + old
            )

    load_checkpoint(change(tiny_path, tmp_path / "a.pt", rename))


def test_the_digest_covers_tensors_and_statistics_and_no_more(tmp_path: Path, tiny_path: Path) -> None:
    original = load_checkpoint(str(tiny_path))

    def retrain(content: Content) -> None:
        content["epoch"] = 8
        content["state_dict"]["model.conformer.pos_conv_embed.conv.bias"].fill_(9)

    def nudge(content: Content) -> None:
        content["state_dict"]["model.linear.bias"][3] += 1e-6

    assert load_checkpoint(change(tiny_path, tmp_path / "a.pt", retrain)).sha256 == original.sha256
    assert load_checkpoint(change(tiny_path, tmp_path / "b.pt", nudge)).sha256 != original.sha256
    assert hash_weights(original.state_dict, original.mean, original.std) == original.sha256
    assert hash_weights(original.state_dict, original.mean, original.std + 1e-9) != original.sha256
    renamed = {name.replace("cls", "sep"): tensor for name, tensor in original.state_dict.items()}
    assert hash_weights(renamed, original.mean, original.std) != original.sha256


def test_twins_are_equal(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    target = str(tmp_path / "new folder" / "twin.safetensors")

    save_checkpoint(tiny_checkpoint, target)
    twin = load_checkpoint(target)

    assert twin.sha256 == tiny_checkpoint.sha256
    assert (twin.config, twin.mean, twin.std) == (TINY, *STATS.values())
    assert all(torch.equal(twin.state_dict[name], tiny_checkpoint.state_dict[name]) for name in twin.state_dict)


def test_twins_in_another_file_system_are_equal(tiny_checkpoint: Checkpoint) -> None:
    save_checkpoint(tiny_checkpoint, "memory://models/twin.safetensors")

    assert load_checkpoint("memory://models/twin.safetensors").sha256 == tiny_checkpoint.sha256


def test_a_published_form_is_loaded_from_another_file_system(tiny_path: Path, tiny_checkpoint: Checkpoint) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/models/remote.pt", tiny_path.read_bytes())
    memory.pipe_file("/models/remote_stats.json", tiny_path.with_name("tiny_stats.json").read_bytes())

    assert load_checkpoint("memory://models/remote.pt").sha256 == tiny_checkpoint.sha256


def test_a_loaded_checkpoint_outlives_its_file(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "short.pt", TINY, seed=4)
    checkpoint = load_checkpoint(str(tmp_path / "short.pt"))

    (tmp_path / "short.pt").write_bytes(b"")

    assert hash_weights(checkpoint.state_dict, checkpoint.mean, checkpoint.std) == checkpoint.sha256


def test_named_statistics_come_before_embedded_ones(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    target = str(tmp_path / "twin.safetensors")
    save_checkpoint(tiny_checkpoint, target)
    (tmp_path / "other.json").write_text('{"melspec_2048_mean": 1, "melspec_2048_std": 2}')

    assert load_checkpoint(target, stats=str(tmp_path / "other.json")).mean == 1


def test_safetensors_without_embedded_statistics_take_those_beside(tmp_path: Path, tiny_path: Path) -> None:
    prefixed = torch.load(tiny_path, weights_only=True)["state_dict"]
    save_file(prefixed, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"no statistics file beside it"):
        load_checkpoint(str(tmp_path / "plain.safetensors"))

    (tmp_path / "plain_stats.json").write_bytes(tiny_path.with_name("tiny_stats.json").read_bytes())

    assert load_checkpoint(str(tmp_path / "plain.safetensors")).sha256 == load_checkpoint(str(tiny_path)).sha256


def test_safetensors_with_broken_statistics_are_refused(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    path = str(tmp_path / "broken.safetensors")
    save_file(tiny_checkpoint.state_dict, path, {"melspec_2048_mean": "6.5", "melspec_2048_std": "wide"})
    with pytest.raises(CheckpointError, match=r"broken.safetensors: expected numbers as .* in the metadata"):
        load_checkpoint(path)

    save_file(tiny_checkpoint.state_dict, path, {"melspec_2048_mean": "6.5", "melspec_2048_std": "0"})
    with pytest.raises(CheckpointError, match=r"broken.safetensors: expected a positive melspec_2048_std"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("state_dict"), 'expected a "state_dict" at the top level, found epoch, global_step'),
        (lambda c: c.update(state_dict=[1]), 'expected tensors by name under "state_dict"'),
        (lambda c: c.update(state_dict={"model.a": 1}), 'expected tensors by name under "state_dict"'),
        (lambda c: c.update(state_dict={}), "expected the tensors of a MusicFM 25 Hz model, found no tensor"),
        (lambda c: c["state_dict"].pop("model.linear.bias"), r"found 1 missing tensors \(linear.bias\)"),
        (
            lambda c: c["state_dict"].update({"model.extra.weight": torch.ones(2)}),
            r"found 1 unexpected tensors \(extra.weight\)",
        ),
        (
            lambda c: c["state_dict"].update({"model.linear.bias": torch.ones(2)}),
            r"found linear.bias of shape \(2,\) where \(64,\) is expected",
        ),
        (
            lambda c: c["state_dict"].update({"model.linear.bias": torch.ones(64).double()}),
            "found linear.bias of torch.float64 where torch.float32 is expected",
        ),
        (
            lambda c: c["state_dict"]["model.linear.bias"].fill_(float("inf")),
            "found linear.bias with values that are not finite",
        ),
        (
            lambda c: [c["state_dict"].pop(name) for name in list(c["state_dict"]) if "layers.1" in name],
            r"model of 3 layers and 32 dimensions, found \d+ missing tensors \(conformer.layers.1.conv_module",
        ),
        (
            lambda c: c["state_dict"].update({"optimizer.step": torch.ones(1)}),
            "no tensor conformer.layers.0",
        ),
    ],
)
def test_what_is_wrong_with_the_tensors_is_named(
    tmp_path: Path, tiny_path: Path, edit: Callable[[Content], object], message: str
) -> None:
    url = change(tiny_path, tmp_path / "wrong.pt", edit)

    with pytest.raises(CheckpointError, match=f"wrong.pt: .*{message}") as caught:
        load_checkpoint(url)
    assert "\n" not in str(caught.value)


def test_many_faults_are_counted(tmp_path: Path, tiny_path: Path) -> None:
    def flatten(content: Content) -> None:
        for index in range(3):
            content["state_dict"][f"model.conformer.layers.{index}.ffn1_layer_norm.bias"] = torch.ones(2)
            content["state_dict"][f"model.conformer.layers.{index}.ffn2_layer_norm.bias"] = torch.ones(2)

    with pytest.raises(CheckpointError, match=r"; and 1 more$"):
        load_checkpoint(change(tiny_path, tmp_path / "wrong.pt", flatten))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_withdrawn_checkpoints_are_told_apart(tmp_path: Path, tiny_path: Path, wrapped: bool) -> None:
    def downgrade(content: Content) -> None:
        old = content.pop("state_dict")
        old.pop("model.cls_token")
        old = {
            name.replace("melspec_2048_0", "melspec").replace("melspec_2048.mel_stft", "melspec.melspec"): tensor
            for name, tensor in old.items()
        }
        content.clear()
        content.update({"state_dict": old} if wrapped else old)

    url = change(tiny_path, tmp_path / "musicfm_25hz_FMA_330m_500k.pt", downgrade)

    with pytest.raises(
        CheckpointError, match=r"of 2024-02-13 or later, found one from before .*pretrained_msd.pt"
    ):
        load_checkpoint(url)


class Payload:
    """What a malicious pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"<!DOCTYPE html><html>", "found a web page: download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
        (b"ID3\x04 certainly audio", "found 20 bytes of something else"),
        (pickle.dumps({"state_dict": {}}), "found a pickle of other things"),
        (pickle.dumps(Payload()), "found a pickle of other things"),
    ],
)
def test_files_that_are_no_checkpoint_are_described(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "strange.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=f"strange.pt: expected a PyTorch checkpoint .* {message}"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_described(tmp_path: Path, tiny_path: Path, share: float) -> None:
    content = tiny_path.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(CheckpointError, match=r"cut.pt: .* found a truncated archive of \d+ bytes: download it"):
        load_checkpoint(str(path))


@pytest.mark.parametrize(("content", "found"), [([torch.ones(1)], "list"), (torch.ones(3), "Tensor")])
def test_a_pickle_of_something_else_is_described(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match=f"other.pt: expected a dictionary, found a {found}"):
        load_checkpoint(str(tmp_path / "other.pt"))


def test_code_in_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "malicious.pt")

    with pytest.raises(CheckpointError, match=r"tensors and plain values only, found a pickle of other things"):
        load_checkpoint(str(tmp_path / "malicious.pt"))


def test_safetensors_of_something_else_are_described(tmp_path: Path, tiny_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other.safetensors: expected the tensors of a MusicFM 25 Hz model"):
        load_checkpoint(str(tmp_path / "other.safetensors"))

    (tmp_path / "zip.safetensors").write_bytes(tiny_path.read_bytes())
    with pytest.raises(CheckpointError, match=r"zip.safetensors: expected a safetensors file, found a pickle"):
        load_checkpoint(str(tmp_path / "zip.safetensors"))


def test_truncated_safetensors_are_described(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    path = tmp_path / "cut.safetensors"
    save_checkpoint(tiny_checkpoint, str(path))
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(CheckpointError, match=r"cut.safetensors: expected a safetensors file, found \d+ bytes"):
        load_checkpoint(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"nothing at nowhere.pt"):
        load_checkpoint("nowhere.pt")


def test_a_target_needs_its_ending(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"expected a target that ends in .safetensors"):
        save_checkpoint(tiny_checkpoint, str(tmp_path / "target.pt"))


def test_an_unwritable_target_is_named(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"cannot write .*/file/target.safetensors: "):
        save_checkpoint(tiny_checkpoint, str(tmp_path / "file" / "target.safetensors"))


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline Hugging Face cache whose published files hold the tiny checkpoint."""
    snapshot = tmp_path / "models--minzwon--MusicFM" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--minzwon--MusicFM" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    for name in ("msd", "fma"):
        (snapshot / f"pretrained_{name}.pt").write_bytes(tiny_path.read_bytes())
        (snapshot / f"{name}_stats.json").write_bytes(tiny_path.with_name("tiny_stats.json").read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.usefixtures("hub_cache")
def test_a_name_brings_its_checkpoint_and_statistics(tiny_checkpoint: Checkpoint) -> None:
    assert load_checkpoint("fma").sha256 == tiny_checkpoint.sha256


@pytest.mark.usefixtures("hub_cache")
def test_a_name_means_the_published_bytes() -> None:
    with pytest.raises(
        CheckpointError, match=r"pretrained_msd.pt: expected .* MD5 df930aceac8209818556c4a656a0714c, found"
    ):
        load_checkpoint("msd")


def test_a_name_takes_no_other_statistics() -> None:
    with pytest.raises(CheckpointError, match=r"msd has its own statistics, found my_stats.json as well"):
        load_checkpoint("msd", stats="my_stats.json")


def test_the_converted_file_holds_the_published_names(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    save_checkpoint(tiny_checkpoint, str(tmp_path / "twin.safetensors"))

    assert load_file(tmp_path / "twin.safetensors").keys() == tiny_checkpoint.state_dict.keys()


def test_weights_in_half_precision_are_read_as_the_float32_that_they_are(tmp_path: Path, tiny_path: Path) -> None:
    exact = load_checkpoint(str(tiny_path))
    url = change(
        tiny_path,
        tmp_path / "half.pt",
        lambda c: c["state_dict"].update({"model.linear.weight": c["state_dict"]["model.linear.weight"].half()}),
    )
    half = load_checkpoint(url)
    assert half.state_dict["linear.weight"].dtype == torch.float32
    assert torch.equal(half.state_dict["linear.weight"], exact.state_dict["linear.weight"].half().float())
