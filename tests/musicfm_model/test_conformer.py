from __future__ import annotations

from typing import Any

import pytest
import torch

from musicfm_model.model import MusicFM25Hz
from tests.checkpoints import TINY
from tests.musicfm_model.oracles import conformer_layer, layer_norm, relative_error, to_arrays


def count_layers(model: MusicFM25Hz) -> list[int]:
    """Return a list that every layer appends its index to when it is computed."""
    computed: list[int] = []
    for index, layer in enumerate(model.conformer.layers):

        def note(*_: Any, index: int = index) -> None:
            computed.append(index)

        layer.register_forward_hook(note)
    return computed


def test_agrees_with_numpy(tiny_model: MusicFM25Hz, generator: torch.Generator) -> None:
    x = torch.randn(2, 40, TINY.embed_dim, generator=generator)

    found = tiny_model.conformer(x, range(TINY.num_layers + 1))

    weights = to_arrays(tiny_model.conformer.state_dict())
    expected = x[1].double().numpy()
    for index in range(TINY.num_layers):
        assert relative_error(found[index][1], expected) < 1e-5
        prefix = f"layers.{index}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        expected = conformer_layer(expected, layer, weights["embed_positions.inv_freq"], TINY.num_heads)
    assert relative_error(found[TINY.num_layers][1], layer_norm(expected, weights, "layer_norm")) < 1e-5


@pytest.mark.parametrize("wanted", [[0], [1], [2, 0], [3], [1, 3]])
def test_no_layer_beyond_the_last_one_wanted_is_computed(tiny_model: MusicFM25Hz, wanted: list[int]) -> None:
    x = torch.zeros(1, 5, TINY.embed_dim)
    everything = tiny_model.conformer(x, range(TINY.num_layers + 1))
    computed = count_layers(tiny_model)

    found = tiny_model.conformer(x, wanted)

    assert computed == list(range(max(wanted)))
    assert found.keys() == set(wanted)
    assert all(torch.equal(found[index], everything[index]) for index in wanted)


def test_training_drops_and_evaluation_does_not(tiny_model: MusicFM25Hz, generator: torch.Generator) -> None:
    x = torch.randn(1, 20, TINY.embed_dim, generator=generator)

    assert torch.equal(tiny_model.conformer(x, [0])[0], x)
    dropped = tiny_model.train().conformer(x, [0])[0]

    kept = dropped != 0
    assert 0.02 < 1 - kept.float().mean() < 0.2  # a tenth of 640 values
    assert torch.allclose(dropped[kept], x[kept] / 0.9)
