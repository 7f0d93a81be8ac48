"""Rows as the stages hand them on, without audio and without a model: for planning, writing and committing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake import DeltaTable

from pipeline.config import RESOLUTIONS
from pipeline.location import StoreLocation
from pipeline.run.plan import FAILURE_COLUMNS, LEDGER_COLUMNS
from pipeline.schema import CATALOG, EMBEDDED, FAILURES, TABLES, TRACKS

EMBED_DIM = 3


def at_second(second: int | None) -> datetime | None:
    """Return a modification time; None stays None."""
    return None if second is None else datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def build_catalog(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return catalog rows; columns that a row leaves out are null."""
    return pa.Table.from_pylist(list(rows), schema=CATALOG)


def build_ledger(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows of one recipe's ledger, as the plan wants them."""
    return pa.Table.from_pylist(list(rows), schema=select_fields(TRACKS, LEDGER_COLUMNS))


def build_failures(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows of one recipe's failures, as the plan wants them."""
    return pa.Table.from_pylist(list(rows), schema=select_fields(FAILURES, FAILURE_COLUMNS))


def select_fields(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return a schema of some fields of another."""
    return pa.schema([schema.field(name) for name in names])


@dataclass(frozen=True)
class Audio:
    """What reading a track's file comes to.

    Args:
        content_hash: Hash of its bytes; None where they cannot be had.
        error: Stage and reason of the failure, if it fails.
    """

    content_hash: str | None = None
    error: tuple[str, str] | None = None


def fake_features(content_hash: str, wanted: str) -> npt.NDArray[np.float32]:
    """Return features that depend on content, recipe and resolution alone; shape (num_frames, EMBED_DIM)."""
    is_global = RESOLUTIONS[wanted.split("/")[1]].frame_rate_hz is None
    num_frames = 1 if is_global else 1 + zlib.crc32(content_hash.encode()) % 4
    random = np.random.default_rng(zlib.crc32(f"{content_hash} {wanted}".encode()))
    return random.standard_normal((num_frames, EMBED_DIM), dtype=np.float32)


def fake_embedding(planned: pa.Table, audio: Mapping[str, Audio]) -> pa.Table:
    """Turn planned rows into embedded ones, as decoding and the model would.

    Args:
        planned: Rows of ``schema.PLAN``.
        audio: What lies behind each track id.
    """
    rows = []
    for row in planned.to_pylist():
        found = audio[row["track_id"]]
        row["content_hash"] = found.content_hash
        row["wanted"] = [name for name in row["wanted"] if f"{name}@{found.content_hash}" not in row["held"]]
        row["features"] = []
        if found.error is not None:
            row["stage"], row["error_type"] = found.error
            row["error_message"] = "expected music, found something else"
        elif row["wanted"]:
            assert found.content_hash is not None
            row |= {"codec": "flac", "source_sample_rate_hz": 44100, "duration_s": 1.0}
            row["features"] = [pool(name, fake_features(found.content_hash, name)) for name in row["wanted"]]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EMBEDDED)


def pool(wanted: str, features: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return one item of ``schema.FEATURES``, pooled already."""
    rate_hz = RESOLUTIONS[wanted.split("/")[1]].frame_rate_hz
    return {
        "wanted": [wanted],
        "frame_rate_hz": rate_hz,
        "num_frames": len(features),
        "values": features.ravel(),
    }


def read_store(store: StoreLocation, table_name: str, version: int | None = None) -> list[dict[str, Any]]:
    """Return all rows of a table as delta-rs itself reads them, its columns in the schema's order."""
    table = DeltaTable(store.table_url(table_name), version=version)
    return list(pa.table(table.scan(TABLES[table_name].names)).to_pylist())
