"""Annotations and a catalog become labels, splits and what is left out."""

import pyarrow as pa
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.schema import CATALOG
from pipeline.training.labels import Labels, match_labels


def make_catalog(num_tracks: int) -> pa.Table:
    rows = [
        {"track_id": f"{number:02d}", "uri": f"/music/{number:02d}.wav", "artist": f"artist {number // 2}"}
        for number in range(num_tracks)
    ]
    return pa.Table.from_pylist(rows, schema=CATALOG)


def test_tracks_are_found_by_id_or_by_file_and_others_told() -> None:
    splits = ("train", "valid", "test", "train")
    by_id = {f"{number:02d}": Annotation((f"tag {number % 2}",), split=splits[number]) for number in range(4)}
    by_uri = {f"/music/{name}.wav": said for name, said in by_id.items()}
    for by, tracks in (("track_id", by_id), ("uri", by_uri)):
        annotations = Annotations("tagging", by, {**tracks, "/else/9.wav": Annotation(("x",), split="test")})
        labels, catalog = match_labels(annotations, make_catalog(6), seed=0)
        assert labels.track_ids == tuple(catalog["track_id"].to_pylist()) == ("00", "01", "02", "03")
        assert labels.splits == splits
        assert labels.names == ("tag 0", "tag 1")
        assert torch.equal(torch.cat(labels.targets([1] * 4)), torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
        assert annotations.left_out == {"tracks that the catalog does not have": ["/else/9.wav"]}


def test_without_splits_no_artist_stands_in_two() -> None:
    tracks = {f"{number:02d}": Annotation((str(number % 3),)) for number in range(40)}
    labels, catalog = match_labels(Annotations("classification", tracks=tracks), make_catalog(40), seed=1)
    assert set(labels.splits) == {"train", "valid", "test"}
    homes: dict[str, set[str]] = {}
    for artist, split in zip(catalog["artist"].to_pylist(), labels.splits, strict=True):
        homes.setdefault(artist, set()).add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    again, _ = match_labels(Annotations("classification", tracks=tracks), make_catalog(40), seed=1)
    assert again.sha256 == labels.sha256
    other = {**tracks, "00": Annotation(("2",))}
    assert (
        match_labels(Annotations("classification", tracks=other), make_catalog(40), 1)[0].sha256 != labels.sha256
    )


def test_numbers_are_scaled_by_the_training_tracks() -> None:
    said = {"00": ("1", "train"), "01": ("3", "train"), "02": ("9", "valid"), "03": ("5", "test")}
    tracks = {name: Annotation((number,), split=split) for name, (number, split) in said.items()}
    labels, _ = match_labels(Annotations("regression", tracks=tracks), make_catalog(4), seed=0)
    assert torch.cat(labels.targets([1] * 4)).flatten().tolist() == [-1.0, 1.0, 7.0, 3.0]


def test_what_has_a_time_has_a_target_for_every_frame_and_counts_in_the_digest() -> None:
    def match(last_s: float) -> Labels:
        tracks = {
            f"{number:02d}": Annotation(beats=((0.1, 1), (last_s, 2)), split=("train", "valid", "test")[number])
            for number in range(3)
        }
        return match_labels(Annotations("beat", tracks=tracks), make_catalog(3), seed=0)[0]

    labels = match(0.5)
    assert (labels.resolution, labels.frame_rate_hz) == ("25hz", 25.0)
    targets = labels.targets([20, 5, 20])
    assert [tuple(rows.shape) for rows in targets] == [(20, 2), (5, 2), (20, 2)]
    assert targets[0][:, 0].nonzero().flatten().tolist() == [1, 2, 3, 11, 12, 13]
    assert targets[0][:, 1].nonzero().flatten().tolist() == [1, 2, 3]
    assert match(0.5).sha256 == labels.sha256 != match(0.6).sha256


def test_annotations_of_other_tracks_are_one_line() -> None:
    annotations = Annotations("classification", tracks={"zz": Annotation(("a",))}, source="labels.csv")
    with pytest.raises(UsageError, match=r"in labels\.csv, found none: they name 'zz'"):
        match_labels(annotations, make_catalog(4), seed=0)
