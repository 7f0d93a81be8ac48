"""Every kind of annotation file: a good one is read, a damaged one ends in one line, the unusable is told."""

import json
from pathlib import Path
from typing import Any

import jams
import numpy as np
import pytest

from pipeline.errors import FeatureStoreError, UsageError
from pipeline.probing.annotations import (
    Annotation,
    choose_main_label,
    fill_spans,
    normalise_key,
    order_spans,
)
from pipeline.probing.reading import read_annotations
from tests.pipeline.probing.cases import write_csv

CHORDS = ((0.0, 2.0, "C:maj"), (2.0, 4.5, "A:min7"), (4.5, 6.0, "N"))
SECTIONS = ((0.0, 10.0, "intro"), (10.0, 30.5, "verse"))
BEATS = ((0.5, 1), (1.0, 2), (1.5, 3))


def make_jams(path: Path, track_id: str | None = None) -> str:
    jam = jams.JAMS()
    jam.file_metadata.duration = 30.0
    if track_id is not None:
        jam.file_metadata.identifiers.update(track_id=track_id)
    rows: dict[str, list[tuple[float, float, Any]]] = {
        "beat": [(time_s, 0.0, place) for time_s, place in BEATS],
        "chord": [(start_s, end_s - start_s, label) for start_s, end_s, label in CHORDS],
        "segment_open": [(start_s, end_s - start_s, label) for start_s, end_s, label in SECTIONS],
        "key_mode": [(0.0, 30.0, "Eb:minor")],
        "tag_open": [(0.0, 30.0, "piano"), (0.0, 30.0, "été, soir")],
        "tempo": [(0.0, 30.0, 120.5)],
    }
    for namespace, observations in rows.items():
        annotation = jams.Annotation(namespace=namespace, duration=30.0)
        for time_s, duration_s, value in observations:
            annotation.append(time=time_s, duration=duration_s, value=value, confidence=1.0)
        jam.annotations.append(annotation)
    jam.save(str(path))
    return str(path)


WANTED = {
    "beat": Annotation(beats=BEATS),
    "chord": Annotation(spans=CHORDS),
    "structure": Annotation(spans=SECTIONS),
    "key": Annotation(spans=((0.0, 30.0, "D# minor"),)),
    "tagging": Annotation(("piano", "été, soir")),
    "regression": Annotation(("120.5",)),
}


@pytest.mark.parametrize("task", WANTED)
def test_jams_answer_every_task(task: str, tmp_path: Path) -> None:
    found = read_annotations(make_jams(tmp_path / "one.jams"), task)
    assert (found.by, found.tracks, found.left_out) == ("track_id", {"one": WANTED[task]}, {})


def test_a_folder_of_jams_tells_of_the_damaged_one(tmp_path: Path) -> None:
    make_jams(tmp_path / "one.jams")
    make_jams(tmp_path / "two.jams", "the second, é")
    (tmp_path / "three.jams").write_text('{"annotations": [')
    (tmp_path / "four.jams").write_text(json.dumps({"annotations": [], "file_metadata": {}}))
    found = read_annotations(str(tmp_path), "chord")
    assert found.tracks == dict.fromkeys(("one", "the second, é"), WANTED["chord"])
    assert sorted(name for names in found.left_out.values() for name in names) == ["four.jams", "three.jams"]


def test_text_files_are_read_as_data_sets_write_them(tmp_path: Path) -> None:
    isophonics = {
        "chord": "0.0 2.0 C:maj\n2.0\t4.5\tA:min7\n4.500 6.000 N\n",
        "key": "0.000\t12.5\tSilence\n12.5\t30.0\tKey\tEb:minor\n",
    }
    harmonix = {"structure": "0.0 intro\n10.0 verse\n30.5 end\n", "beat": "0.5\t1\t1\n1.0\t2\t1\n1.5\t3\t1\n"}
    for task, text in (isophonics | harmonix).items():
        folder = tmp_path / task
        folder.mkdir()
        (folder / "0001_song.txt").write_text(text)
        found = read_annotations(str(folder), task)
        wanted = Annotation(spans=((12.5, 30.0, "D# minor"),)) if task == "key" else WANTED[task]
        assert found.tracks == {"0001_song": wanted}, task


def test_magnatagatune_is_known_by_its_columns(tmp_path: Path) -> None:
    lines = [
        '"clip_id"\t"piano"\t"no voice"\t"mp3_path"',
        '"2"\t"1"\t"0"\t"f/a-1.mp3"',
        '"6"\t"0"\t"1"\t"c/b.mp3"',
    ]
    (tmp_path / "annotations_final.csv").write_text("\n".join([*lines, '"7"\t"0"\t"0"\t"0/c.mp3"']) + "\n")
    found = read_annotations(str(tmp_path / "annotations_final.csv"), "tagging")
    assert found.tracks == {
        "f/a-1.mp3": Annotation(("piano",), split="test"),
        "c/b.mp3": Annotation(("no voice",), split="valid"),
        "0/c.mp3": Annotation((), split="train"),
    }


def write_cals(folder: Path) -> None:
    folder.mkdir()
    for split, ids in (("train", ["TRA", "TRB"]), ("valid", ["TRC"]), ("test", ["TRD"])):
        np.save(folder / f"{split}_ids.npy", np.array(ids))
        np.save(folder / f"{split}_binaries.npy", np.eye(2)[: len(ids)])
    np.save(folder / "cals_tags.npy", np.array(["rock", "pop"]))


def test_cals_splits_name_tags_and_splits(tmp_path: Path) -> None:
    write_cals(tmp_path / "splits")
    found = read_annotations(str(tmp_path / "splits"), "tagging")
    assert found.tracks == {
        "TRA": Annotation(("rock",), split="train"),
        "TRB": Annotation(("pop",), split="train"),
        "TRC": Annotation(("rock",), split="valid"),
        "TRD": Annotation(("rock",), split="test"),
    }
    (tmp_path / "splits/cals_tags.npy").unlink()
    assert read_annotations(str(tmp_path / "splits"), "tagging").tracks["TRB"].labels == ("tag 1",)
    np.save(tmp_path / "splits/valid_binaries.npy", np.eye(2))
    with pytest.raises(UsageError, match="a row of tags for each of the 1 tracks"):
        read_annotations(str(tmp_path / "splits"), "tagging")
    (tmp_path / "splits/valid_binaries.npy").write_bytes(b"no array")
    with pytest.raises(UsageError, match=r"expected a NumPy array in .*valid_binaries\.npy"):
        read_annotations(str(tmp_path / "splits"), "tagging")


def make_beatles(folder: Path) -> str:
    """Lay out two tracks of the Beatles as mirdata's index has them; the second one's files are missing."""
    folder.mkdir()
    texts = {
        "chords": "0.0 2.0 C:maj\n2.0 4.5 A:min7\n4.5 6.0 N\n",
        "sections": "0.0\t10.0\t0\tintro\n10.0\t30.5\t0\tverse\n",
        "beat": "0.5 1\n1.0 2\n1.5 3\n",
        "keys": "0.0\t30.0\tKey\tEb:minor\n",
    }
    tracks: dict[str, Any] = {}
    for track_id in ("0111", "0112"):
        tracks[track_id] = {"audio": [f"{track_id}.wav", None]}
        for kind, text in texts.items():
            tracks[track_id][kind] = [f"{track_id}.{kind}", None]
            if track_id == "0111":
                (folder / f"{track_id}.{kind}").write_text(text)
    (folder / "beatles_index_1.2.json").write_text(json.dumps({"version": "1.2", "tracks": tracks}))
    return f"mirdata:beatles:{folder}"


@pytest.mark.parametrize("task", ["beat", "chord", "structure", "key"])
def test_mirdata_answers_as_the_files_do(task: str, tmp_path: Path) -> None:
    pytest.importorskip("mirdata", reason="mirdata is not installed: pip install '.[mirdata]'")
    found = read_annotations(make_beatles(tmp_path / "beatles"), task)
    assert found.tracks == {"0111": WANTED[task]}
    [(reason, names)] = found.left_out.items()
    assert names == ["0112"]
    assert "annotation" in reason


def test_genres_and_keys_of_mirdata(tmp_path: Path) -> None:
    pytest.importorskip("mirdata", reason="mirdata is not installed: pip install '.[mirdata]'")
    tracks: dict[str, Any] = {
        "rock.00001": {"audio": ["a.wav", None], "beats": ["a.txt", None], "tempo": ["b", None]}
    }
    (tmp_path / "gtzan_genre_index_1.0.json").write_text(json.dumps({"version": "1.0", "tracks": tracks}))
    (tmp_path / "a.txt").write_text("0.5 1\n1.0 2\n1.5 3\n")
    url = f"mirdata:gtzan_genre:{tmp_path}"
    assert read_annotations(url, "classification").tracks == {"rock.00001": Annotation(("rock",))}
    assert read_annotations(url, "beat").tracks == {"rock.00001": WANTED["beat"]}
    with pytest.raises(UsageError, match=r"task chord \(chords\)"):
        read_annotations(url, "chord")


def test_tables_in_the_contracts_form(tmp_path: Path) -> None:
    names = ("track_id", "start_s", "end_s", "label", "split")
    rows: list[tuple[Any, ...]] = [("a, b", *span, "Train") for span in CHORDS] * 2
    rows += [
        ("c", 0, 1, "H:maj", "test"),
        ("c", 2, 1, "C", "test"),
        ("c", "x", 1, "C", "test"),
        ("c", 5, 6, "C", "test"),
    ]
    found = read_annotations(write_csv(tmp_path / "chords.csv", names, rows), "chord")
    assert found.tracks == {
        "a, b": Annotation(spans=CHORDS, split="train"),
        "c": Annotation(spans=((5.0, 6.0, "C"),), split="test"),
    }
    assert {reason: len(rows) for reason, rows in found.left_out.items()} == {
        "rows whose label is none for chord": 1,
        "rows whose times are no span": 2,
    }
    rows = [("file:///a.mp3", 0.5, 1), ("file:///a.mp3", 1.0, 2.0), ("file:///a.mp3", 1.5, "3"), ("b", "nan", 1)]
    found = read_annotations(write_csv(tmp_path / "beats.csv", ("uri", "time_s", "beat"), rows), "beat")
    assert (found.by, found.tracks) == ("uri", {"file:///a.mp3": Annotation(beats=BEATS)})
    assert found.left_out == {"rows without a time": ["row 4"]}
    beside = [("sub/a.mp3", 0.5, 1), ("../b.mp3", 0.5, 1), ("/c.mp3", 0.5, 1), ("~/d.mp3", 0.5, 1)]
    found = read_annotations(write_csv(tmp_path / "beside.csv", ("uri", "time_s", "beat"), beside), "beat")
    files = [tmp_path / "sub/a.mp3", tmp_path.parent / "b.mp3", Path("/c.mp3"), Path.home() / "d.mp3"]
    assert list(found.tracks) == [str(file) for file in files]
    url = write_csv(tmp_path / "keys.csv", ("track_id", "label"), [("a", "Eb:min"), ("b", "dorian")])
    assert read_annotations(url, "key").tracks == {"a": Annotation(("D# minor",))}


def test_labels_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "x"), ("c", "NaN"), ("", "x")]
    found = read_annotations(write_csv(tmp_path / "labels.csv", ("track_id", "label"), rows), "classification")
    assert found.tracks == {"b": Annotation(("x",))}
    assert found.left_out == {
        "rows without a track_id": ["row 6"],
        "tracks with several different labels": ["a"],
        "labels that are none for classification (NaN)": ["c"],
    }
    rows = [("a", "1.0"), ("a", "1"), ("b", "inf"), ("c", "seven")]
    found = read_annotations(write_csv(tmp_path / "labels.csv", ("track_id", "label"), rows), "regression")
    assert [annotation.number for annotation in found.tracks.values()] == [1.0]


@pytest.mark.parametrize(
    ("name", "data", "task"),
    [
        ("a.jams", b"{", "beat"),
        ("a.jams", b"[]", "beat"),
        ("a.jams", b"\xff\xfe", "chord"),
        ("a.csv", b"", "classification"),
        ("a.csv", b"track_id,label\na,b,c\n", "classification"),
        ("a.csv", b"track_id,time_s\na,1\n", "beat"),
        ("a.csv", b"track_id,label\n\xff,b\n", "tagging"),
        ("a.bin", b"\0\1\2", "chord"),
        ("folder/a.lab", b"0.0 x\n", "chord"),
        ("folder/a.txt", b"beat one\n", "beat"),
        ("folder/readme.md", b"nothing", "beat"),
    ],
)
def test_what_is_damaged_ends_in_one_line(name: str, data: bytes, task: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    url = str(path.parent if "/" in name else path)
    with pytest.raises(FeatureStoreError) as caught:
        read_annotations(url, task)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[
            ("C", "C major"),
            ("c# minor", "C# minor"),
            ("Db:maj", "C# major"),
            ("Am", "A minor"),
            ("AM", "A major"),
        ],
        *[
            ("B minor", "B minor"),
            ("Bb", "A# major"),
            ("bbm", "A# minor"),
            ("Cb major", "B major"),
            ("G:min", "G minor"),
        ],
        *[("X", None), ("H major", None), ("C dorian", None), ("", None)],
    ],
)
def test_keys_have_many_spellings(text: str, wanted: str | None) -> None:
    assert normalise_key(text) == wanted


def test_spans_are_put_in_order() -> None:
    spans = order_spans([(2.0, 5.0, "b"), (0.0, 3.0, "a"), (2.0, 5.0, "b"), (7.0, 8.0, "c")])
    assert spans == ((0.0, 2.0, "a"), (2.0, 5.0, "b"), (7.0, 8.0, "c"))
    assert fill_spans(spans, "-") == [*spans[:2], (5.0, 7.0, "-"), spans[2]]
    assert choose_main_label(Annotation(spans=(*spans, (9.0, 10.5, "c")))) == "b"
