"""Report: what a run did and what it left, as facts in JSON and as a page that opens without a network.

``reports/<run>.json`` holds the facts, ``reports/<run>.html`` draws them. They lie beside the tables, belong to
none of them, and nothing reads them back but the take-down of a track.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.report.health import draw_map, find_clusters, measure_drift, measure_health, summarise
from pipeline.report.page import build_page
from pipeline.report.plan_file import FOLDER, read_plan
from pipeline.report.predictions import describe_predictions
from pipeline.report.sample import Sample, sample_tracks, sample_vectors, summarise_failures
from pipeline.storage import join_url, list_files, read_file, remove_file, write_file

logger = logging.getLogger(__name__)

MAX_MAPPED = 2500
MAX_RECIPES = 4  # whose vectors are looked at
MIN_DRIFT_ROWS = 20
MIN_LABELLED_SHARE = 0.2  # of tracks, for a label to colour the map
SILENT_RMS = 1e-5


@dataclass(frozen=True)
class RunFacts:
    """What the driver knows of a run when it ends.

    Args:
        store: The store.
        run_id: The run.
        recipes: Layer of each recipe id.
        counts: ``books.RunCounts`` as a dict.
        version: Version of ``tracks`` at the end.
        base_version: Version of it that the run found.
        closed: Whether the run was published.
        seconds: Wall time so far.
        bytes_written: Bytes of the files that the run added.
        broke_off: Why the run ended early, where it did.
        throughput: ``watch.Throughput.read``.
        books: ``progress.WorkBook.read``, as the driver heard it last.
        phases: Seconds of each of the run's phases in turn, which together are its wall time so far.
        configuration: The effective configuration, secrets hidden.
    """

    store: StoreLocation
    run_id: str
    recipes: Mapping[str, int]
    counts: Mapping[str, Any]
    version: int
    base_version: int
    closed: bool
    seconds: float
    bytes_written: int = 0
    broke_off: str | None = None
    throughput: Mapping[str, Any] = field(default_factory=dict)
    books: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    configuration: Mapping[str, object] = field(default_factory=dict)


def publish_report(run: RunFacts) -> str | None:
    """Write a run's report into the store; a report that fails is a warning, never the run's failure.

    A run that changed nothing reads nothing of the catalog for it: its report is counts and configuration, and
    what still fails.

    Args:
        run: What is known of the run.

    Returns:
        URL of the page, or None where there is none.
    """
    try:
        facts = gather_facts(run)
        folder = run.store.table_url(FOLDER)
        data = json.dumps(facts, allow_nan=False, default=float).encode()
        write_file(join_url(folder, f"{run.run_id}.json"), data, run.store.options)
        page = join_url(folder, f"{run.run_id}.html")
        write_file(page, build_page(facts).encode("utf-8", "replace"), run.store.options)
    except Exception as error:  # whatever it is: the run's work is done and committed
        logger.warning("no report of run %s: %s: %s", run.run_id, type(error).__name__, error)
        return None
    return page


def gather_facts(run: RunFacts) -> dict[str, Any]:
    """Collect all that the report tells, JSON-ready.

    Raises:
        StorageError: The store cannot be read.
    """
    stage_facts = run.books or {"placement": {}, "devices": {}}
    counts = dict(run.counts)
    facts: dict[str, Any] = {
        "run_id": run.run_id,
        "store": run.store.url,
        "written_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipes": dict(run.recipes),
        "store_version": run.version,
        "closed": run.closed,
        "broke_off": run.broke_off,
        "seconds": run.seconds,
        "bytes_written": run.bytes_written,
        "counts": counts,
        "configuration": dict(run.configuration),
        "phases": dict(run.phases),
        "throughput": dict(run.throughput),
        "placement": stage_facts["placement"],
        "devices": stage_facts["devices"],
        "stages": add_up_stages(stage_facts["placement"]),
        "failures": [],
        "plan": None,
        "distributions": None,
        "health": [],
        "map": None,
        "predictions": [],
    }
    if counts["failed"]:
        facts["failures"] = summarise_failures(run.store, list(run.recipes), run.run_id)
    has_worked = any(stage["num_tracks"] for stage in facts["stages"].values())
    if not (has_worked or counts["deleted"]):
        return facts
    facts["plan"] = compare_plan(run, facts["stages"])
    if not (counts["embedded"] or counts["deleted"]):
        return facts  # files that failed were tried again, and failed: the catalog is what it was
    for position, recipe in enumerate(list(run.recipes)[:MAX_RECIPES]):
        sample = sample_tracks(run.store, run.version, recipe)
        if position == 0 and sample.rows.num_rows:
            facts["distributions"] = describe_sample(sample)
        vectors, rows = sample_vectors(run.store, run.version, recipe)
        if len(vectors) < 2:
            continue
        facts["health"].append(
            {"recipe": recipe, "layer": run.recipes[recipe], **_describe_health(run, recipe, vectors, rows)}
        )
        if facts["map"] is None:
            facts["map"] = _describe_map(vectors, rows)
    facts["predictions"] = describe_predictions(run.store)
    return facts


def add_up_stages(placement: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add up what each stage did on all nodes."""
    names = ("num_tasks", "num_tracks", "seconds", "cpu_seconds", "audio_s", "num_windows", "bytes_read")
    stages = {}
    for stage, nodes in placement.items():
        stages[stage] = {name: sum(work[name] for work in nodes.values()) for name in names}
        written: Counter[str] = Counter()
        for work in nodes.values():
            written.update(work["bytes_written"])
        stages[stage]["bytes_written"] = dict(written)
    return stages


def compare_plan(run: RunFacts, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put what a plan of this run predicted, where one was made, beside what came of it."""
    none = {"num_tracks": 0, "audio_s": 0.0, "cpu_seconds": 0.0, "seconds": 0.0, "bytes_read": 0, "num_windows": 0}
    decode, embed, write = (stages.get(name, none) for name in ("decode", "embed", "write"))
    actual = {
        "num_tracks": decode["num_tracks"],
        "audio_s": decode["audio_s"],
        "bytes_read": decode["bytes_read"],
        "bytes_written": run.bytes_written,
        "decode_core_s": decode["cpu_seconds"],
        "model_s": embed["seconds"],
        "model_core_s": embed["cpu_seconds"],
        "write_core_s": write["cpu_seconds"],
        "seconds": run.seconds,
    }
    # A plan reads the store as it is; a run's first commit is its claim.
    return {"predicted": read_plan(run.store, list(run.recipes), run.base_version - 1), "actual": actual}


def describe_sample(sample: Sample) -> dict[str, Any]:
    """Describe how durations, rates, loudness and codecs are spread over a sample of the catalog."""
    rows = sample.rows
    rms = np.asarray(rows.column("rms").to_numpy(), np.float64)
    return {
        "num_sampled": rows.num_rows,
        "num_total": sample.num_total,
        "duration_s": summarise(rows.column("duration_s").to_numpy()),
        "loudness_dbfs": summarise(20 * np.log10(np.maximum(rms, SILENT_RMS))),
        "sample_rates_hz": _count(rows.column("source_sample_rate_hz")),
        "codecs": _count(rows.column("codec")),
        "num_channels": _count(rows.column("num_channels")),
        "num_clipped": _count_over(rows.column("clipped_share"), 1e-3),
        "num_half_silent": _count_over(rows.column("silent_share"), 0.5),
    }


def remove_reports_of(store: StoreLocation, track_ids: Sequence[str]) -> int:
    """Remove the reports that name any of some tracks, for their take-down.

    Args:
        store: The store.
        track_ids: Which tracks.

    Returns:
        How many pages went.

    Raises:
        StorageError: A report cannot be read or removed.
    """
    quoted = [json.dumps(track_id).encode() for track_id in track_ids]
    try:
        uris = list_files(store.table_url(FOLDER), store.options).column("uri").to_pylist()
    except StorageError:  # there are none
        return 0
    num_removed = 0
    for uri in uris:
        if uri.endswith(".json") and any(name in read_file(uri, store.options) for name in quoted):
            remove_file(uri.removesuffix(".json") + ".html", store.options)
            remove_file(uri, store.options)
            num_removed += 1
    return num_removed


def _describe_health(
    run: RunFacts, recipe: str, vectors: npt.NDArray[np.float32], rows: pa.Table
) -> dict[str, Any]:
    finite = np.isfinite(vectors).all(axis=1)
    clusters = find_clusters(vectors[finite])
    names = rows.filter(pa.array(finite)).select(["track_id", "title", "artist"]).to_pylist()
    clusters["clusters"] = [[names[row] for row in cluster] for cluster in clusters["clusters"]]
    return {**measure_health(vectors), "near_duplicates": clusters, "drift": _describe_drift(run, recipe)}


def _describe_drift(run: RunFacts, recipe: str) -> dict[str, Any] | None:
    """Compare this run's vectors with those that the store had before; None where either are too few."""
    now, _ = sample_vectors(run.store, run.version, recipe, run_id=run.run_id)
    if len(now) < MIN_DRIFT_ROWS:
        return None
    before, _ = sample_vectors(run.store, run.base_version, recipe)
    if len(before) < MIN_DRIFT_ROWS:
        return None
    return measure_drift(*(part[np.isfinite(part).all(axis=1)] for part in (now, before)))


def _describe_map(vectors: npt.NDArray[np.float32], rows: pa.Table) -> dict[str, Any]:
    chosen = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(MAX_MAPPED, len(chosen))).astype(int))]
    points, share = draw_map(vectors[chosen])
    rows = rows.take(pa.array(chosen))
    groups: dict[str, list[str | None]] = {name: rows.column(name).to_pylist() for name in ("genre", "artist")}
    colour = next((name for name, labels in groups.items() if _tells_apart(labels)), None)
    return {
        "share": share,
        "colour": colour,
        "points": [[round(float(value), 4) for value in point] for point in points],
        "groups": groups[colour] if colour else [None] * len(chosen),
        "titles": [
            " – ".join(part for part in (row["title"] or row["track_id"], row["artist"]) if part)
            for row in rows.select(["track_id", "title", "artist"]).to_pylist()
        ],
        "track_ids": rows.column("track_id").to_pylist(),
    }


def _tells_apart(labels: Sequence[str | None]) -> bool:
    named = [label for label in labels if label]
    return len(named) >= MIN_LABELLED_SHARE * len(labels) and 1 < len(set(named)) < max(3, 0.5 * len(labels))


def _count(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """Count values, most frequent first."""
    counts = Counter("unknown" if value is None else str(value) for value in column.to_pylist())
    return counts.most_common(8)


def _count_over(column: pa.ChunkedArray, limit: float) -> int:
    return int(pc.sum(pc.greater(column, limit)).as_py() or 0)
