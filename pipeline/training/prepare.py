"""A catalog to a corpus of log-mels: Ray Data fetches, decodes and transforms, the driver writes what comes in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from musicfm_model.log_mel import LogMel
from pipeline.decode.isolation import decode_audio_in_time
from pipeline.decode.tracks import decode_tracks
from pipeline.errors import RunError
from pipeline.run.cluster import quiet_ray, set_up, start_ray
from pipeline.schema import CATALOG, PLAN
from pipeline.storage import Options
from pipeline.training.corpus import HELD_OUT, TRACKS_FILE, TRAIN, CorpusWriter, compute_log_mel

TRACKS_PER_TASK = 4
DECODE_CPUS = 1
SOURCE_FILE = "source.json"


@dataclass
class CorpusReport:
    """What became of a catalog's tracks: planned = prepared + failed.

    Args:
        num_planned: Tracks of the catalogs.
        num_prepared: Tracks whose log-mels are in the corpus.
        failures: Of each other track its id, stage, error_type and error_message.
        is_reused: Whether the corpus was there already.
    """

    num_planned: int
    num_prepared: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    is_reused: bool = False


def split_catalog(catalog: pa.Table, held_out_share: float) -> tuple[pa.Table, pa.Table]:
    """Hold out a share of the artists (of the tracks, where they have none), the same ones at every call."""
    columns = (catalog.column(name).to_pylist() for name in ("artist", "track_id"))
    names = [artist or f"track {track_id}" for artist, track_id in zip(*columns, strict=True)]
    draws = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names]
    is_held_out = pa.array([draw < held_out_share for draw in draws], pa.bool_())
    return catalog.filter(pa.array([not held for held in is_held_out.to_pylist()])), catalog.filter(is_held_out)


def prepare_corpus(
    train: pa.Table, held_out: pa.Table, folder: Path, n_mels: int, options: Options | None = None
) -> CorpusReport:
    """Make the corpus of two catalogs, or find that it is there.

    Args:
        train: Rows of ``schema.CATALOG`` to train on.
        held_out: Rows to measure on.
        folder: Where the corpus goes: one that every node sees.
        n_mels: Bands.
        options: Of the audio's file system.

    Raises:
        RunError: Not one track could be decoded, or the folder cannot be written.
    """
    source = describe_source(train, held_out, n_mels)
    num_planned = train.num_rows + held_out.num_rows
    if (report := read_report(folder, source)) is not None:
        return report
    start_ray()
    report = CorpusReport(num_planned)
    try:
        (folder / SOURCE_FILE).unlink(missing_ok=True)
        writer = CorpusWriter(folder, n_mels)
        for catalog, part in ((train, TRAIN), (held_out, HELD_OUT)):
            for row in compute_rows(catalog, n_mels, options):
                add_row(writer, row, part, report)
        if not report.num_prepared:
            first = report.failures[0]["error_message"] if report.failures else "the catalog is empty"
            raise RunError(f"not one of {num_planned} tracks could be decoded; the first: {first}")
        writer.close()
        content = {"source": source, "num_planned": num_planned, "failures": report.failures}
        (folder / SOURCE_FILE).write_text(json.dumps(content))
    except OSError as error:
        raise RunError(f"cannot write the corpus to {folder}: {error}") from error
    return report


def add_row(writer: CorpusWriter, row: Mapping[str, Any], part: str, report: CorpusReport) -> None:
    """Put one track's log-mels into a corpus, or its failure on record."""
    if row["error_message"] is not None:
        names = ("track_id", "stage", "error_type", "error_message")
        report.failures.append({name: str(row[name]) for name in names})
        return
    log_mel = np.frombuffer(row["log_mel"], dtype="<f2").reshape(-1, row["n_mels"])
    writer.add(row["track_id"], log_mel, row["artist"] or row["track_id"], part)
    report.num_prepared += 1


def compute_rows(catalog: pa.Table, n_mels: int, options: Options | None) -> Iterator[dict[str, Any]]:
    """Yield each track's log-mels as bytes, or why there are none, in the catalog's order."""
    if not catalog.num_rows:
        return
    # To be decoded, a row wants something that no store holds.
    values = {"wanted": ["training"], "held": []}
    columns = [
        catalog[field.name] if field.name in CATALOG.names else [values.get(field.name)] * catalog.num_rows
        for field in PLAN
    ]
    plan = pa.table(columns, schema=PLAN)
    blocks = [plan.slice(start, TRACKS_PER_TASK) for start in range(0, plan.num_rows, TRACKS_PER_TASK)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        partial(transform_tracks, n_mels=n_mels, options=options),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DECODE_CPUS,
    )
    set_up(dataset)
    with quiet_ray():
        yield from dataset.iter_rows()


def transform_tracks(plan: pa.Table, n_mels: int, options: Options | None) -> Iterator[pa.Table]:
    """Decode rows of ``schema.PLAN``, and put log-mels in place of waveforms."""
    torch.set_num_threads(1)
    transform = LogMel(n_mels=n_mels)
    for decoded in decode_tracks(plan, options, decode=decode_audio_in_time):
        for index, row in enumerate(decoded.select(FACTS).to_pylist()):
            log_mel = None
            if row["error_message"] is None:
                waveform = decoded["waveform"][index].values.to_numpy().copy()
                log_mel = compute_log_mel(transform, torch.from_numpy(waveform)).numpy().tobytes()
            yield pa.Table.from_pylist([{**row, "log_mel": log_mel, "n_mels": n_mels}], schema=ROWS)


FACTS = ("track_id", "artist", "stage", "error_type", "error_message")
ROWS = pa.schema(
    [*((name, pa.string()) for name in FACTS), ("log_mel", pa.large_binary()), ("n_mels", pa.int64())]
)


def describe_source(train: pa.Table, held_out: pa.Table, n_mels: int) -> str:
    """Return a digest of what a corpus is made from: another one is made when it differs."""
    digest = hashlib.sha256(str(n_mels).encode())
    for catalog in (train, held_out):
        names = ("track_id", "uri", "size_bytes", "etag", "modified_time")
        digest.update(repr(catalog.select(names).to_pylist()).encode())
    return digest.hexdigest()


def read_report(folder: Path, source: str) -> CorpusReport | None:
    """Return the report of the corpus in a folder, None where it is of other tracks or not whole."""
    try:
        content = json.loads((folder / SOURCE_FILE).read_text())
        num_prepared = len(json.loads((folder / TRACKS_FILE).read_text())["tracks"])
        if content["source"] != source:
            return None
        return CorpusReport(content["num_planned"], num_prepared, content["failures"], is_reused=True)
    except (OSError, ValueError, KeyError):
        return None
