import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import msd as catalog_msd
from pipeline.catalog.msd import load_msd_catalog
from pipeline.errors import CatalogError, StorageError
from pipeline.schema import CATALOG

A, B, C, D = "TRAXLZU12903D05F94", "TRABCDE128F111A111", "TRZZZZZ128F4270EDD", "TRADRRX12903D0EFE8"

# As Python 2's cPickle wrote it by default (protocol 0): text is a line of its own, in quotes.
PROTOCOL_0 = b"(dp1\nS'%s'\np2\nS'8947470'\np3\nsS'%s'\np4\nS'123'\np5\ns." % (A.encode(), B.encode())
TO_PATH = {"8947470": "8/9/8947470.clip.mp3", "123": "1/2/123.clip.mp3", "9": "9/9/9.clip.mp3"}


def make_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def load_rows(root: str | Path, **settings: Any) -> dict[str, dict[str, Any]]:
    tracks, split = settings.get("tracks"), settings.get("split")
    table = load_msd_catalog(str(root), tracks and str(tracks), split and str(split))
    assert table.schema == CATALOG
    ids = table["track_id"].to_pylist()
    assert ids == sorted(set(ids))
    return {row["track_id"]: row for row in table.to_pylist()}


def load_names(root: str | Path, **settings: Any) -> dict[str, str | None]:
    rows = load_rows(root, **settings)
    return {track_id: row["uri"] and Path(row["uri"]).name for track_id, row in rows.items()}


def test_id_tree_and_flat_files_in_any_codec(tmp_path: Path) -> None:
    make_files(tmp_path, f"A/X/L/{A}.mp3", f"wrong/folder/{B}.clip.MP3", f"{C}.ogg", f"A/._{A}.mp3", f"{D}.h5")
    assert load_names(tmp_path) == {A: f"{A}.mp3", B: f"{B}.clip.MP3", C: f"{C}.ogg"}
    assert load_rows(tmp_path)[A]["uri"] == f"{tmp_path}/A/X/L/{A}.mp3"


def test_other_audio_is_passed_over_unless_there_is_no_other(tmp_path: Path) -> None:
    make_files(tmp_path, f"{A}.mp3", "jingle.mp3", f"x{B}.mp3", f"{C}x.mp3", f"{D.lower()}.mp3")
    assert list(load_names(tmp_path)) == [A]
    (tmp_path / f"{A}.mp3").unlink()
    with pytest.raises(CatalogError, match=r"files named by track id .*7D_id_to_path\.pkl; found 4 other"):
        load_msd_catalog(str(tmp_path))


def test_two_files_of_one_id_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, f"A/{A}.mp3", f"B/{A}.clip.mp3")
    with pytest.raises(CatalogError, match=rf"/A/{A}\.mp3 and .*/B/{A}\.clip\.mp3"):
        load_msd_catalog(str(tmp_path))


@pytest.mark.parametrize("place", ["", "lastfm_annotation", ".."])
def test_7digital_tree_with_its_pickles_in_the_known_places(tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    make_files(root, "8/9/8947470.clip.mp3", "1/2/123.clip.mp3", "7/7/777.clip.mp3")
    (root / place).mkdir(exist_ok=True)
    (root / place / "MSD_id_to_7D_id.pkl").write_bytes(PROTOCOL_0)
    (root / place / "7D_id_to_path.pkl").write_bytes(pickle.dumps(TO_PATH, protocol=2))
    assert load_names(root) == {A: "8947470.clip.mp3", B: "123.clip.mp3"}


def test_7digital_tree_deeper_down_and_in_another_codec_with_a_shared_file(tmp_path: Path) -> None:
    make_files(tmp_path, "songs/8/9/8947470.wav", "songs/9/9/9.clip.mp3")
    mapping = {B: "8947470", A: "8947470", C: "123", D: "absent"}
    (tmp_path / "MSD_id_to_7D_id.pkl").write_bytes(pickle.dumps(mapping, protocol=1))
    (tmp_path / "7D_id_to_path.pkl").write_bytes(pickle.dumps(TO_PATH, protocol=2))
    assert load_names(tmp_path) == {A: "8947470.wav", B: "8947470.wav"}
    (tmp_path / "split.txt").write_text(f"{A}\n{C}\n")
    assert load_names(tmp_path, split=tmp_path / "split.txt") == {A: "8947470.wav", C: None}
    make_files(tmp_path, "copy/8947470.mp3")
    with pytest.raises(CatalogError, match=r"7digital's 8947470: .*copy/8947470\.mp3 and .*8947470\.wav"):
        load_msd_catalog(str(tmp_path))


def test_7digital_tree_that_the_pickles_do_not_name(tmp_path: Path) -> None:
    make_files(tmp_path, "5/5/555.mp3")
    (tmp_path / "MSD_id_to_7D_id.pkl").write_bytes(PROTOCOL_0)
    (tmp_path / "7D_id_to_path.pkl").write_bytes(pickle.dumps(TO_PATH, protocol=2))
    with pytest.raises(CatalogError, match=r"expected audio .* that 7D_id_to_path\.pkl names"):
        load_msd_catalog(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"(dp1\nS'a\\xe9'\np2\nS'1'\np3\nsI7\nI8\ns.",  # protocol 0
        b"\x80\x02}q\x01(U\x02a\xe9q\x02U\x011q\x03K\x07K\x08u.",  # protocol 2, as cPickle.dump(…, -1) wrote
        pickle.dumps({"aé": "1", 7: 8}, protocol=2),
        pickle.dumps({"aé".encode("latin1"): b"1", 7: 8}, protocol=2),
        pickle.dumps({"aé".encode("latin1"): b"1", 7: 8}, protocol=4),
    ],
)
def test_plain_pickles_of_either_python(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    assert catalog_msd.read_plain_pickle(str(tmp_path / "x.pkl")) == {"aé": "1", "7": "8"}


class Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.canary,)  # type: ignore[return-value]


def test_a_hostile_pickle_runs_nothing_and_its_global_is_named(tmp_path: Path) -> None:
    url, canary = tmp_path / "x.pkl", tmp_path / "canary"
    url.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode())
    with pytest.raises(CatalogError, match=r"x\.pkl, found the global (os|posix)\.system, which is refused"):
        catalog_msd.read_plain_pickle(str(url))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        url.write_bytes(pickle.dumps({A: Hostile(canary)}, protocol=protocol))
        with pytest.raises(CatalogError, match="which is refused"):
            catalog_msd.read_plain_pickle(str(url))
    assert not canary.exists()
    pickle.loads(url.read_bytes())  # the danger is real
    assert canary.exists()


@pytest.mark.parametrize(
    "data", [b"", b"not a pickle", PROTOCOL_0[:-10], pickle.dumps([A]), b"(dp1\nS'a'\n(lp2\ns.x"[:9]]
)
def test_a_damaged_pickle_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(CatalogError, match=r"^[^\n]*/x\.pkl[^\n]*$"):
        catalog_msd.read_plain_pickle(str(tmp_path / "x.pkl"))


def test_a_manifest_is_a_layout_too(tmp_path: Path) -> None:
    manifest = tmp_path / "msd.parquet"
    make_files(tmp_path, "a/1.mp3")
    pq.write_table(pa.table({"track_id": [B, A], "uri": ["a/1.mp3", None], "title": ["kept", None]}), manifest)
    (tmp_path / "tracks.txt").write_text(f"{B}<SEP>S<SEP>artist<SEP>title\n{A}<SEP>S<SEP>artist<SEP>title\n")
    assert load_names(manifest) == {A: None, B: "1.mp3"}
    rows = load_rows(manifest, tracks=tmp_path / "tracks.txt")
    assert [rows[track_id]["title"] for track_id in (A, B)] == ["title", "kept"]
    (tmp_path / "msd.csv").write_text(f"path\nx/{A}.clip.mp3\nx/{B}.mp3\n")
    assert list(load_names(tmp_path / "msd.csv")) == [B, A]


ODD_TRACKS = {
    A: ("Sigur Rós", "Svefn-g-englar"),
    B: ('"quoted", comma', "tab\there <b>&</b> \u2028 \x85 <SEP> end"),
    C: ("", ""),
    D: ("<SEP", "SEP> "),
}


def write_tracks(path: Path, newline: str = "\n", bom: bool = False) -> None:
    lines = [f"{track_id}<SEP>SOABC<SEP>{artist}<SEP>{title}" for track_id, (artist, title) in ODD_TRACKS.items()]
    path.write_bytes((newline.join(lines) + newline).encode("utf-8-sig" if bom else "utf-8"))


@pytest.mark.parametrize(("newline", "bom"), [("\n", False), ("\r\n", True)])
def test_unique_tracks_with_odd_titles(tmp_path: Path, newline: str, bom: bool) -> None:
    write_tracks(tmp_path / "tracks.txt", newline, bom)
    found = catalog_msd.read_unique_tracks(str(tmp_path / "tracks.txt")).to_pylist()
    assert {row["track_id"]: (row["artist"] or "", row["title"] or "") for row in found} == ODD_TRACKS
    assert found[2] == {"track_id": C, "artist": None, "title": None}


def test_a_title_that_is_not_utf8_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "tracks.txt").write_bytes(f"{A}<SEP>S<SEP>".encode() + b"R\xf3s<SEP>x\n")
    assert catalog_msd.read_unique_tracks(str(tmp_path / "tracks.txt"))["artist"].to_pylist() == ["R\ufffds"]


@pytest.mark.parametrize("line", [f"2001<SEP>{A}<SEP>artist<SEP>title", f"{A},S,artist,title", f"{A}<SEP>S<SEP>a"])
def test_another_file_than_unique_tracks_is_refused_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "tracks.txt").write_text(f"{A}<SEP>S<SEP>artist<SEP>title\n\n{line}\n")
    with pytest.raises(CatalogError, match=r"in line 3 of .*/tracks\.txt"):
        catalog_msd.read_unique_tracks(str(tmp_path / "tracks.txt"))


@pytest.mark.parametrize("place", ["root", "."])
def test_unique_tracks_that_are_found_only_describe(tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    make_files(root, f"{A}.mp3", f"{B}.mp3")
    write_tracks(tmp_path / place / "unique_tracks.txt")
    rows = load_rows(root)
    assert {track_id: (row["artist"], row["title"]) for track_id, row in rows.items()} == {
        track_id: ODD_TRACKS[track_id] for track_id in (A, B)
    }


def test_unique_tracks_that_are_given_belong_to_the_catalog(tmp_path: Path) -> None:
    other = "TROTHER128F4270EDD"
    make_files(tmp_path / "root", f"{A}.mp3", f"{other}.mp3")
    write_tracks(tmp_path / "tracks.txt")
    rows = load_rows(tmp_path / "root", tracks=tmp_path / "tracks.txt")
    assert {track_id: row["uri"] is not None for track_id, row in rows.items()} == {
        A: True,
        B: False,
        C: False,
        D: False,
        other: True,
    }
    assert rows[B]["artist"] == ODD_TRACKS[B][0]


def test_a_split_alone_names_the_catalog(tmp_path: Path) -> None:
    make_files(tmp_path / "root", f"{A}.mp3", f"{B}.mp3")
    write_tracks(tmp_path / "tracks.txt")
    (tmp_path / "split.txt").write_text(f"{A}\n{C}\n{A}\n")
    for settings in ({}, {"tracks": tmp_path / "tracks.txt"}):
        rows = load_rows(tmp_path / "root", split=tmp_path / "split.txt", **settings)
        assert {track_id: row["uri"] is not None for track_id, row in rows.items()} == {A: True, C: False}
        assert rows[A]["artist"] == ("Sigur Rós" if settings else None)


SPLITS = {
    "list.txt": f"{A}\n{B}\r\n{C}".encode(),
    "table.tsv": f"track_id\ttag\n{A}\trock\n{B}\tTRUE\n{C}\tSOUNMSI12AB0182807\n".encode(),
    "table.csv": f'\ufeffindex,"id"\n0,"{A}"\n1,"{B}"\n2,"{C}"\n'.encode(),
    "paths.txt": f"A/X/L/{A}.mp3\n./{B}.npy\ndata\\{C}.wav\n".encode(),
    "ecals_track_split.json": json.dumps({"train_track": [A], "valid_track": [B], "test_track": [C]}).encode(),
    "annotation.json": json.dumps({A: {"tag": ["x"], "track_id": A}, B: {"title": C}}, indent=1).encode(),
    "list.npy": b"",
    "bytes.npy": b"",
    "filtered_list_test.cP": f"(lp1\nS'{A}'\np2\naS'{B}'\np3\naS'{C}'\np4\na.".encode(),
    **{f"list{protocol}.pkl": pickle.dumps([A, B, C], protocol=protocol) for protocol in range(6)},
}


@pytest.mark.parametrize("name", SPLITS)
def test_split_files_of_every_published_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(SPLITS[name])
    if name.endswith(".npy"):
        np.save(path, np.array([A, B, C], dtype="S18" if name == "bytes.npy" else "U18"))
    assert list(dict.fromkeys(catalog_msd.read_split(str(path)).to_pylist())) == [A, B, C]


def test_a_split_without_ids_or_of_pickled_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split"
    for text in ("", "track_id\n8947470\n", f"{A}0\n", f"x{A}\n", A.lower()):
        path.write_text(text)
        with pytest.raises(CatalogError, match=rf"expected track ids such as {A} in {path}"):
            catalog_msd.read_split(str(path))
    np.save(path.with_suffix(".npy"), np.array([A, None], dtype=object))
    with pytest.raises(CatalogError, match=r"expected an array of text in .*split\.npy"):
        catalog_msd.read_split(str(path.with_suffix(".npy")))


def test_missing_files_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, f"{A}.mp3")
    for settings in ({"split": "/no/split"}, {"tracks": "/no/tracks"}):
        with pytest.raises(StorageError, match="/no/"):
            load_rows(tmp_path, **settings)
    with pytest.raises(StorageError, match="/no/root"):
        load_rows("/no/root")
