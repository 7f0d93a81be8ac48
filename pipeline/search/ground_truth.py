"""Ground truth: what is known to be similar, from the files in which others publish it.

Each loader gives a ``GroundTruth``: the queries, and a way to look up what is relevant to one of them. Data sets
of tens of millions of pairs are looked up where they lie, never held.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import StorageError, UsageError
from pipeline.storage import Options, list_files, read_file, read_files

FILES_PER_READ = 1000


@dataclass(frozen=True)
class GroundTruth:
    """What is relevant to what.

    Args:
        query_ids: Track ids of all queries.
        find_relevant: Returns the grade, over 0, of each track that is relevant to a query.
        artists: Artist of each track, where the files tell.
    """

    query_ids: Sequence[str]
    find_relevant: Callable[[str], Mapping[str, float]]
    artists: Mapping[str, str] = field(default_factory=dict)


def read_pairs(url: str, options: Options | None = None) -> GroundTruth:
    """Read a table of pairs, Parquet or CSV: query_id, relevant_id and, if it is there, grade (else 1).

    Raises:
        UsageError: A column is missing, or holds what it should not.
        StorageError: The file cannot be read.
    """
    table = _read_table(url, ("query_id", "relevant_id"), options)
    grades = table.column("grade") if "grade" in table.column_names else pa.repeat(1.0, table.num_rows)
    try:
        table = pa.table({**{name: table.column(name) for name in ("query_id", "relevant_id")}, "grade": grades})
        table = table.cast(pa.schema({"query_id": pa.string(), "relevant_id": pa.string(), "grade": pa.float64()}))
    except pa.ArrowInvalid as error:
        raise UsageError(f"expected ids and numbers as grades in {url}: {error}") from error
    table = table.drop_null().sort_by("query_id").combine_chunks()
    counted = pc.value_counts(table.column("query_id"))  # in the order of first occurrence, so sorted
    query_ids = counted.field("values").to_pylist()
    stops = np.cumsum(counted.field("counts").to_numpy())
    first_rows = dict(zip(query_ids, [0, *stops[:-1].tolist()], strict=True)) if query_ids else {}
    num_rows = dict(zip(query_ids, counted.field("counts").to_pylist(), strict=True))

    def find_relevant(query_id: str) -> dict[str, float]:
        rows = table.slice(first_rows[query_id], num_rows[query_id])
        return dict(zip(rows.column("relevant_id").to_pylist(), rows.column("grade").to_pylist(), strict=True))

    return GroundTruth(query_ids, find_relevant)


def read_lastfm_folder(url: str, options: Options | None = None) -> GroundTruth:
    """Read similar tracks from the Last.fm dataset's JSON files, one a track (millionsongdataset.com/lastfm).

    The archives unpack to folders by the id's third to fifth letter; ``similars`` in a file holds pairs of track
    id and similarity.

    Args:
        url: Folder of the unpacked files, at any level.
        options: File system options.

    Raises:
        UsageError: There is no such file; when a query is looked up, its file is not what it should be.
        StorageError: The folder cannot be read.
    """
    uris = _list_lastfm_files(url, options)

    def find_relevant(query_id: str) -> dict[str, float]:
        track = _parse_lastfm_file(uris[query_id], read_file(uris[query_id], options))
        return {str(other): float(score) for other, score in track.get("similars", ())}

    return GroundTruth(list(uris), find_relevant)


def read_lastfm_database(path: str) -> GroundTruth:
    """Read similar tracks from the Last.fm dataset's ``lastfm_similars.db``.

    Its table ``similars_src`` has one row a track: ``tid``, and in ``target`` ids and similarities by turns,
    separated by commas.

    Args:
        path: The SQLite file, on this machine.

    Raises:
        UsageError: There is no such file, or it is another one; when a query is looked up, its row is broken.
    """
    if not os.path.isfile(path):
        raise UsageError(f"expected a SQLite file on this machine, found none at {path}; copy it here first")
    # Read-only: SQLite would otherwise make a file, or a journal beside it.
    connection = sqlite3.connect(f"file:{os.path.abspath(path)}?mode=ro", uri=True, check_same_thread=False)
    try:
        query_ids = [row[0] for row in connection.execute("SELECT DISTINCT tid FROM similars_src ORDER BY tid")]
    except sqlite3.Error as error:
        raise UsageError(f"expected the table similars_src with columns tid, target in {path}: {error}") from error

    def find_relevant(query_id: str) -> dict[str, float]:
        grades: dict[str, float] = {}
        for (target,) in connection.execute("SELECT target FROM similars_src WHERE tid = ?", (query_id,)):
            items = target.split(",") if target else []
            try:
                grades |= {items[i]: float(items[i + 1]) for i in range(0, len(items), 2)}
            except (ValueError, IndexError):
                raise UsageError(
                    f"expected ids and similarities by turns as target of {query_id} in {path}, "
                    f"found {target[:80]!r}"
                ) from None
        return grades

    return GroundTruth(query_ids, find_relevant)


def read_cliques(url: str, options: Options | None = None) -> GroundTruth:
    """Read cover songs from a SecondHandSongs list, such as ``shs_dataset_train.txt``.

    A line ``%works, title`` opens a clique of versions of one song, each on a line of its own,
    ``TID<SEP>AID<SEP>performance``; lines with ``#`` are comments (the file's own head says so). All others of its
    clique are relevant to a track.

    Raises:
        UsageError: A line is neither.
        StorageError: The file cannot be read.
    """
    cliques: list[list[str]] = []
    of_track: dict[str, list[list[str]]] = defaultdict(list)
    for number, line in enumerate(read_file(url, options).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("%"):
            cliques.append([])
            continue
        fields = line.split("<SEP>")
        if len(fields) != 3 or not cliques:
            raise UsageError(
                f"expected '%works, title' and then 'TID<SEP>AID<SEP>performance' in line {number} of {url}, "
                f"found {line[:80]!r}"
            )
        cliques[-1].append(fields[0])
        of_track[fields[0]].append(cliques[-1])

    def find_relevant(query_id: str) -> dict[str, float]:
        return {other: 1.0 for clique in of_track[query_id] for other in clique if other != query_id}

    return GroundTruth(list(of_track), find_relevant)


def read_tags(url: str, options: Options | None = None) -> GroundTruth:
    """Read tags: tracks that share one are relevant to each other, graded by how many they share.

    Args:
        url: A folder of the Last.fm dataset's JSON files (``tags`` holds pairs of tag and weight, those of weight
            0 are left out), or a table, Parquet or CSV, of track_id, tag and, if it is there, artist.
        options: File system options.

    Raises:
        UsageError: A column is missing, or a file is not what it should be.
        StorageError: It cannot be read.
    """
    artists: dict[str, str] = {}
    tags_of: dict[str, set[str]] = defaultdict(set)
    if url.lower().endswith((".csv", ".parquet")):
        table = _read_table(url, ("track_id", "tag"), options)
        for row in table.to_pylist():
            tags_of[str(row["track_id"])].add(str(row["tag"]))
            if row.get("artist"):
                artists[str(row["track_id"])] = str(row["artist"])
    else:
        for track_id, track in _iter_lastfm_files(url, options):
            tags_of[track_id] = {str(tag) for tag, weight in track.get("tags", ()) if float(weight) > 0}
            if track.get("artist"):
                artists[track_id] = str(track["artist"])
    return _relate_by_tags({track_id: tags for track_id, tags in tags_of.items() if tags}, artists)


def leave_out_same_artist(truth: GroundTruth, artists: Mapping[str, str | None]) -> GroundTruth:
    """Return a ground truth in which no track of the query's own artist is relevant.

    Without this artist filter a search looks good that recognises an artist's sound, or the album's production
    (Pampalk, Flexer and Widmer, ISMIR 2005).

    Args:
        truth: What is relevant to what.
        artists: Artist of each track; None, or absent, where it is not known.
    """

    def find_relevant(query_id: str) -> dict[str, float]:
        artist = artists.get(query_id)
        relevant = truth.find_relevant(query_id)
        return {
            other: grade for other, grade in relevant.items() if artist is None or artists.get(other) != artist
        }

    return GroundTruth(truth.query_ids, find_relevant, truth.artists)


def _relate_by_tags(tags_of: Mapping[str, set[str]], artists: Mapping[str, str]) -> GroundTruth:
    track_ids = list(tags_of)
    position_of = {track_id: position for position, track_id in enumerate(track_ids)}
    members: dict[str, list[int]] = defaultdict(list)
    for position, tags in enumerate(tags_of.values()):
        for tag in tags:
            members[tag].append(position)
    tracks_with = {tag: np.array(positions, np.int64) for tag, positions in members.items()}

    def find_relevant(query_id: str) -> dict[str, float]:
        shared = np.concatenate([tracks_with[tag] for tag in tags_of[query_id]])
        positions, counts = np.unique(shared, return_counts=True)
        query = position_of[query_id]
        counted = zip(positions.tolist(), counts.tolist(), strict=True)
        return {track_ids[position]: float(count) for position, count in counted if position != query}

    return GroundTruth(track_ids, find_relevant, artists)


def _list_lastfm_files(url: str, options: Options | None) -> dict[str, str]:
    """Return the URI of each track's JSON file by track id.

    Raises:
        UsageError: There is none.
    """
    uris = [uri for uri in list_files(url, options).column("uri").to_pylist() if uri.endswith(".json")]
    if not uris:
        raise UsageError(f"expected the Last.fm dataset's JSON files under {url}, one a track, found none")
    return {uri.rsplit("/", 1)[-1].removesuffix(".json"): uri for uri in uris}


def _iter_lastfm_files(url: str, options: Options | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield track id and content of each JSON file, read a thousand at a time."""
    uris = _list_lastfm_files(url, options)
    track_ids = list(uris)
    for start in range(0, len(track_ids), FILES_PER_READ):
        group = track_ids[start : start + FILES_PER_READ]
        for track_id, content in zip(group, read_files([uris[name] for name in group], options), strict=True):
            if isinstance(content, Exception):
                raise StorageError(f"cannot read {uris[track_id]}: {type(content).__name__}: {content}")
            yield track_id, _parse_lastfm_file(uris[track_id], content)


def _parse_lastfm_file(uri: str, content: bytes) -> dict[str, Any]:
    """Return a track's JSON object, its pairs checked.

    Raises:
        UsageError: It is none.
    """
    try:
        track = json.loads(content)
        for name in ("similars", "tags"):
            for key, value in track.get(name, ()):
                str(key), float(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"expected a track's JSON object with pairs under 'similars' and 'tags' in {uri}, "
            f"found another content ({error})"
        ) from error
    return dict(track)


def _read_table(url: str, required: Sequence[str], options: Options | None) -> pa.Table:
    """Read a table from Parquet or CSV; of the latter, ids stay text even where they are digits.

    Raises:
        UsageError: A column is missing, or it is no such file.
    """
    data = pa.BufferReader(read_file(url, options))
    try:
        if url.lower().endswith(".parquet"):
            table = pq.read_table(data)
        else:
            text = dict.fromkeys([*required, "artist"], pa.string())
            table = pyarrow.csv.read_csv(data, convert_options=pyarrow.csv.ConvertOptions(column_types=text))
    except pa.ArrowInvalid as error:
        raise UsageError(f"expected a table with columns {', '.join(required)} in {url}: {error}") from error
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UsageError(f"expected columns {', '.join(required)} in {url}, found {', '.join(table.column_names)}")
    return table
