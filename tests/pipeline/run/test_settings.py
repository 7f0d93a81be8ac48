from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunSettings, Shard
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.run.settings import build_settings


def test_what_is_not_given_is_as_the_command_has_it() -> None:
    assert build_settings("s", "msd", None, {}) == RunSettings(StoreLocation("s"), "msd")


def test_a_single_layer_or_resolution_stands_for_a_list_of_one(tmp_path: Path) -> None:
    found = build_settings(tmp_path, tmp_path / "m.pt", {"key": "k"}, {"layers": 4, "resolutions": "8hz"})
    expected = RunSettings(
        StoreLocation(str(tmp_path), {"key": "k"}), str(tmp_path / "m.pt"), layers=(4,), resolutions=("8hz",)
    )
    assert found == expected
    assert build_settings("s", "m", None, {"layers": [7, 4, 7]}).layers == (7, 4)


def test_a_shard_is_given_as_it_is_on_the_command_line() -> None:
    assert build_settings("s", "m", None, {"shard": "2/4"}).shard == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 7}, "found layer; the nearest is layers"),
        (
            {"shard": "5/4"},
            "shard: expected the number of a shard and how many there are, such as 2/4, found '5/4'",
        ),
        ({"shard": "2"}, "shard: expected .*, found '2'"),
        ({"shard": 2}, "shard: expected a text such as '2/4', found 2"),
        ({"zzz": 7}, "found zzz$"),
        ({"layers": ()}, "layers: expected whole numbers"),
        ({"layers": "7"}, "layers: expected whole numbers"),
        ({"layers": 7.5}, "layers: expected whole numbers"),
        ({"resolutions": ["8hz", "9hz"]}, r"resolutions: expected names of 50hz, .*found .*'9hz'"),
        ({"resolutions": []}, "resolutions: expected names"),
        ({"windows": "long"}, "windows: expected shared, task; found 'long'"),
        ({"precision": "float64"}, "precision: expected float32"),
        ({"attention": None}, "attention: expected sdpa"),
        ({"catalog": "live/"}, "catalog: expected a name without / and without blanks at its ends, found 'live/'"),
        ({"catalog": "live/2024"}, "catalog: expected a name without /"),
        ({"catalog": ""}, "catalog: expected a name"),
        ({"catalog": " live"}, "catalog: expected a name"),
        ({"catalog": 7}, "catalog: expected a name without / and without blanks at its ends, found 7"),
        ({"device": "tpu"}, "device: expected cuda, cpu; found 'tpu'"),
        ({"mantissa_bits": 24}, "mantissa_bits: expected a whole number, 1 to 23; found 24"),
        ({"batch_size": 0}, "batch_size: expected a whole number, 1 or more; found 0"),
        ({"max_duration_s": -1}, "max_duration_s: expected a number over 0, found -1"),
        ({"stall_timeout_s": float("nan")}, "stall_timeout_s: expected a number over 0, found nan"),
        ({"num_gpus": 1, "device": "cpu"}, "nothing would use them"),
    ],
)
def test_a_mistake_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_settings("s", "msd", None, given)
    assert "\n" not in str(caught.value)
