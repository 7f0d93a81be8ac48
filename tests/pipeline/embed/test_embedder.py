from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from musicfm_model import MusicFM25Hz
from musicfm_model.checkpoint import Checkpoint, load_checkpoint
from pipeline.config import RESOLUTIONS, SAMPLE_RATE_HZ, Resolution, WindowPolicy
from pipeline.embed.device import choose_batch_size
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.embed.pool import pool_frames
from pipeline.embed.rows import Features, as_column
from pipeline.errors import Reason, TrackError
from pipeline.schema import DECODED, FEATURES
from tests.checkpoints import TINY, write_random_checkpoint

LAYERS = {"musicfm-l2-a": 2, "musicfm-l3-a": 3}
ALL = [f"musicfm-l2-a/{name}" for name in RESOLUTIONS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    write_random_checkpoint(path, TINY, seed=1)
    return load_checkpoint(str(path))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> MusicFM25Hz:
    return MusicFM25Hz.from_checkpoint(checkpoint)


def build_embedder(checkpoint: Checkpoint, batch_size: int = 1, windows: WindowPolicy = "shared") -> Embedder:
    return Embedder(checkpoint, EmbedderSettings(LAYERS, windows=windows, batch_size=batch_size))


def make_waveform(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    tone = np.sin(np.arange(num_samples) * (0.01 + 0.02 * seed)) * np.linspace(0.1, 0.9, num_samples)
    waveform: np.ndarray = (0.3 * tone + 0.1 * generator.normal(size=num_samples)).astype(np.float32)
    return waveform


def latent(model: MusicFM25Hz, waveform: np.ndarray, layer: int) -> np.ndarray:
    with torch.inference_mode():
        found: Tensor = model.get_latent(torch.from_numpy(waveform.copy())[None], layer_ix=layer)
    array: np.ndarray = found[0].numpy()
    return array


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def decoded_rows(waveforms: Sequence[np.ndarray | None], wanted: Sequence[str], **columns: Any) -> pa.Table:
    rows = [
        dict.fromkeys(DECODED.names)
        | {"track_id": f"t{i}", "wanted": list(wanted), "held": [], "waveform": waveform, "content_hash": "00"}
        | columns
        for i, waveform in enumerate(waveforms)
    ]
    return pa.Table.from_pylist(rows, schema=DECODED)


def embed_rows(embedder: Embedder, decoded: pa.Table) -> list[pa.Table]:
    """Return embedded rows one by one."""
    embedded = pa.concat_tables(embedder.embed_rows(decoded))
    return [embedded.slice(index, 1) for index in range(embedded.num_rows)]


@pytest.mark.parametrize("seconds", [0.05, 5.37, 29.999, 30.0])
def test_frames_of_a_track_within_the_window_are_its_latents(
    checkpoint: Checkpoint, model: MusicFM25Hz, seconds: float
) -> None:
    waveform = make_waveform(seconds)
    found = build_embedder(checkpoint).embed_waveform(waveform, ["musicfm-l2-a/25hz", "musicfm-l2-a/50hz"])
    expected = latent(model, waveform, 2)
    assert_close(found["musicfm-l2-a/25hz"], expected)
    assert_close(found["musicfm-l2-a/50hz"], np.repeat(expected, 2, axis=0))


def test_frames_of_a_longer_track_are_latents_of_its_windows(checkpoint: Checkpoint, model: MusicFM25Hz) -> None:
    waveform = make_waveform(41.0171)
    found = build_embedder(checkpoint, 2).embed_waveform(waveform, ["musicfm-l2-a/25hz"])["musicfm-l2-a/25hz"]
    assert len(found) == 1025
    assert_close(found[:750], latent(model, waveform[:720_000], 2))
    last_start = (len(waveform) - 720_000) // 960
    last = latent(model, waveform[last_start * 960 : last_start * 960 + 720_000], 2)
    assert_close(found[750:], last[750 - last_start :])


@pytest.mark.parametrize(("name", "window_s"), [("50hz", 6.0), ("16hz", 12.0), ("8hz", 24.0), ("global", 29.1)])
def test_task_windows_have_the_lengths_of_the_papers_probes(
    checkpoint: Checkpoint, model: MusicFM25Hz, name: str, window_s: float
) -> None:
    waveform = make_waveform(window_s)
    wanted = f"musicfm-l2-a/{name}"
    found = build_embedder(checkpoint, windows="task").embed_waveform(waveform, [wanted])[wanted]
    expected = pool_frames(torch.from_numpy(latent(model, waveform, 2)), RESOLUTIONS[name]).numpy()
    assert_close(found, expected)
    longer = np.concatenate([waveform, make_waveform(window_s, seed=3)])
    beginning = build_embedder(checkpoint, windows="task").embed_waveform(longer, [wanted])[wanted]
    if name != "global":
        assert_close(beginning[: len(expected) - 1], expected[:-1])


def test_several_layers_come_from_one_pass(checkpoint: Checkpoint, model: MusicFM25Hz) -> None:
    waveform = make_waveform(3.0)
    embedder = build_embedder(checkpoint)
    encoded: list[int] = []
    embedder.model.conv.register_forward_hook(lambda *_: encoded.append(1))
    found = embedder.embed_waveform(waveform, ["musicfm-l2-a/25hz", "musicfm-l3-a/25hz"])
    assert len(encoded) == 1
    assert_close(found["musicfm-l2-a/25hz"], latent(model, waveform, 2))
    assert_close(found["musicfm-l3-a/25hz"], latent(model, waveform, 3))


def test_batch_neighbours_change_nothing(checkpoint: Checkpoint) -> None:
    lengths = [2.0, 3.0, 2.0, 7.3, 2.0, 31.0, 3.0]
    waveforms = [make_waveform(seconds, seed) for seed, seconds in enumerate(lengths)]
    alone = build_embedder(checkpoint, 1)
    together = embed_rows(build_embedder(checkpoint, 4), decoded_rows(waveforms, ALL))
    assert [row.column("track_id")[0].as_py() for row in together] == [f"t{i}" for i in range(len(lengths))]
    for waveform, row in zip(waveforms, together, strict=True):
        expected = alone.embed_waveform(waveform, ALL)
        (item,) = row.column("features")[0].as_py()
        assert item["wanted"] == ALL
        found = np.array(item["values"], np.float32).reshape(item["num_frames"], -1)
        assert_close(found, expected["musicfm-l2-a/25hz"])


def test_tracks_leave_together_that_went_through_the_model_together(checkpoint: Checkpoint) -> None:
    waveforms = [make_waveform(seconds) for seconds in (30.0, 30.0, 65.0, 2.0, 30.0)]
    tables = list(build_embedder(checkpoint).embed_rows(decoded_rows(waveforms, ["musicfm-l2-a/25hz"])))
    assert [table.column("track_id").to_pylist() for table in tables] == [["t0", "t1", "t2"], ["t3", "t4"]]
    assert list(build_embedder(checkpoint).embed_rows(decoded_rows([], []))) == []


def test_failed_and_unchanged_rows_pass_through(checkpoint: Checkpoint) -> None:
    failed = decoded_rows([None], ALL, stage="decode", error_type="silent", error_message="…")
    unchanged = decoded_rows([None], [])
    rows = embed_rows(build_embedder(checkpoint), pa.concat_tables([failed, unchanged]))
    assert [row.column("error_type")[0].as_py() for row in rows] == ["silent", None]
    assert [row.column("features")[0].as_py() for row in rows] == [[], []]


HANDED_ON: dict[str, tuple[WindowPolicy, list[str], dict[tuple[str, ...], tuple[float | None, int]]]] = {
    "all that is pooled is more than the frames": (
        "shared",
        ["50hz", "16hz", "8hz", "0.5hz", "global"],
        {("50hz", "16hz", "8hz", "0.5hz", "global"): (25.0, 750)},
    ),
    "frames themselves": ("shared", ["25hz"], {("25hz",): (25.0, 750)}),
    "less than the frames": ("shared", ["16hz", "global"], {("16hz",): (16.0, 480), ("global",): (None, 1)}),
    "each window length for itself": (
        "task",
        ["50hz", "16hz", "0.5hz", "global"],
        {("50hz",): (25.0, 750), ("16hz",): (16.0, 480), ("0.5hz",): (0.5, 15), ("global",): (None, 1)},
    ),
}


@pytest.mark.parametrize(("windows", "names", "expected"), HANDED_ON.values(), ids=HANDED_ON.keys())
def test_what_is_handed_on_is_frames_or_what_is_pooled_from_them_whichever_is_less(
    checkpoint: Checkpoint,
    windows: WindowPolicy,
    names: list[str],
    expected: dict[tuple[str, ...], tuple[float | None, int]],
) -> None:
    wanted = [f"musicfm-l2-a/{name}" for name in names]
    (row,) = embed_rows(build_embedder(checkpoint, windows=windows), decoded_rows([make_waveform(30.0)], wanted))
    items = row.column("features")[0].as_py()
    found = {
        tuple(name.split("/")[1] for name in item["wanted"]): (item["frame_rate_hz"], item["num_frames"])
        for item in items
    }
    assert found == expected
    assert {len(item["values"]) // item["num_frames"] for item in items} == {TINY.embed_dim}


def test_a_window_that_the_model_refuses_fails_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = build_embedder(checkpoint, batch_size=4)
    compute = embedder.model.compute_mel
    sizes = []

    def refuse_loud_windows(waveforms: Tensor) -> Tensor:
        sizes.append(len(waveforms))
        if (waveforms.abs() > 5).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(waveforms)

    monkeypatch.setattr(embedder.model, "compute_mel", refuse_loud_windows)
    waveforms = [make_waveform(1.0, seed) for seed in range(4)]
    waveforms[2] = waveforms[2] * 100
    rows = embed_rows(embedder, decoded_rows(waveforms, ["musicfm-l2-a/25hz"]))
    assert [row.column("error_type")[0].as_py() for row in rows] == [None, None, "out_of_memory", None]
    assert sizes == [4, 2, 2, 1, 1]


def test_values_that_are_not_finite_are_a_failure_that_names_the_precision(checkpoint: Checkpoint) -> None:
    embedder = build_embedder(checkpoint)
    linear = embedder.model.conv.linear
    linear.bias = torch.nn.Parameter(linear.bias.detach() + float("inf"))  # a new one: the checkpoint's is shared
    with pytest.raises(TrackError, match="float32") as caught:
        embedder.embed_waveform(make_waveform(1.0), ["musicfm-l2-a/16hz"])
    assert caught.value.reason is Reason.NON_FINITE_EMBEDDING


def test_a_cpu_takes_one_window_at_a_time() -> None:
    assert choose_batch_size("cpu", "float32") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("windows", ["shared", "task"])
@pytest.mark.parametrize("names", [list(RESOLUTIONS), ["16hz", "global"]], ids=["frames", "pooled there"])
def test_a_gpu_gives_what_the_cpu_gives(checkpoint: Checkpoint, windows: WindowPolicy, names: list[str]) -> None:
    wanted = [f"musicfm-l2-a/{name}" for name in names]
    waveform = make_waveform(31.0)
    on_gpu = Embedder(checkpoint, EmbedderSettings(LAYERS, windows, device="cuda", batch_size=2))
    expected = build_embedder(checkpoint, windows=windows).embed_waveform(waveform, wanted)
    found = on_gpu.embed_waveform(waveform, wanted)
    assert list(found) == list(expected)
    for name, features in found.items():
        assert_close(features, expected[name], 1e-4)


def test_a_track_may_have_more_values_than_the_offsets_of_a_list_count() -> None:
    values = np.zeros((2**21 + 1, 1024), np.float32)  # untouched, they take no memory
    column = as_column([Features(["musicfm-l2-a/50hz"], 25.0, values)])
    assert column.type == FEATURES
    assert len(column.values.field("values")[0]) == 2**31 + 1024


def test_a_device_without_room_to_pool_in_costs_the_track_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(frames: Tensor, resolution: Resolution) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    decoded = pa.concat_tables(
        [
            decoded_rows([make_waveform(1.0)], ["musicfm-l2-a/16hz"], track_id="pooled there"),
            decoded_rows([make_waveform(1.0)], ["musicfm-l2-a/25hz"], track_id="frames"),
        ]
    )
    monkeypatch.setattr("pipeline.embed.embedder.pool_frames", refuse)
    rows = embed_rows(build_embedder(checkpoint), decoded)
    assert [row.column("error_type")[0].as_py() for row in rows] == ["out_of_memory", None]
    assert [len(row.column("features")[0]) for row in rows] == [0, 1]
