import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import HeadError, StorageError, UsageError
from pipeline.probing.heads import Head, HeadSpec, load_head, save_head

SPEC = HeadSpec("tagging", "mlp", ("recipe-a",), "global", 6, ("rock, pop", "пиано"))


def make_head(spec: HeadSpec = SPEC) -> Head:
    torch.manual_seed(0)
    head = Head(spec)
    head.set_statistics(torch.randn(head.feature_mean.shape), torch.rand(head.feature_std.shape) + 0.5)
    return head.eval()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("recipes", [("a",), ("a", "b", "c")])
def test_a_head_comes_back_from_its_file(kind: str, recipes: tuple[str, ...], tmp_path: Path) -> None:
    spec = HeadSpec(
        "key",
        kind,
        recipes,
        "0.5hz",
        6,
        ("C major", "ключ"),
        {"weighted_score": {"value": 0.5, "low": None, "high": 0.7}},
        "2024-05-06T07:08:09+00:00",
        {"threshold": 0.3},
    )
    head = make_head(spec)
    features = torch.randn(3, 4, *head.feature_mean.shape)
    save_head(head, str(tmp_path / "head.safetensors"))
    again = load_head(str(tmp_path / "head.safetensors"))
    assert again.spec == spec
    assert again.head_id == head.head_id
    assert head(features).shape == (3, 4, 2)
    assert torch.equal(again(features), head(features))


def test_a_linear_head_is_a_linear_map_of_standardised_features() -> None:
    head = make_head(HeadSpec("key", "linear", ("a",), "0.5hz", 6, ("x", "y", "z")))
    features = torch.randn(5, 6)
    layer = head.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    wanted = ((features - head.feature_mean) / head.feature_std) @ layer.weight.T + layer.bias
    torch.testing.assert_close(head(features), wanted)


def test_a_mix_weighs_recipes_by_softmax() -> None:
    mixed = make_head(HeadSpec("key", "linear", ("a", "b"), "0.5hz", 6, ("x", "y")))
    assert mixed.mix is not None
    with torch.no_grad():
        mixed.mix.copy_(torch.tensor([0.0, 100.0]))
    assert mixed.mix_weights() == pytest.approx([0.0, 1.0])
    features = torch.randn(5, 2, 6)
    changed = features.clone()
    changed[:, 0] = 17.0  # a layer of no weight says nothing
    torch.testing.assert_close(mixed(features), mixed(changed))


def test_a_value_that_never_varies_is_left_alone() -> None:
    head = Head(SPEC)
    head.set_statistics(torch.zeros(6), torch.zeros(6))
    assert torch.equal(head.feature_std, torch.ones(6))


def test_it_refuses_features_of_another_kind() -> None:
    head = make_head()
    head.check_features(["recipe-a"], "global")
    with pytest.raises(HeadError, match=r"expected features of recipe recipe-a, .*found recipe recipe-b"):
        head.check_features(["recipe-b"], "global")
    with pytest.raises(HeadError, match=r"resolution global, .*found resolution 8hz"):
        head.check_features(["recipe-a"], "8hz")
    assert issubclass(HeadError, UsageError)


def test_its_name_is_that_of_its_answers(tmp_path: Path) -> None:
    head, other = make_head(), make_head()
    with torch.no_grad():
        next(other.layers.parameters()).add_(1)
    assert head.head_id.startswith("tagging-")
    assert head.head_id == make_head(HeadSpec(**{**vars(SPEC), "date": "2020"})).head_id
    assert (
        len({head.head_id, other.head_id, make_head(HeadSpec(**{**vars(SPEC), "resolution": "8hz"})).head_id}) == 3
    )


def test_what_is_no_head_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(make_head(), str(path))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    described = json.loads(header["__metadata__"]["musicfm_head"])

    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    def describe(**changes: object) -> bytes:
        own = {**header, "__metadata__": {"musicfm_head": json.dumps({**described, **changes})}}
        text = json.dumps(own).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for url in (
        write("empty", b""),
        write("text", b"track_id,label\n"),
        write("short", data[: len(data) // 2]),
        write("wide", describe(embed_dim=7)),
        write("kind", describe(kind="forest")),
        write("future", describe(format=99)),
        write("unknown", describe(colour="red")),
        write("list", b"\2\0\0\0\0\0\0\0[]"),
        str(tmp_path / "other.safetensors"),
    ):
        with pytest.raises(HeadError) as caught:
            load_head(url)
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError):
        load_head(str(tmp_path / "missing"))
