"""Tar and zip files whose members are tracks, written by Python's own modules and by hand."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import shards
from pipeline.catalog.load import load_catalog
from pipeline.catalog.members import read_files
from pipeline.decode.tracks import decode_tracks
from pipeline.errors import CatalogError
from pipeline.run.blocks import SHARD_TRACKS
from pipeline.run.plan import FAILURE_COLUMNS, LEDGER_COLUMNS, Plan, plan_tracks
from pipeline.schema import CATALOG, FAILURES, PLAN, TRACKS
from pipeline.storage import Options
from tests.corpus import encode_clip, load_music
from tests.fault_proxy import run_fault_proxy
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
    hashes = {track_id: found[0] for track_id, found in decode(before).items()}
    rows = [{**row, "content_hash": hashes[row["track_id"]], "resolutions": ["8hz"]} for row in before.to_pylist()]
    ledger = pa.Table.from_pylist(rows, schema=select_fields(TRACKS, LEDGER_COLUMNS))
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
    client = s3_server.open()
    for path in (tmp_path / "clips.tar", tmp_path / "clips.zip"):
        client.put_file(str(path), f"{AUDIO_BUCKET}/sets/{path.name}")
    for name, data in files.items():
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(data)
    expected = decode(load_catalog(str(tmp_path / "loose")))
    for shard in ("clips.tar", "clips.zip"):
        with run_fault_proxy(s3_server.url, tmp_path / f"{shard}.log") as proxy:
            options = s3_server.options(AUDIO, proxy.url)
            catalog = load_catalog(f"s3://{AUDIO_BUCKET}/sets/{shard}", options)
            num_listing = len(proxy.read_requests())
            found: dict[str, Any] = {}
            for start in range(0, catalog.num_rows, SHARD_TRACKS):
                found |= decode(catalog.slice(start, SHARD_TRACKS), options)
            num_reading = len(proxy.read_requests()) - num_listing
        assert found == expected
        assert num_reading == 64 // SHARD_TRACKS
        assert num_listing <= 6, "however many members a shard of up to 32 MiB has"
