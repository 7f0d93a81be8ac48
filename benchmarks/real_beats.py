"""Beats of real music: heads of other pieces, and heads of charts, on recordings whose beats are known.

Each piece is tested once, by a head that was fitted to other pieces, in folds; and by the head of the charts,
which has met no recording at all. Intervals are over pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.probe_features import RATE_HZ, Matrix
from benchmarks.probe_rows import OF_DBN
from benchmarks.real_music import Piece
from pipeline.location import StoreLocation
from pipeline.probing.annotations import Annotation, Annotations
from pipeline.probing.dbn import track_outputs
from pipeline.probing.decoding import Prediction, decode
from pipeline.probing.evaluation import predict_chance, score_track
from pipeline.probing.features import from_arrays
from pipeline.probing.heads import Head, apply_head
from pipeline.probing.metrics import average_scores
from pipeline.probing.probe import ProbeSettings, probe_features

NUM_FOLDS = 5
FOLDS, CHARTS = "heads of other pieces", "heads of charts"
CHANCE = "chance"
BEAT = "beat_f"


def measure_real(
    pieces: Sequence[Piece], features: Mapping[str, Sequence[Matrix]], chart_heads: Mapping[str, Head], dbn: bool
) -> list[dict[str, Any]]:
    """Measure beats on pieces.

    Args:
        pieces: Aligned for sure.
        features: Of the pieces, by the features' name.
        chart_heads: Heads that were fitted to charts, by the same names; may be empty.
        dbn: Whether a dynamic Bayesian network reads the outputs, too.

    Returns:
        A row for each features, and one for chance: ``features``, ``task``, and figures as a table's
        (``beat_f`` and, where asked for, ``dbn_beat_f``).
    """
    said = [annotate_piece(piece) for piece in pieces]
    rows: list[dict[str, Any]] = []
    for name, matrices in features.items():
        outputs, chance = answer_in_folds(pieces, said, name, matrices)
        if not rows:
            rows += make_rows(FOLDS, CHANCE, pieces, [_score(said, chance)])
        rows += make_rows(FOLDS, name, pieces, _score_outputs(said, outputs, dbn))
        if name in chart_heads:
            own = [(chart_heads[name], apply_head(chart_heads[name], matrix, RATE_HZ)) for matrix in matrices]
            rows += make_rows(CHARTS, name, pieces, _score_outputs(said, own, dbn))
    return rows


def annotate_piece(piece: Piece) -> Annotation:
    """Return a piece's beats; where its bars begin nobody says."""
    return Annotation(beats=tuple((time_s, 0) for time_s in piece.beats_s))


def name_folds(num_pieces: int, fold: int) -> list[str]:
    """Return the split of each piece in one fold: each is tested in one, and in the one before stops the fit."""
    kinds = {fold: "test", (fold + 1) % NUM_FOLDS: "valid"}
    return [kinds.get(place % NUM_FOLDS, "train") for place in range(num_pieces)]


def answer_in_folds(
    pieces: Sequence[Piece], said: Sequence[Annotation], name: str, matrices: Sequence[Matrix]
) -> tuple[list[tuple[Head, Matrix]], list[Prediction]]:
    """Fit a head a fold.

    Returns:
        For each piece the head that was not fitted to it and what it answers, and what is said without listening.
    """
    names = [piece.name for piece in pieces]
    features = from_arrays(names, matrices, RATE_HZ, name, "25hz")
    tracks = pa.table({"track_id": names, "artist": names, "album": names})
    outputs: dict[int, tuple[Head, Matrix]] = {}
    chance: dict[int, Prediction] = {}
    for fold in range(NUM_FOLDS):
        splits = name_folds(len(pieces), fold)
        given = {own: replace(one, split=split) for own, one, split in zip(names, said, splits, strict=True)}
        settings = ProbeSettings(StoreLocation(""), Annotations("beat", tracks=given), "25hz")
        head = probe_features(features, given, tracks, settings).head
        train = [one for one, split in zip(said, splits, strict=True) if split == "train"]
        for place in (place for place, split in enumerate(splits) if split == "test"):
            outputs[place] = (head, apply_head(head, matrices[place], RATE_HZ))
            length_s = len(matrices[place]) / RATE_HZ
            (chance[place],) = predict_chance("beat", head.spec.labels, train, [length_s])
    places = range(len(pieces))
    return [outputs[place] for place in places], [chance[place] for place in places]


def make_rows(
    task: str, name: str, pieces: Sequence[Piece], readings: Sequence[Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """Return a table's rows of what was measured on each piece: over all of them, and over those not heard.

    Args:
        task: ``FOLDS`` or ``CHARTS``.
        name: Of the features.
        pieces: That were measured.
        readings: Scores of each piece by metric, for each way in which the outputs were read.
    """
    scores = {metric: values for reading in readings for metric, values in reading.items()}
    rows = []
    not_heard = [place for place, piece in enumerate(pieces) if not piece.is_heard]
    for kind, chosen in (("all", range(len(pieces))), ("not heard", not_heard)):
        per_piece = [{metric: values[place] for metric, values in scores.items()} for place in chosen]
        figures = {metric: estimate.as_row() for metric, estimate in average_scores(per_piece).items()}
        rows.append({"task": task, "pieces": kind, "num_pieces": len(chosen), "features": name, **figures})
    return rows


def _score_outputs(
    said: Sequence[Annotation], outputs: Sequence[tuple[Head, npt.NDArray[np.float32]]], dbn: bool
) -> list[dict[str, list[float]]]:
    readings = [_score(said, [decode(head.spec, values, RATE_HZ) for head, values in outputs])]
    if dbn:
        tracked = track_outputs([values for _, values in outputs], RATE_HZ)
        readings.append({OF_DBN + BEAT: _score(said, tracked)[BEAT]})
    return readings


def _score(said: Sequence[Annotation], predictions: Sequence[Prediction]) -> dict[str, list[float]]:
    scores = [
        score_track("beat", one, prediction.as_annotation(()))[BEAT]
        for one, prediction in zip(said, predictions, strict=True)
    ]
    return {BEAT: scores}
