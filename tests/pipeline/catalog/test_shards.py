"""Tar and zip files whose members are tracks, written by Python's own modules and by hand."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import member_files, shards
from pipeline.catalog.load import load_catalog
from pipeline.catalog.member_files import read_files
from pipeline.catalog.members import group_by_chunk
from pipeline.decode.tracks import decode_tracks
from pipeline.errors import CatalogError
from pipeline.run.blocks import SHARD_TRACKS, cut_between_chunks, sort_by_chunk
from pipeline.run.plan import FAILURE_COLUMNS, LEDGER_COLUMNS, Plan, plan_tracks
from pipeline.schema import CATALOG, FAILURES, PLAN, TRACKS
from pipeline.storage import Options
from tests.corpus import encode_clip, load_music
from tests.fault_proxy import run_fault_proxy
from tests.hub_server import DATASET, run_hub_server
from tests.rows import select_fields
from tests.s3_server import AUDIO, AUDIO_BUCKET, S3Server

Write = Callable[[Path, dict[str, bytes]], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Five short clips in three formats, and two files that are no audio."""
    folder = tmp_path_factory.mktemp("music")
    samples = load_music(seconds=10.0, sample_rate=24_000)
    files = {}
    for number, name in enumerate(("a/1.wav", "a/2.flac", "b/3.ogg", "é ü/4.wav", "5.flac")):
        path = folder / name.replace("/", "-")
        encode_clip(path, samples[number * 40_000 : number * 40_000 + 30_000], 24_000)
        files[name] = path.read_bytes()
    return files | {"a/1.json": b"{}", "readme.txt": b"words"}


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_gnu_tar(path: Path, files: dict[str, bytes]) -> None:
    write_tar(path, files, tarfile.GNU_FORMAT)


def write_stored_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_deflated_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


class Pipe(io.RawIOBase):
    """A place to write to that cannot be gone back in: what is written follows its data, as with ``zip -``."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += bytes(data)
        return len(data)


def write_streamed_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(pipe.data)


def write_streamed_stored_zip(path: Path, files: dict[str, bytes]) -> None:
    write_streamed_zip(path, files, zipfile.ZIP_STORED)


WRITERS: list[Write] = [
    write_tar,
    write_gnu_tar,
    write_stored_zip,
    write_deflated_zip,
    write_streamed_zip,
    write_streamed_stored_zip,
]


def ending(write: Write) -> str:
    return "zip" if "zip" in write.__name__ else "tar"


def decode(
    catalog: pa.Table, options: Options | None = None
) -> dict[str, tuple[str | None, bytes | None, str | None]]:
    """Decode a catalog's tracks: content hash, samples and reason of the failure, by id."""
    plan = pa.Table.from_pylist([{**row, "wanted": ["r/8hz"], "held": []} for row in catalog.to_pylist()], PLAN)
    rows = pa.concat_tables(decode_tracks(plan, options))
    waveforms = [
        waveform.values.to_numpy().tobytes() if waveform.is_valid else None for waveform in rows["waveform"]
    ]
    names = ("track_id", "content_hash", "error_type")
    ids, hashes, reasons = (rows[name].to_pylist() for name in names)
    return dict(zip(ids, zip(hashes, waveforms, reasons, strict=True), strict=True))


@pytest.mark.parametrize("write", WRITERS)
def test_members_are_the_tracks_that_loose_files_are(
    write: Write, music: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in music.items():
        (tmp_path / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(data)
    shard = tmp_path / f"shard.{ending(write)}"
    write(shard, music)
    loose, packed = load_catalog(str(tmp_path / "loose")), load_catalog(str(shard))
    assert packed.schema == CATALOG
    assert packed["track_id"].to_pylist() == loose["track_id"].to_pylist()
    assert packed["size_bytes"].to_pylist() == loose["size_bytes"].to_pylist()
    assert None not in packed["etag"].to_pylist()
    found = decode(packed)
    assert found == decode(loose)
    assert all(samples and reason is None for _, samples, reason in found.values())


def test_a_folder_of_shards_is_one_catalog(music: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "set" / "part").mkdir(parents=True)
    write_tar(tmp_path / "set" / "part" / "1.tar", music)
    write_stored_zip(tmp_path / "set" / "2.ZIP", music)
    ids = load_catalog(str(tmp_path / "set"))["track_id"].to_pylist()
    audio = [name for name in music if name.rpartition(".")[2] in ("wav", "flac", "ogg")]
    assert ids == sorted(f"{shard}/{name}" for shard in ("part/1.tar", "2.ZIP") for name in audio)
    assert read_files(load_catalog(str(tmp_path / "set" / "2.ZIP"))["uri"].to_pylist()[:1]) == [music["5.flac"]]
    (tmp_path / "set" / "loose.wav").write_bytes(music["a/1.wav"])
    assert load_catalog(str(tmp_path / "set"))["track_id"].to_pylist() == ["loose.wav"]


contents = st.dictionaries(
    st.text("abc/é ", min_size=1, max_size=120).filter(lambda name: not name.startswith("/")).map("{}.wav".format),
    st.binary(max_size=3000),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(contents, st.sampled_from(WRITERS), st.randoms(use_true_random=False))
def test_members_read_back_in_any_order(files: dict[str, bytes], write: Write, random: object) -> None:
    fs = fsspec.filesystem("memory")
    path = Path(f"/tmp/shard-{id(files)}.{ending(write)}")
    write(path, files)
    try:
        fs.pipe_file(f"/set/{path.name}", path.read_bytes())
    finally:
        path.unlink()
    url = f"memory://set/{path.name}"
    index = shards.index_zip if ending(write) == "zip" else shards.index_tar
    rows = list(index(url, fs.size(f"/set/{path.name}")))
    random.shuffle(rows)  # type: ignore[attr-defined]
    read = read_files([row["uri"] for row in rows])
    named = {row["uri"].partition("&member=")[2]: data for row, data in zip(rows, read, strict=True)}
    assert named == files


class CountedReads:
    """Counts the ranges that are asked of a file system."""

    def __init__(self, fs: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        inner = fs.cat_ranges

        def count(paths: list[str], *others: object, **named: object) -> object:
            self.number += len(paths)
            return inner(paths, *others, **named)

        monkeypatch.setattr(fs, "cat_ranges", count)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/set", recursive=True)


def test_members_that_lie_together_are_one_request(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {f"{number:03d}.wav": bytes([number]) * 5000 for number in range(64)}
    write_tar(tmp_path / "s.tar", files)
    memory.pipe_file("/set/s.tar", (tmp_path / "s.tar").read_bytes())
    uris = load_catalog("memory://set/s.tar")["uri"].to_pylist()
    reads = CountedReads(memory, monkeypatch)
    assert read_files([*uris[::2], *uris[1::2]]) == [*list(files.values())[::2], *list(files.values())[1::2]]
    assert reads.number == 1


def test_a_shard_is_looked_through_once(
    music: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "s.tar", music)
    first = load_catalog(str(tmp_path / "s.tar"))
    with monkeypatch.context() as patch:
        patch.delattr(shards, "index_tar")
        assert load_catalog(str(tmp_path / "s.tar")).equals(first)
    write_tar(tmp_path / "s.tar", dict(list(music.items())[:2]))
    assert load_catalog(str(tmp_path / "s.tar")).num_rows == 2


def plan_again(before: pa.Table, now: pa.Table) -> Plan:
    """Plan a catalog against a store that has all of an earlier one."""
    return plan_against(enter_in_ledger(before), now)


def enter_in_ledger(catalog: pa.Table) -> pa.Table:
    hashes = {track_id: found[0] for track_id, found in decode(catalog).items()}
    rows = [
        {**row, "content_hash": hashes[row["track_id"]], "resolutions": ["8hz"]} for row in catalog.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=select_fields(TRACKS, LEDGER_COLUMNS))


def plan_against(ledger: pa.Table, now: pa.Table) -> Plan:
    failures = select_fields(FAILURES, FAILURE_COLUMNS).empty_table()
    return plan_tracks(now, {"r": ledger}, {"r": failures}, ["8hz"])


@pytest.mark.parametrize("write", [write_tar, write_stored_zip])
def test_of_a_repacked_shard_only_what_changed_is_looked_at(
    write: Write, music: dict[str, bytes], tmp_path: Path
) -> None:
    shard = tmp_path / f"s.{ending(write)}"
    write(shard, music)
    before = load_catalog(str(shard))
    changed = {"0.txt": b"x" * 7000, **music, "5.flac": music["a/2.flac"]}  # all move, one has other content
    write(shard, changed)
    now = load_catalog(str(shard))
    assert set(before["uri"].to_pylist()).isdisjoint(now["uri"].to_pylist())
    plan = plan_again(before, now)
    assert plan.to_process["track_id"].to_pylist() == ["5.flac"]
    assert plan.to_process["owner_uri"].to_pylist() == [None]
    moved = [row for row in now.to_pylist() if row["track_id"] != "5.flac"]
    assert plan.relabeled.to_pylist() == moved, "the ledger learns where they lie now"


def test_a_damaged_member_costs_a_row_and_no_other(music: dict[str, bytes], tmp_path: Path) -> None:
    names = [name for name in music if name.rpartition(".")[2] in ("wav", "flac", "ogg")]
    write_tar(tmp_path / "s.tar", {name: music[name] for name in names})
    data = bytearray((tmp_path / "s.tar").read_bytes())
    with tarfile.open(tmp_path / "s.tar") as archive:
        entries = archive.getmembers()
    whole = decode(load_catalog(str(tmp_path / "s.tar")))
    data[entries[1].offset_data : entries[1].offset_data + 4000] = bytes(4000)  # within a member
    data[entries[2].offset : entries[2].offset + 1024] = b"\x55" * 1024  # its header
    del data[entries[4].offset_data + 1000 :]  # within the last one
    (tmp_path / "s.tar").write_bytes(data)
    found = decode(load_catalog(str(tmp_path / "s.tar")))
    assert [found[names[0]], found[names[3]]] == [whole[names[0]], whole[names[3]]]
    reasons = {track_id: reason for track_id, (_, _, reason) in found.items() if reason is not None}
    lost = f"damaged at byte {entries[2].offset}.mp3"
    assert reasons.keys() == {names[1], lost, names[4]}
    assert reasons[names[4]] == "fetch_failed"


def test_a_damaged_zip_member_is_found_out_by_its_checksum(music: dict[str, bytes], tmp_path: Path) -> None:
    for write in (write_stored_zip, write_deflated_zip):
        write(tmp_path / "s.zip", music)
        uris = dict(
            zip(
                *(load_catalog(str(tmp_path / "s.zip"))[name].to_pylist() for name in ("track_id", "uri")),
                strict=True,
            )
        )
        data = bytearray((tmp_path / "s.zip").read_bytes())
        with zipfile.ZipFile(tmp_path / "s.zip") as archive:
            place = archive.getinfo("a/2.flac").header_offset + 2000
        data[place] ^= 0xFF
        (tmp_path / "s.zip").write_bytes(data)
        (error, sound) = read_files([uris["a/2.flac"], uris["5.flac"]])
        assert isinstance(error, OSError)
        assert "a/2.flac" in str(error)
        assert sound == music["5.flac"]


@pytest.mark.parametrize("name", ["no.tar", "no.zip", "compressed.tar"])
def test_what_is_no_shard_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(20_000)
    (tmp_path / name).write_bytes(data)
    if name == "compressed.tar":
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("a.wav"))
    with pytest.raises(CatalogError, match=name):
        load_catalog(str(tmp_path / name))
    with pytest.raises(CatalogError, match="missing"):
        load_catalog(str(tmp_path / "missing.tar"))


def test_shards_on_s3_are_read_in_few_requests(
    s3_server: S3Server, music: dict[str, bytes], tmp_path: Path
) -> None:
    audio = [data for name, data in music.items() if name.rpartition(".")[2] in ("wav", "flac", "ogg")]
    files = {f"{number:03d}.audio.wav": audio[number % len(audio)] for number in range(64)}
    write_tar(tmp_path / "clips.tar", files)
    write_stored_zip(tmp_path / "clips.zip", files)
    rows: list[dict[str, Any] | None] = [{"bytes": data, "path": name} for name, data in files.items()]
    write_parquet(tmp_path / "clips.parquet", rows, rows_per_group=16)
    client = s3_server.open()
    num_requests = {"clips.tar": 2, "clips.zip": 2, "clips.parquet": 4}  # at most one for 16 tracks
    for shard in num_requests:
        client.put_file(str(tmp_path / shard), f"{AUDIO_BUCKET}/sets/{shard}")
    for name, data in files.items():
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(data)
    expected = decode(load_catalog(str(tmp_path / "loose")))
    for shard in num_requests:
        with run_fault_proxy(s3_server.url, tmp_path / f"{shard}.log") as proxy:
            options = s3_server.options(AUDIO, proxy.url)
            catalog = load_catalog(f"s3://{AUDIO_BUCKET}/sets/{shard}", options)
            num_listing = len(proxy.read_requests())
            found: dict[str, Any] = {}
            for start in range(0, catalog.num_rows, SHARD_TRACKS):
                found |= decode(catalog.slice(start, SHARD_TRACKS), options)
            num_reading = len(proxy.read_requests()) - num_listing
        assert found == expected
        assert num_reading == num_requests[shard]
        assert num_listing <= 8, "however many members a shard of up to 32 MiB has"


AUDIO_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any] | None], rows_per_group: int = 3, compression: str = "snappy"
) -> None:
    """Write a column of audio beside one of titles, as pyarrow does by itself."""
    columns = {"path": [str(number) for number in range(len(rows))], "audio": pa.array(rows, AUDIO_STRUCT)}
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group, compression=compression)


def list_audio(music: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": name} for name, data in music.items() if name[-3:] in ("wav", "lac", "ogg")]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_of_parquet_are_the_tracks_that_loose_files_are(
    compression: str, music: dict[str, bytes], tmp_path: Path
) -> None:
    rows = list_audio(music)
    for row in rows:
        (tmp_path / "loose" / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / row["path"]).write_bytes(row["bytes"])
    write_parquet(tmp_path / "s.parquet", rows, compression=compression)
    loose, packed = load_catalog(str(tmp_path / "loose")), load_catalog(str(tmp_path / "s.parquet"))
    assert packed.schema == CATALOG
    assert packed["track_id"].to_pylist() == loose["track_id"].to_pylist()
    assert None not in packed["etag"].to_pylist()
    assert decode(packed) == decode(loose)


contents_of_rows = st.lists(
    st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {
                "bytes": st.one_of(st.none(), st.binary(max_size=3000)),
                "path": st.one_of(st.none(), st.text("ab/.é", max_size=6)),
            }
        ),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(
    contents_of_rows,
    st.integers(1, 8),
    st.sampled_from(["none", "snappy", "gzip"]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_rows_of_parquet_read_back_in_any_order(
    rows: list[dict[str, Any] | None], rows_per_group: int, compression: str, use_dictionary: bool, random: object
) -> None:
    file = io.BytesIO()
    table = pa.table({"audio": pa.array(rows, AUDIO_STRUCT)})
    pq.write_table(table, file, rows_per_group, compression=compression, use_dictionary=use_dictionary)
    fsspec.filesystem("memory").pipe_file("/set/s.parquet", file.getvalue())
    listed = list(shards.index_parquet("memory://set/s.parquet"))
    expected = [(row or {}).get("bytes") for row in rows]
    assert len({row["path"] for row in listed}) == len(rows)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for place, found in zip(order, read_files([listed[place]["uri"] for place in order]), strict=True):
        if expected[place] is None:
            assert isinstance(found, FileNotFoundError)
        else:
            assert found == expected[place]


def test_a_row_group_is_read_once(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"{number * 37 % 128:03d}.wav" for number in range(128)]  # rows are in another order than names
    rows: list[dict[str, Any] | None] = [{"bytes": name.encode() * 9000, "path": name} for name in names]
    write_parquet(tmp_path / "s.parquet", rows, rows_per_group=50)
    memory.pipe_file("/set/s.parquet", (tmp_path / "s.parquet").read_bytes())
    catalog = load_catalog("memory://set/s.parquet")
    assert catalog["track_id"].to_pylist() == sorted(names)
    chunks = group_by_chunk(catalog["uri"])
    assert chunks is not None
    in_order, numbers = sort_by_chunk(catalog, chunks)
    blocks = list(cut_between_chunks(numbers, 32))
    assert sorted(map(len, blocks)) == [28, 50, 50]
    reads = CountedReads(memory, monkeypatch)
    for block in blocks:
        found = in_order.slice(block.start, len(block))
        expected = [name.encode() * 9000 for name in found["track_id"].to_pylist()]
        assert read_files(found["uri"].to_pylist()) == expected
    assert reads.number == 2 * len(blocks), "a row group and the footer"


def test_a_damaged_row_of_parquet_costs_a_row(music: dict[str, bytes], tmp_path: Path) -> None:
    rows = [
        {**row, "path": f"{copy}{row['path'].replace('/', '-')}"} for copy in "ab" for row in list_audio(music)
    ]
    path = tmp_path / "s.parquet"
    pq.write_table(
        pa.table({"audio": pa.array([*rows, None, {"bytes": None, "path": "elsewhere.wav"}], AUDIO_STRUCT)}),
        path,
        row_group_size=5,
        compression="none",
        use_dictionary=False,
    )
    whole = decode(load_catalog(str(path)))
    assert {name for name, (_, _, reason) in whole.items() if reason} == {"000010", "elsewhere.wav"}
    data = bytearray(path.read_bytes())
    within = data.find(rows[1]["bytes"])
    data[within : within + 4000] = bytes(4000)
    path.write_bytes(data)
    found = decode(load_catalog(str(path)))
    damaged = {name for name in whole if found[name] != whole[name]}
    assert damaged == {rows[1]["path"]}
    length_of_fourth = data.find(rows[3]["bytes"]) - 4
    data[length_of_fourth : length_of_fourth + 4] = b"\xff\xff\xff\x7f"  # what follows in its row group is lost
    path.write_bytes(data)
    found = decode(load_catalog(str(path)))
    assert {name for name in whole if found[name] != whole[name]} <= {row["path"] for row in rows[:5]}
    assert found[rows[3]["path"]][2] == "fetch_failed"


def test_of_a_rewritten_parquet_file_only_what_changed_is_embedded(
    music: dict[str, bytes], tmp_path: Path
) -> None:
    rows = list_audio(music)
    write_parquet(tmp_path / "s.parquet", rows)
    ledger = enter_in_ledger(load_catalog(str(tmp_path / "s.parquet")))
    assert plan_against(ledger, load_catalog(str(tmp_path / "s.parquet"))).num_unchanged == len(rows)
    write_parquet(tmp_path / "s.parquet", [rows[4], {**rows[1], "bytes": rows[0]["bytes"]}, rows[0], *rows[2:4]])
    plan = plan_against(ledger, load_catalog(str(tmp_path / "s.parquet")))
    assert plan.to_process["owner_uri"].null_count == len(rows), "each is the file that it was"
    looked_at = pa.concat_tables(decode_tracks(plan.to_process))
    is_new = dict(zip(looked_at["track_id"].to_pylist(), looked_at["wanted"].to_pylist(), strict=True))
    assert {track_id for track_id, wanted in is_new.items() if wanted} == {rows[1]["path"]}


def test_a_folder_of_parquet_files_is_one_catalog_of_those_with_audio(
    music: dict[str, bytes], tmp_path: Path
) -> None:
    rows = list_audio(music)
    write_parquet(tmp_path / "train-0.parquet", rows[:2])
    write_parquet(tmp_path / "train-1.parquet", rows[2:])
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "words.parquet")
    (tmp_path / "README.md").write_text("a data set")
    ids = load_catalog(str(tmp_path))["track_id"].to_pylist()
    names = [row["path"] for row in rows]
    assert ids == sorted(
        [f"train-0.parquet/{name}" for name in names[:2]] + [f"train-1.parquet/{name}" for name in names[2:]]
    )
    with pytest.raises(CatalogError, match="title"):
        load_catalog(str(tmp_path / "words.parquet"))


def test_images_are_no_audio(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "song": {"_type": "Audio", "sampling_rate": 44100}}
    schema = pa.schema(
        [("image", AUDIO_STRUCT), ("song", AUDIO_STRUCT)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": b"RIFF", "path": "a.bin"}]
    pq.write_table(
        pa.table({"image": [{"bytes": b"GIF", "path": "a.gif"}], "song": rows}, schema), tmp_path / "s.parquet"
    )
    catalog = load_catalog(str(tmp_path / "s.parquet"))
    assert catalog["track_id"].to_pylist() == ["a.bin"]
    assert read_files(catalog["uri"].to_pylist()) == [b"RIFF"]


def test_too_large_a_row_group_costs_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any] | None] = [{"bytes": bytes(4) * 5000, "path": "a"}, {"bytes": b"b", "path": "b"}]
    write_parquet(tmp_path / "s.parquet", rows, rows_per_group=1, compression="none")
    monkeypatch.setattr(member_files, "MAX_CHUNK_BYTES", 10_000)
    monkeypatch.setattr(member_files, "MAX_GAP_BYTES", 0)
    (error, sound) = read_files(load_catalog(str(tmp_path / "s.parquet"))["uri"].to_pylist())
    assert "fewer rows" in str(error)
    assert sound == b"b"


def test_a_data_set_of_hugging_face_is_a_folder_of_shards(music: dict[str, bytes], tmp_path: Path) -> None:
    rows = list_audio(music)
    write_parquet(tmp_path / "0.parquet", rows[:2])
    write_parquet(tmp_path / "1.parquet", rows[2:])
    files = {
        "README.md": b"songs",
        **{f"data/train-{n}.parquet": (tmp_path / f"{n}.parquet").read_bytes() for n in range(2)},
    }
    with run_hub_server(files) as (endpoint, requests):
        options = {"endpoint": endpoint}
        catalog = load_catalog(f"hf://datasets/{DATASET}", options)
        found = decode(catalog, options)
        num_first = len([request for request in requests if "/resolve/" in request])
        assert load_catalog(f"hf://datasets/{DATASET}", options).equals(catalog)
        num_later = len([request for request in requests if "/resolve/" in request]) - num_first
    assert num_later == 0, "what did not change is not read again"
    names = [f"data/train-{int(number >= 2)}.parquet/{row['path']}" for number, row in enumerate(rows)]
    assert catalog["track_id"].to_pylist() == sorted(names)
    write_parquet(tmp_path / "s.parquet", rows)
    local = decode(load_catalog(str(tmp_path / "s.parquet")))
    assert {name.partition(".parquet/")[2]: values for name, values in found.items()} == local
