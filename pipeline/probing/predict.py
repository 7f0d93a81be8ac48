"""Predict: a head applied to the published snapshot, track by track, once each.

What the table says already of a track's present content stays; what it says of content that changed or left goes
first. Then predictions are committed some thousand tracks at a time, so a run that is killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RESOLUTIONS
from pipeline.location import StoreLocation
from pipeline.probing.annotations import TRACK_TASKS
from pipeline.probing.decoding import Prediction, decode
from pipeline.probing.features import (
    Matrix,
    average_rows,
    copy_features,
    find_common_tracks,
    iterate_tracks,
    open_sources,
)
from pipeline.probing.heads import Head, apply_head
from pipeline.store.prediction_writer import PredictionWriter
from pipeline.store.predictions import PREDICTIONS
from pipeline.store.source import Source
from pipeline.store.withheld import read_withheld

TRACKS_PER_COMMIT = 2048
ROWS_PER_COMMIT = 500_000
MIXED_AT_ONCE = 32  # tracks whose features of several recipes are brought together


@dataclass(frozen=True)
class PredictReport:
    """What a run did.

    Args:
        head: Id of the head: the partition's name.
        predicted: Tracks that got predictions: new ones, and those whose content changed.
        unchanged: Tracks that had theirs.
        deleted: Tracks whose predictions left, because the store no longer has them.
        num_rows: Rows that were written.
        store_version: Version of ``tracks`` that was read.
        table_version: Version of ``predictions`` afterwards.
    """

    head: str
    predicted: int
    unchanged: int
    deleted: int
    num_rows: int
    store_version: int
    table_version: int


def predict(
    store: StoreLocation, head: Head, scratch: str | None = None, tracks_per_commit: int = TRACKS_PER_COMMIT
) -> PredictReport:
    """Bring a head's predictions up to date with the published snapshot.

    Args:
        store: The store.
        head: The head.
        scratch: Folder for copies of features where several recipes are mixed.
        tracks_per_commit: How many tracks are predicted between two commits.

    Raises:
        HeadError: The store's features are not those that the head was trained on.
        UsageError: The store has no such recipe or resolution.
        RunError: Another run of the head committed meanwhile.
        StorageError: The store cannot be read, or the table not be written.
    """
    spec = head.spec
    sources = open_sources(store, spec.resolution, spec.recipes)
    head.check_features([source.recipe for source in sources], sources[0].resolution)
    ledger = _leave_withheld_out(find_common_tracks(sources), store)
    present = dict(zip(*(ledger.column(name).to_pylist() for name in ("track_id", "content_hash")), strict=True))
    writer = PredictionWriter(store, head.head_id)
    held = writer.read_held()
    stale = [track_id for track_id, content in held.items() if present.get(track_id) != content]
    writer.remove(stale)
    kept = held.keys() - set(stale)
    wanted = ledger.filter(pa.array([track_id not in kept for track_id in present], pa.bool_()))
    num_predicted = num_rows = 0
    for batch in _gather(_predict_tracks(head, sources, wanted, scratch), tracks_per_commit):
        rows = build_rows(head, batch, present)
        writer.add(rows)
        num_predicted += len(batch)
        num_rows += rows.num_rows
    writer.vacuum()
    deleted = len([track_id for track_id in stale if track_id not in present])
    versions = (sources[0].store_version, int(writer.table.version()))
    return PredictReport(head.head_id, num_predicted, len(kept), deleted, num_rows, *versions)


def build_rows(head: Head, predictions: Sequence[tuple[str, Prediction]], contents: dict[str, str]) -> pa.Table:
    """Return rows of ``PREDICTIONS``.

    Args:
        head: Whose they are.
        predictions: Tracks and what it says of each.
        contents: The content hash of each.
    """
    spec = head.spec
    columns: dict[str, list[object]] = {name: [] for name in ("track_id", "label", "score", "start_s", "end_s")}
    for track_id, prediction in predictions:
        findings = list_findings(spec.labels, prediction) or [(None, None, None, None)]
        for name, values in zip(("label", "score", "start_s", "end_s"), zip(*findings, strict=True), strict=True):
            columns[name].extend(values)
        columns["track_id"].extend([track_id] * len(findings))
    num_rows = len(columns["track_id"])
    same = {
        "head": head.head_id,
        "task": spec.task,
        "recipe": "+".join(spec.recipes),
        "event_time": datetime.now(UTC),
    }
    arrays = {name: pa.array(values, PREDICTIONS.field(name).type) for name, values in columns.items()}
    arrays |= {
        name: pa.repeat(pa.scalar(value, PREDICTIONS.field(name).type), num_rows) for name, value in same.items()
    }
    arrays["content_hash"] = pa.array([contents[str(track_id)] for track_id in columns["track_id"]], pa.string())
    return pa.table([arrays[name] for name in PREDICTIONS.names], schema=PREDICTIONS)


def list_findings(
    labels: Sequence[str], prediction: Prediction
) -> list[tuple[str | None, float | None, float | None, float | None]]:
    """Return label, score, start and end of all that a prediction says; times are None for a whole track."""
    if prediction.scores:
        return [(label, score, None, None) for label, score in zip(labels, prediction.scores, strict=True)]
    if prediction.spans:
        scored = zip(prediction.spans, prediction.span_scores, strict=True)
        return [(label, score, start_s, end_s) for (start_s, end_s, label), score in scored]
    return [
        ("downbeat" if place == 1 else "beat", score, time_s, time_s)
        for (time_s, place), score in zip(prediction.beats, prediction.beat_scores, strict=True)
    ]


def _leave_withheld_out(ledger: pa.Table, store: StoreLocation) -> pa.Table:
    """Drop tracks that are taken down as of now: the snapshot may be older."""
    withheld = read_withheld(store)
    is_out = [
        track_id in withheld.ids or content in withheld.hashes
        for track_id, content in zip(
            *(ledger.column(name).to_pylist() for name in ("track_id", "content_hash")), strict=True
        )
    ]
    return ledger.filter(pc.invert(pa.array(is_out, pa.bool_())))


def _predict_tracks(
    head: Head, sources: Sequence[Source], wanted: pa.Table, scratch: str | None
) -> Iterator[tuple[str, Prediction]]:
    whole_tracks = head.spec.task in TRACK_TASKS
    for track_id, matrix, rate_hz in _read_tracks(sources, wanted, whole_tracks, scratch):
        yield track_id, decode(head.spec, apply_head(head, matrix, rate_hz), rate_hz)


def _read_tracks(
    sources: Sequence[Source], wanted: pa.Table, whole_tracks: bool, scratch: str | None
) -> Iterator[tuple[str, Matrix, float | None]]:
    """Stream tracks with their features, as probing has them."""
    rate_hz = None if whole_tracks else RESOLUTIONS[sources[0].resolution].frame_rate_hz
    if len(sources) == 1:
        for track_id, matrix in iterate_tracks(sources[0], wanted):
            yield track_id, average_rows(matrix) if whole_tracks else matrix, rate_hz
        return
    for start in range(0, wanted.num_rows, MIXED_AT_ONCE):
        features = copy_features(sources, wanted.slice(start, MIXED_AT_ONCE), whole_tracks, scratch)
        for number, track_id in enumerate(features.track_ids):
            yield track_id, features.read(number), rate_hz


def _gather(
    tracks: Iterator[tuple[str, Prediction]], tracks_per_commit: int
) -> Iterator[list[tuple[str, Prediction]]]:
    """Gather what goes into one commit."""
    batch: list[tuple[str, Prediction]] = []
    num_rows = 0
    for track_id, prediction in tracks:
        batch.append((track_id, prediction))
        num_rows += max(len(prediction.scores), len(prediction.spans), len(prediction.beats))
        if len(batch) >= tracks_per_commit or num_rows >= ROWS_PER_COMMIT:
            yield batch
            batch, num_rows = [], 0
    if batch:
        yield batch
