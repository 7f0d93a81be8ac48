"""Fetch and decode: rows of the plan become rows with a waveform, or rows that say why there is none."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalog.member_files import read_files
from pipeline.catalog.members import count_read_bytes
from pipeline.decode.audio import DecodedAudio, decode_audio
from pipeline.decode.known_content import is_known
from pipeline.errors import Reason, Stage, TrackError
from pipeline.schema import DECODED, FEATURE_LIST, LABELS, PLAN
from pipeline.storage import Options, classify_read_error

_MAX_READ_BYTES = 256 * 2**20  # compressed bytes held at once

_MAX_MESSAGE_CHARACTERS = 500
_SECRET_OPTION = re.compile("key|secret|token|password|credential|connection", re.IGNORECASE)


def decode_tracks(
    plan: pa.Table,
    audio_options: Options | None = None,
    max_duration_s: float = 7200.0,
    decode: Callable[[bytes, float], DecodedAudio] = decode_audio,
    known: NDArray[np.uint64] | None = None,
) -> Iterator[pa.Table]:
    """Read, hash and decode the audio of each row, in order.

    Files are read in bulk, some 256 MiB at a time. Once the bytes are hashed, ``wanted`` loses what the store
    holds of exactly this content; a row of which nothing is wanted then comes out without waveform and without
    error: looked at, unchanged. So does one whose content is ``known``, under whatever id. A file that would take
    the id of another one, with other content, fails. A row that fails gets stage, reason and message, and keeps
    its content hash where the bytes were read. Nothing is raised for a bad file.

    Args:
        plan: Rows of schema ``PLAN``.
        audio_options: Options of the file system that holds the audio.
        max_duration_s: Longer tracks fail.
        decode: Decodes one file: ``audio.decode_audio``, or as ``isolation`` does.
        known: From ``known_content.list_prefixes``: content that need not be decoded.

    Yields:
        Tables of schema ``DECODED``: one row with a waveform, or rows without.
    """
    plan = plan.select(PLAN.names).cast(PLAN)
    uris = plan["uri"].to_pylist()
    wanted, held, owners = (plan[name].to_pylist() for name in ("wanted", "held", "owner_uri"))
    for group in _group_rows(uris, plan["size_bytes"].to_pylist()):
        contents = _read_contents(uris[group.start : group.stop], audio_options)
        undecoded: list[dict[str, Any]] = []  # together they take little more than one of them alone
        for index in group:
            values = _decode_content(
                contents.popleft(), wanted[index], held[index], owners[index], max_duration_s, decode, known
            )
            if "error_message" in values:
                values["error_message"] = _tidy(values["error_message"], audio_options or {})
            if "waveform" in values:
                yield from _make_rows(plan.slice(index - len(undecoded), len(undecoded)), undecoded)
                undecoded = []
                yield _make_row(plan.slice(index, 1), values)
            else:
                undecoded.append(values)
        yield from _make_rows(plan.slice(group.stop - len(undecoded), len(undecoded)), undecoded)


def _group_rows(uris: Sequence[str | None], sizes_bytes: Sequence[int | None]) -> Iterator[range]:
    """Yield runs of rows that are of one scheme and small enough to be read at once."""
    start, total_bytes, scheme = 0, 0, None
    for index, (uri, size_bytes) in enumerate(zip(uris, count_read_bytes(uris, sizes_bytes), strict=True)):
        if uri is None:
            continue
        uri_scheme = uri.partition("://")[0] if "://" in uri else ""
        is_full = size_bytes > 0 and total_bytes + size_bytes > _MAX_READ_BYTES
        if scheme is not None and (is_full or uri_scheme != scheme):
            yield range(start, index)
            start, total_bytes = index, 0
        scheme = uri_scheme
        total_bytes += size_bytes
    if uris:
        yield range(start, len(uris))


def _read_contents(uris: Sequence[str | None], options: Options | None) -> deque[bytes | TrackError]:
    """Read files at once; a file that cannot be read becomes the error that its row will hold."""
    wanted = [uri for uri in uris if uri is not None]
    contents: Sequence[bytes | Exception]
    try:
        contents = read_files(wanted, options)
    except Exception as error:
        contents = [error] * len(wanted)
    remaining = deque(contents)
    result: deque[bytes | TrackError] = deque()
    for uri in uris:
        if uri is None:
            message = "the catalog names this track, but there is no audio for it"
            result.append(TrackError(Stage.CATALOG, Reason.OBJECT_MISSING, message))
            continue
        content = remaining.popleft()
        result.append(_explain_read_error(uri, content) if isinstance(content, Exception) else content)
    return result


def _explain_read_error(uri: str, error: Exception) -> TrackError:
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return TrackError(Stage.FETCH, Reason.OUT_OF_MEMORY, f"no memory left to read {uri} into")
    reason = classify_read_error(error)
    if reason is Reason.OBJECT_MISSING:
        return TrackError(Stage.FETCH, reason, f"expected a file at {uri}, found none ({detail})")
    if reason is Reason.PERMISSION_DENIED:
        return TrackError(Stage.FETCH, reason, f"reading {uri} was refused; check its permissions ({detail})")
    return TrackError(Stage.FETCH, reason, f"cannot read {uri} ({detail})")


def _decode_content(
    content: bytes | TrackError,
    wanted: Sequence[str],
    held: Sequence[str],
    owner_uri: str | None,
    max_duration_s: float,
    decode: Callable[[bytes, float], DecodedAudio],
    known: NDArray[np.uint64] | None,
) -> dict[str, Any]:
    """Return the columns that decoding adds to or replaces in a row."""
    values: dict[str, Any] = {}
    try:
        if isinstance(content, TrackError):
            raise content
        values["content_hash"] = hashlib.sha256(content).hexdigest()
        lacking = [name for name in wanted if f"{name}@{values['content_hash']}" not in held]
        if not lacking:
            return {**values, "wanted": []}
        if owner_uri is not None and not any(name.endswith(f"@{values['content_hash']}") for name in held):
            raise TrackError(
                Stage.CATALOG,
                Reason.ID_TAKEN,
                f"this id is that of {owner_uri} in the store, found another file with other content; give this "
                "catalog's ids a name with --catalog NAME (where the other prunes, it needs one too), or take the "
                "stored track down and --restore its id",
            )
        if known is not None and len(lacking) == len(wanted) and is_known(values["content_hash"], known):
            return {**values, "wanted": []}
        values["wanted"] = lacking
        decoded = vars(decode(content, max_duration_s))
        return {**values, **decoded, **vars(decoded["tags"])}
    except TrackError as error:
        failure = error
    except MemoryError:
        failure = TrackError(Stage.DECODE, Reason.OUT_OF_MEMORY, "no memory left to decode this track in")
    except Exception as error:  # a decoder's own bug must not take the other tracks along
        failure = TrackError(Stage.DECODE, Reason.UNREADABLE, f"{type(error).__name__}: {error}")
    return {
        **values,
        "stage": failure.stage,
        "error_type": failure.reason,
        "error_message": failure.message,
    }


def _tidy(message: str, options: Mapping[str, str]) -> str:
    """Return a message as one line of at most 500 characters, without credentials."""
    for name, value in options.items():
        if value and _SECRET_OPTION.search(name):
            message = message.replace(str(value), "***")
    message = re.sub(r"(?<=://)[^/\s@]*@", "***@", message)  # user and password
    message = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1?***", message)  # the signature of a presigned URL
    message = " ".join(message.split())
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        message = message[: _MAX_MESSAGE_CHARACTERS - 1] + "…"
    return message


def _make_row(row: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """Return a plan row with columns added and replaced, null where there is no value.

    What the catalog says of a track is not replaced by what its file says of itself.
    """
    columns = dict(zip(row.column_names, row.columns, strict=True))
    arrays = []
    for field in DECODED:
        name, known = field.name, columns.get(field.name)
        if known is not None and name in LABELS and known.null_count == 0:
            arrays.append(known)
        elif name == "waveform" and name in values:
            arrays.append(_to_list_array(values[name]))
        elif name in values:
            arrays.append(pa.array([values[name]], field.type))
        else:
            arrays.append(pa.nulls(1, field.type) if known is None else known)
    return pa.Table.from_arrays(arrays, schema=DECODED)


def _make_rows(rows: pa.Table, values: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """Yield plan rows without waveform, with columns added and replaced, as one table, where there are any."""
    if not rows.num_rows:
        return
    arrays = []
    for field in DECODED:
        old = rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        if any(field.name in each for each in values):
            pairs = zip(values, old.to_pylist(), strict=True)
            old = pa.array([each.get(field.name, value) for each, value in pairs], field.type)
        arrays.append(old)
    yield pa.Table.from_arrays(arrays, schema=DECODED)


def _to_list_array(waveform: NDArray[np.float32]) -> pa.ListArray:
    """Wrap a waveform as a list column of one row, without copying it."""
    offsets = pa.array([0, waveform.size], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(waveform), type=FEATURE_LIST)
