"""Real clips in every layout of the two data sets: right ids, the same vectors, names kept, nothing lost."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs import embed_fma, embed_msd
from pipeline.store.read import FeatureStore
from tests.corpus import encode_clip, load_music

IDS = ("TRAXLZU12903D05F94", "TRBABCD128F1234567")
WITHOUT_AUDIO = "TRZZZZZ128F0000000"
TITLES = {
    IDS[0]: ("Sigur Rós", 'Sæglópur, "live"'),
    IDS[1]: ("AC/DC <feat. X>", "T.N.T."),
    WITHOUT_AUDIO: ("Nobody", "Silence"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    waveform = load_music(seconds=6.0, sample_rate=22_050)
    content = {}
    for index, track_id in enumerate(IDS):
        half = waveform[index * len(waveform) // 2 : (index + 1) * len(waveform) // 2]
        encode_clip(folder / f"{track_id}.mp3", half, 22_050)
        content[track_id] = (folder / f"{track_id}.mp3").read_bytes()
    return content


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def lay_out_id_tree(root: Path, clips: dict[str, bytes]) -> Path:
    for track_id, data in clips.items():
        write(root / track_id[2] / track_id[3] / track_id[4] / f"{track_id}.mp3", data)
    return root


def lay_out_flat(root: Path, clips: dict[str, bytes]) -> Path:
    for track_id, data in clips.items():
        write(root / f"{track_id}.mp3", data)
    return root


def lay_out_7digital(root: Path, clips: dict[str, bytes]) -> Path:
    numbers = {track_id: str(8_947_470 + index) for index, track_id in enumerate([*clips, WITHOUT_AUDIO])}
    paths = {number: f"{number[0]}/{number[1]}/{number}.clip.mp3" for number in numbers.values()}
    for track_id, data in clips.items():
        write(root / paths[numbers[track_id]], data)
    write(root / "MSD_id_to_7D_id.pkl", pickle.dumps(numbers, protocol=0))
    write(root / "7D_id_to_path.pkl", pickle.dumps(paths, protocol=2))
    return root


def lay_out_manifest(root: Path, clips: dict[str, bytes]) -> Path:
    for track_id, data in clips.items():
        write(root / "audio" / f"{track_id}.mp3", data)
    uris = [f"audio/{track_id}.mp3" for track_id in clips]
    manifest = pa.table({"track_id": [*clips, WITHOUT_AUDIO], "uri": [*uris, None]})
    pq.write_table(manifest, root / "manifest.parquet")
    return root / "manifest.parquet"


def run(command: Callable[[list[str]], int], arguments: list[str], capsys: Any) -> dict[str, Any]:
    assert command(arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def read_tracks(store: Path) -> dict[str, dict[str, Any]]:
    return {row["track_id"]: row for row in DeltaTable(store / "tracks").to_pyarrow_table().to_pylist()}


@pytest.fixture(scope="module")
def vectors() -> dict[str, list[np.ndarray]]:
    """Vectors by track id, gathered over the layouts."""
    return {}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("lay_out", [lay_out_id_tree, lay_out_flat, lay_out_7digital, lay_out_manifest])
def test_each_msd_layout_gives_the_same_tracks(
    lay_out: Callable[[Path, dict[str, bytes]], Path],
    tmp_path: Path,
    clips: dict[str, bytes],
    tiny_checkpoint: Path,
    vectors: dict[str, list[np.ndarray]],
    capsys: Any,
) -> None:
    audio = lay_out(tmp_path / "msd", clips)
    lines = [f"{id_}<SEP>SO{id_[2:]}<SEP>{artist}<SEP>{title}\n" for id_, (artist, title) in TITLES.items()]
    (tmp_path / "unique_tracks.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "split.txt").write_text("\n".join([*IDS, WITHOUT_AUDIO]) + "\n")
    arguments = ["--audio", str(audio), "--store", str(tmp_path / "store"), "--checkpoint", str(tiny_checkpoint)]
    arguments += ["--tracks", str(tmp_path / "unique_tracks.txt"), "--split", str(tmp_path / "split.txt")]
    arguments += ["--layers", "2", "--resolutions", "8hz,global"]
    report = run(embed_msd.main, arguments, capsys)
    assert (report["planned"], report["embedded"], report["failed"]) == (3, 2, 1)
    tracks = read_tracks(tmp_path / "store")
    assert set(tracks) == set(IDS)
    ids, stored = FeatureStore(str(tmp_path / "store")).vectors("global")
    assert ids.to_pylist() == sorted(IDS)
    for track_id, vector in zip(ids.to_pylist(), stored, strict=True):
        assert (tracks[track_id]["artist"], tracks[track_id]["title"]) == TITLES[track_id]
        vectors.setdefault(track_id, []).append(vector)
        np.testing.assert_array_equal(vectors[track_id][-1], vectors[track_id][0])
    failures = DeltaTable(tmp_path / "store" / "failures").to_pyarrow_table().to_pylist()
    assert [(row["track_id"], row["stage"], row["error_type"]) for row in failures] == [
        (WITHOUT_AUDIO, "catalog", "object_missing")
    ]
    assert not np.array_equal(vectors[IDS[0]][0], vectors[IDS[1]][0])


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_fma_tree_with_its_metadata(
    tmp_path: Path, clips: dict[str, bytes], tiny_checkpoint: Path, capsys: Any
) -> None:
    root = tmp_path / "fma_small"
    for number, data in zip((2, 123_456), clips.values(), strict=True):
        write(root / f"{number:06d}"[:3] / f"{number:06d}.mp3", data)
    header = (
        ",album,artist,set,set,track,track\n,title,name,split,subset,genre_top,title\ntrack_id,,,,,,\n"
        '2,"AWOL - A Way Of Life",AWOL,training,small,Hip-Hop,"Food, or\nnot"\n'
        "5,Album,Somebody,training,small,Folk,Missing\n"
        "123456,Niris,Nicky Cook,training,medium,Rock,Street Music\n"
    )
    (tmp_path / "tracks.csv").write_text(header, encoding="utf-8")
    arguments = ["--audio", str(root), "--store", str(tmp_path / "store"), "--checkpoint", str(tiny_checkpoint)]
    arguments += ["--metadata", str(tmp_path / "tracks.csv"), "--subset", "medium", "--layers", "2"]
    report = run(embed_fma.main, [*arguments, "--resolutions", "global"], capsys)
    assert (report["planned"], report["embedded"], report["failed"]) == (3, 2, 1)
    tracks = read_tracks(tmp_path / "store")
    assert set(tracks) == {"000002", "123456"}
    row = tracks["000002"]
    assert (row["title"], row["artist"], row["album"]) == ("Food, or\nnot", "AWOL", "AWOL - A Way Of Life")
    assert row["genre"] == "Hip-Hop"
    failures = DeltaTable(tmp_path / "store" / "failures").to_pyarrow_table().to_pylist()
    assert [(row["track_id"], row["error_type"]) for row in failures] == [("000005", "object_missing")]
