from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalog import load as catalog
from pipeline.catalog.load import load_catalog, load_rows
from pipeline.errors import CatalogError, StorageError
from pipeline.schema import CATALOG


def make_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def load_uris(audio: str | Path) -> dict[str, str | None]:
    table = load_catalog(str(audio))
    assert table.schema == CATALOG
    ids = table["track_id"].to_pylist()
    assert ids == sorted(set(ids))
    return dict(zip(ids, table["uri"].to_pylist(), strict=True))


def test_a_folder_gives_its_audio_files_by_path(tmp_path: Path) -> None:
    make_files(tmp_path, "b/Sigur Rós — ( ).FLAC", "a/x.y.mp3", "c[1]*.wav", "cover.jpg", "notes.txt", "mp3")
    assert load_uris(tmp_path) == {
        "a/x.y.mp3": f"{tmp_path}/a/x.y.mp3",
        "b/Sigur Rós — ( ).FLAC": f"{tmp_path}/b/Sigur Rós — ( ).FLAC",
        "c[1]*.wav": f"{tmp_path}/c[1]*.wav",
    }


def test_what_the_file_system_knows_is_kept(tmp_path: Path) -> None:
    make_files(tmp_path, "x.mp3")
    row = load_catalog(str(tmp_path)).to_pylist()[0]
    assert row["size_bytes"] == 5
    assert row["modified_time"].timestamp() == pytest.approx((tmp_path / "x.mp3").stat().st_mtime, abs=1e-5)
    assert [row[name] for name in ("etag", "title", "artist", "album", "genre")] == [None] * 5


def test_an_id_stays_whatever_comes_beside_it(tmp_path: Path) -> None:
    make_files(tmp_path, "a/01.mp3", "b/02.mp3", "x.mp3")
    before = load_uris(tmp_path)
    make_files(tmp_path, "b/01.mp3", "a/01.flac", "x/01.mp3")
    assert load_uris(tmp_path).items() >= before.items()
    assert list(before) == ["a/01.mp3", "b/02.mp3", "x.mp3"]


def test_hidden_files_and_folders_are_left_out_but_not_a_hidden_root(tmp_path: Path) -> None:
    make_files(tmp_path, ".root/x.mp3", ".root/._x.mp3", ".root/.trash/y.mp3", ".root/a/.b/c/z.mp3")
    assert list(load_uris(tmp_path / ".root")) == ["x.mp3"]


@pytest.mark.parametrize("ending", catalog.AUDIO_ENDINGS.split())
def test_every_ending_counts_in_any_case(tmp_path: Path, ending: str) -> None:
    make_files(tmp_path, f"a.{ending}", f"b.{ending.upper()}", f"c.{ending}x", f"d{ending}")
    assert list(load_uris(tmp_path)) == [f"a.{ending}", f"b.{ending.upper()}"]


def test_a_folder_without_audio_says_what_was_looked_for(tmp_path: Path) -> None:
    make_files(tmp_path, "cover.jpg", "._x.mp3")
    with pytest.raises(CatalogError, match=r"none among 2 files.*\bflac\b.*\bmp3\b"):
        load_catalog(str(tmp_path))


def test_a_single_file_is_a_catalog_of_one(tmp_path: Path) -> None:
    make_files(tmp_path, "a b.mp3", "other.mp3", "cover.jpg")
    assert load_uris(tmp_path / "a b.mp3") == {"a b.mp3": f"{tmp_path}/a b.mp3"}
    with pytest.raises(CatalogError, match=r"cover\.jpg"):
        load_catalog(str(tmp_path / "cover.jpg"))


@pytest.mark.parametrize("audio", ["/no/such/folder", "/no/such.mp3", "/no/such.csv", "memory://no/bucket"])
def test_a_missing_root_is_one_clear_line(audio: str) -> None:
    with pytest.raises(StorageError, match=rf"^[^\n]*{audio}[^\n]*$"):
        load_catalog(audio)


def test_a_relative_folder_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "music/x.mp3", "music/list.csv")
    (tmp_path / "music" / "list.csv").write_text("uri\nx.mp3\n")
    monkeypatch.chdir(tmp_path)
    assert load_uris("music") == load_uris("music/list.csv") == {"x.mp3": f"{tmp_path}/music/x.mp3"}


def test_remote_uris_are_whole_urls() -> None:
    storage.write_file("memory://catalog/a/x.mp3", b"123")
    try:
        assert load_uris("memory://catalog") == {"a/x.mp3": "memory:///catalog/a/x.mp3"}
    finally:
        fsspec.filesystem("memory").rm("/catalog", recursive=True)


names = st.text(st.sampled_from("ab.é[]%?*#&=' \""), min_size=1, max_size=4).filter(lambda name: name[0] != ".")
paths = st.builds(
    lambda folders, name, ending: "/".join([*folders, f"{name}.{ending}"]),
    st.lists(st.sampled_from(["a", "b [c]", "100%"]), max_size=2),
    names,
    st.sampled_from(["mp3", "WAV"]),
)


@given(st.lists(paths, min_size=1, max_size=8, unique=True))
def test_ids_are_the_files_own_paths(files: list[str]) -> None:
    with TemporaryDirectory() as folder:
        make_files(Path(folder), *files)
        assert set(load_uris(folder)) == set(files)


def test_a_manifest_row_without_a_file_stays(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    make_files(tmp_path, "x.mp3")
    manifest.write_text("track_id,uri,title\nb,,Lost\na,x.mp3,\n")
    assert load_uris(manifest) == {"a": f"{tmp_path}/x.mp3", "b": None}
    assert load_catalog(str(manifest))["title"].to_pylist() == [None, "Lost"]


def test_a_manifest_without_ids_is_named_as_a_folder_is(tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\na/1.x.mp3\nb/2.mp3\n")
    assert list(load_uris(manifest)) == ["a/1.x.mp3", "b/2.mp3"]
    manifest.write_text("uri\nmusic/é/1.mp3\nmusic/b/1.mp3\n/elsewhere/1.mp3\ns3://bucket/1.mp3\n")
    assert set(load_uris(manifest)) == {"music/é/1.mp3", "music/b/1.mp3", "/elsewhere/1.mp3", "s3://bucket/1.mp3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("track_id,uri\na,x.mp3\n,y.mp3\n", r"row 2 .*y\.mp3"),
        ("uri,title\nx.mp3,X\n,Y\n", "row 2"),
        ("uri,title\n,X\nx.mp3,Y\n,Z\n", "row 1"),
        ("track_id,uri\na,x.mp3\nb,y.mp3\na,z.mp3\n", r"'a'.*row 1 .*/x\.mp3.*row 3 .*/z\.mp3"),
        ("uri\na/x.mp3\na/x.mp3\n", r"'a/x\.mp3'.*row 1 .*/x\.mp3.*row 2 .*/x\.mp3"),
        ("track_id,uri\na,1\nb,2\na,3\nb,4\n", r"'a'.*row 1 .*row 3 .*; 'b'.*row 2 .*row 4"),
        ("track_id,uri\n" + "".join(f"{n % 50},{n}\n" for n in range(100)), r"'9'.*and 40 more$"),
        ("track_id,title\na,A\n", "expected a column uri or url or path or file .* found track_id, title"),
        ("uri\n", "not one row"),
        ("", "found an empty file"),
    ],
)
def test_a_manifest_that_names_no_tracks_clearly_is_refused(tmp_path: Path, text: str, message: str) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(text)
    with pytest.raises(CatalogError, match=message) as raised:
        load_catalog(str(manifest))
    assert str(manifest) in str(raised.value)


@pytest.mark.parametrize("few_files", [0, 1000])
def test_facts_that_a_manifest_lacks_are_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_files: int
) -> None:
    monkeypatch.setattr("pipeline.catalog.manifest.FEW_FILES", few_files)
    make_files(tmp_path, "music/a/x.mp3", "music/y.mp3", "music/unnamed.mp3")
    manifest = tmp_path / "list.csv"
    manifest.write_text("track_id,uri\n1,music/a/x.mp3\n2,music/y.mp3\n3,music/gone.mp3\n4,\n5,music/y.mp3\n")
    folder = {row["uri"]: row for row in load_catalog(str(tmp_path / "music")).to_pylist()}
    for row in load_catalog(str(manifest)).to_pylist():
        known = folder.get(row["uri"], dict.fromkeys(CATALOG.names))
        for name in ("size_bytes", "etag", "modified_time"):
            assert row[name] == known[name], row


def test_facts_that_a_manifest_gives_are_kept(tmp_path: Path) -> None:
    make_files(tmp_path, "x.mp3")
    (tmp_path / "list.csv").write_text("uri,etag\nx.mp3,abc\n")
    row = load_catalog(str(tmp_path / "list.csv")).to_pylist()[0]
    assert (row["etag"], row["size_bytes"], row["modified_time"]) == ("abc", None, None)


def test_metadata_fills_what_the_files_do_not_say() -> None:
    files = pa.table({"track_id": ["b", "a"], "uri": ["/b.mp3", "/a.mp3"], "title": ["B", None]})
    metadata = pa.table({"track_id": ["c", "b", "a"], "title": ["c2", "b2", "a2"], "genre": ["C", None, "A"]})
    built = catalog.build_catalog(files, pa.array(["c", "a", "b", "a", "d"]), metadata)
    assert built.schema == CATALOG
    assert built.select(["track_id", "uri", "title", "genre"]).to_pydict() == {
        "track_id": ["a", "b", "c", "d"],
        "uri": ["/a.mp3", "/b.mp3", None, None],
        "title": ["a2", "B", "c2", None],
        "genre": ["A", None, "C", None],
    }


def test_companions_are_found_in_the_root_before_beside_it(tmp_path: Path) -> None:
    make_files(tmp_path, "root/x.mp3", "b.csv", "root/sub/b.csv")
    root = str(tmp_path / "root")
    listing = storage.list_files(root)
    assert catalog.find_companion(root, listing, ["a.csv", "sub/b.csv"]) == f"{root}/sub/b.csv"
    assert catalog.find_companion(root, listing, ["a.csv", "b.csv"]) == f"{tmp_path}/b.csv"
    assert catalog.find_companion(root, listing, ["a.csv"]) is None
    assert catalog.find_companion("memory://bucket", listing, ["a.csv"]) is None


def test_rows_at_hand_are_taken_as_a_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"sound")
    monkeypatch.chdir(tmp_path)
    rows = pa.table(
        {"Path": ["b.wav", str(tmp_path / "a.wav"), None], "Title": ["B", "", "C"], "other": [1, 2, 3]}
    )
    rows = rows.append_column("track_id", pa.array([2, 1, 3]))
    found = load_rows(rows).to_pylist()
    assert [row["track_id"] for row in found] == ["1", "2", "3"]
    assert [row["uri"] for row in found] == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), None]
    assert [row["title"] for row in found] == [None, "B", "C"]
    assert [row["size_bytes"] for row in found] == [5, 5, None]


def test_ids_of_rows_at_hand_are_their_uris_wherever_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "sub/a.wav")
    whole = str(tmp_path / "sub/a.wav")
    for folder in ("/", tmp_path, tmp_path / "sub"):
        monkeypatch.chdir(folder)
        assert load_rows(pa.table({"uri": [whole]}))["track_id"].to_pylist() == [whole]
    monkeypatch.chdir(tmp_path)
    found = load_rows(pa.table({"uri": ["./sub/a.wav"]})).to_pylist()
    assert [(row["track_id"], row["uri"]) for row in found] == [("sub/a.wav", whole)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pa.table({"name": ["a"]}), "expected a column uri or url or path or file in the table, found name"),
        (pa.table({"uri": pa.array([], pa.string())}), "expected tracks in the table, found not one row"),
        (pa.table({"uri": ["/a", "/b"], "track_id": ["x", "x"]}), "two rows of the table claim the track id 'x'"),
    ],
)
def test_rows_that_are_no_catalog_are_told_in_one_line(rows: pa.Table, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        load_rows(rows)
