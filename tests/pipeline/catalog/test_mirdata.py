import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import embed_catalog
from pipeline.catalog.load import load_catalog
from pipeline.errors import CatalogError, UsageError
from pipeline.schema import CATALOG
from pipeline.store.read import FeatureStore
from tests.corpus import load_music
from tests.encoders import encode_bytes
from tests.rows import read_store

pytest.importorskip("mirdata", reason="mirdata is not installed: pip install '.[mirdata]'")

GENRES = {"blues.00000": "blues", "hiphop.00001": "hip-hop", "rock.00099": "rock"}


def write_index(folder: Path, name: str, tracks: dict[str, dict[str, Any]]) -> None:
    """Write an index in mirdata's form: for every track, files by their kind, with their checksums."""
    (folder / name).write_text(json.dumps({"version": "1.0", "tracks": tracks}))


def make_gtzan(folder: Path) -> Path:
    """Lay out a GTZAN with three tracks as its index has them; the last one's audio is missing."""
    folder.mkdir()
    tracks = {}
    for track_id, genre in GENRES.items():
        path = Path("gtzan_genre", "genres", genre.replace("-", ""), f"{track_id}.wav")
        tracks[track_id] = {"audio": [str(path), "0" * 32], "beats": [None, None], "tempo": [None, None]}
        if genre != "rock":
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_bytes(
                encode_bytes(load_music(seconds=1.0, sample_rate=22_050), 22_050, format="WAV")
            )
    write_index(folder, "gtzan_genre_index_1.0.json", tracks)
    return folder


@pytest.fixture
def gtzan(tmp_path: Path) -> Path:
    return make_gtzan(tmp_path / "gtzan")


def test_ids_files_genres_and_facts_are_those_of_the_data_set(gtzan: Path) -> None:
    catalog = load_catalog(f"mirdata:gtzan_genre:{gtzan}")
    assert catalog.schema == CATALOG
    rows = {row["track_id"]: row for row in catalog.to_pylist()}
    assert {track_id: row["genre"] for track_id, row in rows.items()} == GENRES
    for row in rows.values():
        file = Path(row["uri"])
        assert file == gtzan / "gtzan_genre/genres" / row["track_id"].split(".")[0] / f"{row['track_id']}.wav"
        assert row["size_bytes"] == (file.stat().st_size if file.exists() else None)
        assert row["title"] is row["artist"] is row["album"] is None


def test_titles_and_artists_come_from_the_metadata(tmp_path: Path) -> None:
    kinds = ("audio", "beats", "chords", "sections", "voca_inst")
    (tmp_path / "audio/rwc-p-m01").mkdir(parents=True)
    (tmp_path / "audio/rwc-p-m01/1.wav").write_bytes(b"x")
    track = {kind: ["audio/rwc-p-m01/1.wav" if kind == "audio" else None, None] for kind in kinds}
    write_index(tmp_path, "rwc_popular_index_1.0.json", {"RM-P001": track, "RM-P002": track})
    [first, second] = load_catalog(f"mirdata:rwc_popular:{tmp_path}").to_pylist()
    assert first["title"] is second["title"] is None  # without its metadata the data set can be embedded still
    (tmp_path / "metadata-master").mkdir()
    (tmp_path / "metadata-master/rwc-p.csv").write_text(
        "Piece No.,Cat. Suffix,Tr. No.,Title,Artist,Singer,Length,Tempo,Instruments,Drum\n"
        "No. 1,M01,Tr. 01,Eien no replica,Kazuo Nishi,Male,3:29,135,GtVox,Drum loops\n"
    )
    [first, second] = load_catalog(f"mirdata:rwc_popular:{tmp_path}").to_pylist()
    assert (first["title"], first["artist"], first["genre"]) == ("Eien no replica", "Kazuo Nishi", None)
    assert (second["track_id"], second["title"]) == ("RM-P002", None)  # it has no row


def test_of_several_recordings_of_a_take_the_mix_is_taken(tmp_path: Path) -> None:
    kinds = ("audio_hex_cln", "audio_hex", "audio_mic", "audio_mix", "jams")
    track = {kind: [f"{kind}/00_BN1-129-Eb_comp.wav", None] for kind in kinds}
    (tmp_path / "audio_mix").mkdir()
    (tmp_path / "audio_mix/00_BN1-129-Eb_comp.wav").write_bytes(b"x")
    write_index(tmp_path, "guitarset_index_1.1.0.json", {"00_BN1-129-Eb_comp": track})
    [row] = load_catalog(f"mirdata:guitarset:{tmp_path}").to_pylist()
    assert row["uri"] == str(tmp_path / "audio_mix/00_BN1-129-Eb_comp.wav")


def test_another_version_has_another_index(gtzan: Path) -> None:
    index = json.loads((gtzan / "gtzan_genre_index_1.0.json").read_text())
    write_index(gtzan, "gtzan_genre_1.0_mini_index.json", {"blues.00000": index["tracks"]["blues.00000"]})
    assert load_catalog(f"mirdata:gtzan_genre@mini:{gtzan}")["track_id"].to_pylist() == ["blues.00000"]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("mirdata:gtzan", "mirdata .* cannot open"),
        ("mirdata:gtzan_genre@9.9", "Must be one of"),
        ("mirdata:", "expected mirdata:NAME"),
        ("mirdata:../x", "expected mirdata:NAME"),
    ],
)
def test_mistakes_are_named(spelling: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load_catalog(spelling)


def test_a_missing_index_is_told_with_what_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"gtzan_genre_index_1.0.json.*download\(\['index'\]\)"):
        load_catalog(f"mirdata:gtzan_genre:{tmp_path}")


def test_a_folder_without_any_of_the_audio_is_a_mistake(gtzan: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (gtzan / "gtzan_genre_index_1.0.json").rename(elsewhere / "gtzan_genre_index_1.0.json")
    with pytest.raises(CatalogError, match=r"found none of its 3 tracks; the first should be .*blues.00000.wav"):
        load_catalog(f"mirdata:gtzan_genre:{elsewhere}")


def test_without_the_package_the_extra_is_named(gtzan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mirdata", None)  # Python's own way to say that it cannot be imported
    with pytest.raises(UsageError, match=r"music-feature-store\[mirdata\]"):
        load_catalog(f"mirdata:gtzan_genre:{gtzan}")


@pytest.mark.ray
def test_the_command_embeds_what_is_there_and_notes_what_is_not(
    gtzan: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--audio", f"mirdata:gtzan_genre:{gtzan}", "--store", str(tmp_path / "store")]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--layer", "2", "--resolutions", "0.5hz,global"]
    assert embed_catalog.main(arguments) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["planned"], line["embedded"], line["failed"]) == (3, 2, 1)
    store = FeatureStore(str(tmp_path / "store"))
    genres = dict(
        zip(*(column.to_pylist() for column in store.tracks(["track_id", "genre"]).columns), strict=True)
    )
    assert genres == {"blues.00000": "blues", "hiphop.00001": "hip-hop"}
    [failure] = read_store(store.location, "failures")
    assert (failure["track_id"], failure["error_type"]) == ("rock.00099", "object_missing")
