import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode import tracks as decode_module
from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.decode.known_content import is_known, list_prefixes
from pipeline.decode.tracks import decode_tracks
from pipeline.errors import Reason, Stage, TrackError
from pipeline.schema import DECODED, PLAN, SOURCE_FIELDS
from pipeline.storage import write_file
from tests.corpus import MUSIC, make_failures

CLIP = MUSIC / "desert.flac"
WANTED = ["recipe/global", "recipe/8hz"]
HASH = hashlib.sha256(CLIP.read_bytes()).hexdigest()


def make_plan(uris: Sequence[str | Path | None], **columns: Sequence[Any]) -> pa.Table:
    rows = [
        {
            "track_id": f"track {index}",
            "uri": None if uri is None else str(uri),
            "title": f"title {index}",
            "wanted": WANTED,
            "held": [],
            **{name: values[index] for name, values in columns.items()},
        }
        for index, uri in enumerate(uris)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def decode_to_rows(plan: pa.Table, **arguments: Any) -> list[dict[str, Any]]:
    return [row for table in decode_tracks(plan, **arguments) for row in table.to_pylist()]


def test_a_row_gets_its_waveform_and_keeps_what_it_had() -> None:
    plan = make_plan([CLIP], size_bytes=[CLIP.stat().st_size], etag=["abc"])
    (table,) = decode_tracks(plan)
    assert table.schema == DECODED
    row, expected = table.to_pylist()[0], decode_audio(CLIP.read_bytes())
    np.testing.assert_array_equal(table["waveform"][0].values.to_numpy(), expected.waveform)
    planned = {name: value for name, value in plan.to_pylist()[0].items() if value is not None}
    assert {name: row[name] for name in planned} == planned
    with av.open(str(CLIP)) as container:  # what the catalog does not say comes from the file's tags
        tags = {name.lower(): value for name, value in container.metadata.items()}
    assert (row["artist"], row["album"], row["genre"]) == (tags["artist"], tags["album"], tags["genre"])
    assert row["content_hash"] == HASH
    for field in SOURCE_FIELDS[1:]:
        assert row[field.name] == pa.scalar(getattr(expected, field.name), field.type).as_py()
    assert row["stage"] is row["error_type"] is row["error_message"] is None


def test_every_failure_is_a_row_with_its_reason(tmp_path: Path) -> None:
    expected = make_failures(tmp_path)
    rows = decode_to_rows(make_plan([tmp_path / name for name in expected]))
    assert [row["error_type"] for row in rows] == list(expected.values())
    for name, row in zip(expected, rows, strict=True):
        assert row["content_hash"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert row["stage"] == "decode"
        assert row["waveform"] is row["duration_s"] is None
        assert row["error_message"]


def test_rows_come_out_in_order_whatever_becomes_of_them(tmp_path: Path) -> None:
    strange = tmp_path / "why [live] * ?.flac"
    strange.write_bytes(CLIP.read_bytes())
    uris = [CLIP, None, tmp_path / "gone.mp3", strange, tmp_path, f"file://{CLIP}", "nonsense://a/b.mp3"]
    rows = decode_to_rows(make_plan(uris))
    assert [row["track_id"] for row in rows] == [f"track {index}" for index in range(7)]
    assert [(row["stage"], row["error_type"]) for row in rows] == [
        (None, None),
        ("catalog", "object_missing"),
        ("fetch", "object_missing"),
        (None, None),
        ("fetch", "object_missing"),
        (None, None),
        ("fetch", "fetch_failed"),
    ]
    assert rows[1]["error_message"] == "the catalog names this track, but there is no audio for it"
    assert "gone.mp3" in rows[2]["error_message"]
    assert [row["content_hash"] for row in rows] == [HASH, None, None, HASH, None, HASH, None]


def test_an_empty_file_is_fetched_whatever_the_listing_says(tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").write_bytes(b"")
    (tmp_path / "grown.flac").write_bytes(CLIP.read_bytes())
    rows = decode_to_rows(make_plan([tmp_path / "empty.mp3", tmp_path / "grown.flac"], size_bytes=[0, 0]))
    assert [row["error_type"] for row in rows] == ["empty_file", None]
    assert rows[0]["content_hash"] == hashlib.sha256(b"").hexdigest()


def test_what_the_store_holds_of_this_content_is_no_longer_wanted() -> None:
    held = [
        [f"{name}@{HASH}" for name in WANTED],
        [f"{WANTED[0]}@{HASH}", f"{WANTED[1]}@{'0' * 64}"],
        [f"{name}@{'0' * 64}" for name in WANTED],
    ]
    unchanged, partly, changed = decode_to_rows(make_plan([CLIP] * 3, held=held))
    assert unchanged["wanted"] == []
    assert unchanged["content_hash"] == HASH
    assert unchanged["waveform"] is unchanged["error_type"] is unchanged["codec"] is None
    assert partly["wanted"] == [WANTED[1]]
    assert changed["wanted"] == WANTED
    assert len(partly["waveform"]) == len(changed["waveform"]) == 240_000


def test_the_limit_on_the_length_is_passed_on() -> None:
    (row,) = decode_to_rows(make_plan([CLIP]), max_duration_s=5.0)
    assert row["error_type"] == "too_long"
    assert row["content_hash"] == HASH


def test_any_file_system_will_do() -> None:
    write_file("memory://bucket/desert.flac", CLIP.read_bytes())
    rows = decode_to_rows(make_plan(["memory://bucket/desert.flac", "memory://bucket/gone.flac"]))
    assert [row["error_type"] for row in rows] == [None, "object_missing"]


def test_an_empty_plan_gives_nothing() -> None:
    assert list(decode_tracks(PLAN.empty_table())) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (RuntimeError("the decoder\nhas a bug"), Reason.UNREADABLE),
        (TrackError(Stage.DECODE, Reason.SILENT, "silent"), Reason.SILENT),
    ],
)
def test_nothing_escapes_from_a_decoder(error: Exception, reason: Reason) -> None:
    def fail(data: bytes, max_duration_s: float) -> DecodedAudio:
        raise error

    (row,) = decode_to_rows(make_plan([CLIP]), decode=fail)
    assert row["error_type"] == reason
    assert row["content_hash"] == HASH
    assert "\n" not in row["error_message"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError("Access Denied"), Reason.PERMISSION_DENIED),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (TimeoutError("too slow"), Reason.FETCH_FAILED),
    ],
)
def test_a_read_that_fails_as_a_whole_fails_each_of_its_rows(
    error: Exception, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(uris: Sequence[str], options: object) -> None:
        raise error

    monkeypatch.setattr(decode_module, "read_files", fail)
    rows = decode_to_rows(make_plan([CLIP, None, CLIP]))
    assert [row["error_type"] for row in rows] == [reason, Reason.OBJECT_MISSING, reason]
    assert [row["stage"] for row in rows] == ["fetch", "catalog", "fetch"]


def test_messages_are_short_lines_without_credentials() -> None:
    options = {"key": "AKIA123", "secret": "s3cr3t", "endpoint_url": "http://localhost:8333"}
    message = (
        "first\nsecond AKIA123 s3cr3t at http://localhost:8333 via https://user:pass@host/a.mp3?X-Sig=abc "
        "but s3://bucket/what?.mp3 and a@b stay " + "x" * 600
    )
    tidy = decode_module._tidy(message, options)
    assert len(tidy) == 500
    assert tidy.startswith(
        "first second *** *** at http://localhost:8333 via https://***@host/a.mp3?*** "
        "but s3://bucket/what?.mp3 and a@b stay x"
    )


sizes = st.one_of(st.none(), st.integers(0, 300 * 2**20))
uris = st.one_of(st.none(), st.sampled_from(["s3://b/x", "gs://b/x", "/x"]))


def count_bytes(row: tuple[str | None, int | None]) -> int:
    uri, size_bytes = row
    if uri is None:
        return 0
    return 8 * 2**20 if size_bytes is None else size_bytes


@given(st.lists(st.tuples(uris, sizes), max_size=60))
def test_groups_cover_all_rows_within_the_bound(rows: list[tuple[str | None, int | None]]) -> None:
    groups = list(decode_module._group_rows([uri for uri, _ in rows], [size for _, size in rows]))
    assert [index for group in groups for index in group] == list(range(len(rows)))
    for group in groups:
        present = [rows[index] for index in group if rows[index][0] is not None]
        assert len({uri for uri, _ in present}) <= 1
        total_bytes = sum(count_bytes(row) for row in present)
        assert total_bytes <= 256 * 2**20 or len(present) == 1
    for before, after in itertools.pairwise(groups):  # no group ends without need
        first_uri, _ = rows[after.start]
        total_bytes = sum(count_bytes(rows[index]) for index in before) + count_bytes(rows[after.start])
        others = {rows[index][0] for index in before} - {None}
        assert first_uri is not None
        assert others != {first_uri} or total_bytes > 256 * 2**20


def test_waveforms_enter_arrow_without_a_copy() -> None:
    waveform = np.arange(5000, dtype=np.float32)
    array = decode_module._to_list_array(waveform)
    assert array.values.buffers()[1].address == waveform.ctypes.data
    assert array.to_pylist() == [waveform.tolist()]


def test_another_file_never_takes_a_stored_tracks_id() -> None:
    own = [f"{name}@{HASH}" for name in WANTED]
    other = [f"{name}@{'0' * 64}" for name in WANTED]
    owners = ["/music/a/01 Intro.mp3", "/music/a/01 Intro.mp3", None]
    taken, moved, changed = decode_to_rows(make_plan([CLIP] * 3, held=[other, own, other], owner_uri=owners))
    assert (taken["stage"], taken["error_type"]) == ("catalog", "id_taken")
    assert "that of /music/a/01 Intro.mp3" in taken["error_message"]
    assert "--catalog NAME" in taken["error_message"]
    assert (moved["stage"], moved["wanted"], moved["waveform"]) == (None, [], None)
    assert (changed["stage"], changed["wanted"]) == (None, WANTED)


def test_known_content_is_not_decoded_whatever_its_id() -> None:
    plan = make_plan([CLIP])
    for known, is_decoded in (([HASH, "f" * 64], False), (["f" * 64], True), ([], True)):
        (row,) = decode_to_rows(plan, known=list_prefixes(pa.array(known, pa.string())))
        assert row["stage"] is None
        assert row["content_hash"] == HASH
        assert (row["wanted"], row["waveform"] is not None) == (WANTED if is_decoded else [], is_decoded)


@given(st.lists(st.binary(max_size=3), max_size=30), st.binary(max_size=3))
def test_a_hash_is_known_when_it_is_among_those_listed(contents: list[bytes], content: bytes) -> None:
    hashes = [hashlib.sha256(each).hexdigest() for each in contents]
    known = list_prefixes(pa.array([*hashes, None, "no hash"], pa.string()))
    assert is_known(hashlib.sha256(content).hexdigest(), known) == (content in contents)


def test_a_files_tags_stand_where_the_catalog_says_nothing(tmp_path: Path) -> None:
    with av.open(CLIP) as source, av.open(tmp_path / "tagged.mka", "w") as target:
        target.metadata.update({"title": "Théme", "artist": "Björk", "genre": "Jazz"})
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    rows = decode_to_rows(
        make_plan([tmp_path / "tagged.mka"] * 2, title=["As the list has it", None], artist=[None, None])
    )
    names = ("title", "artist", "album", "genre")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("As the list has it", "Björk", None, "Jazz"),
        ("Théme", "Björk", None, "Jazz"),
    ]
