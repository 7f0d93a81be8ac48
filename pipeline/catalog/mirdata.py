"""The catalog of any data set that mirdata knows (github.com/mir-dataset-loaders/mirdata, BSD licence).

mirdata is a library of loaders for the data sets of music information retrieval. Of it this takes the index
(which tracks there are, and where their audio lies) and what a track says of its title, artist, album and genre;
the audio itself is read as any other.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.catalog.labels import convert_labels
from pipeline.catalog.manifest import learn_facts
from pipeline.errors import CatalogError, UsageError
from pipeline.schema import CATALOG, LABELS
from pipeline.storage import Options, absolute_url, join_url, stat_files

if TYPE_CHECKING:
    import mirdata.core

PREFIX = "mirdata:"
AUDIO_ATTRIBUTES = ("audio_path", "audio_mix_path", "audio_mic_path")
"""Where a track of mirdata names its audio; the last two are GuitarSet's, which has a take several times."""


_SPELLING = re.compile(rf"{PREFIX}(?P<name>\w+)(?:@(?P<version>[\w.-]+))?(?::(?P<data_home>.+))?")


def is_mirdata(audio: str) -> bool:
    """Tell the name of a data set of mirdata from a URL or path."""
    return audio.startswith(PREFIX)


def read_mirdata(audio: str, options: Options | None = None) -> pa.Table:
    """List the tracks of a data set of mirdata.

    A track whose file is not there stays: it becomes a row in ``failures``. The index is looked for in the data's
    own folder first and then where mirdata's ``download`` puts it, which is inside the installed package.

    Args:
        audio: ``mirdata:NAME``, ``mirdata:NAME@VERSION`` or either with ``:DATA_HOME`` behind it, a folder or
            bucket prefix; by default mirdata's own, ``~/mir_datasets/NAME``.
        options: File system options of the audio.

    Returns:
        Table of the columns of ``CATALOG``, one row a track in the index's order.

    Raises:
        UsageError: mirdata is not installed, or the name is not spelled as above.
        CatalogError: It knows no such data set or version, the index is missing or has no single tracks, or not
            one file of the audio is there.
        StorageError: The folder may not be listed.
    """
    dataset = open_dataset(audio, options)
    try:
        track_ids = dataset.track_ids
    except FileNotFoundError as error:
        raise CatalogError(
            f"expected mirdata's index of {dataset.name} at {dataset.index_path}, or as "
            f"{os.path.basename(dataset.index_path)} in {dataset.data_home}, found neither; with a network, "
            f"python -c \"import mirdata; mirdata.initialize('{dataset.name}').download(['index'])\" fetches it"
        ) from error
    except (AttributeError, ValueError) as error:
        raise CatalogError(f"cannot list the tracks of mirdata's {dataset.name}: {error}") from error
    tracks = [dataset.track(track_id) for track_id in track_ids]
    uris = pa.chunked_array([pa.array([_find_audio(track) for track in tracks], pa.string())])
    facts = learn_facts(uris, options)
    if facts["size_bytes"].null_count == len(tracks):
        named = next((uri for uri in uris.to_pylist() if uri), "no file at all")
        raise CatalogError(
            f"expected audio of mirdata's {dataset.name} in {dataset.data_home}, found none of its {len(tracks)} "
            f"tracks; the first should be {named}: name the data's folder, {PREFIX}{dataset.name}:FOLDER"
        )
    columns = {"track_id": pa.array(track_ids, pa.string()), "uri": uris}
    columns |= {name: facts[name] for name in facts.column_names} | _describe(tracks)
    return pa.table([columns[field.name] for field in CATALOG], schema=CATALOG)


def open_dataset(audio: str, options: Options | None) -> mirdata.core.Dataset:
    """Open a data set of mirdata, by the index in the data's own folder where there is one.

    Args:
        audio: As ``read_mirdata`` takes it.
        options: File system options of the data's folder.

    Raises:
        UsageError: mirdata is not installed, or the name is not spelled as it should be.
        CatalogError: It knows no such data set or version.
    """
    spelled = _SPELLING.fullmatch(audio)
    if spelled is None:
        raise UsageError(f"expected {PREFIX}NAME, {PREFIX}NAME@VERSION or {PREFIX}NAME:FOLDER, found {audio}")
    try:
        import mirdata  # librosa and what it needs: seconds, and only for those who ask for it
    except ImportError as error:
        raise UsageError(
            f"{audio} needs the package mirdata: pip install 'music-feature-store[mirdata]' ({error})"
        ) from error
    data_home = spelled["data_home"] and absolute_url(spelled["data_home"]).rstrip("/")
    try:
        dataset = mirdata.initialize(spelled["name"], data_home, spelled["version"] or "default")
    except ValueError as error:
        raise CatalogError(f"mirdata {mirdata.__version__} cannot open {audio}: {error}") from error
    own_index = join_url(dataset.data_home, os.path.basename(dataset.index_path))
    if not isinstance(stat_files([own_index], options)[0], Exception):
        dataset.index_path = own_index
    return dataset


def _find_audio(track: mirdata.core.Track) -> str | None:
    paths = (getattr(track, name, None) for name in AUDIO_ATTRIBUTES)
    return next((str(path) for path in paths if path), None)


def _describe(tracks: list[mirdata.core.Track]) -> dict[str, pa.Array]:
    """Return what the tracks say of themselves; nulls for a loader that has no such property."""
    described = {}
    for name in LABELS:
        label_type = CATALOG.field(name).type
        if any(hasattr(type(track), name) or name in vars(track) for track in tracks[:1]):
            texts = [_read_text(track, name) for track in tracks]
            described[name] = convert_labels(pa.chunked_array([pa.array(texts, pa.string())]), name)
        else:
            described[name] = pa.nulls(len(tracks), label_type)
    return described


def _read_text(track: mirdata.core.Track, name: str) -> str | None:
    """Return a property of a track as text; null where the metadata, or its row of it, is missing."""
    try:
        value: Any = getattr(track, name)
    except (AttributeError, KeyError, OSError):
        return None
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    value = str(value) if isinstance(value, int) else value
    return value if isinstance(value, str) and value else None
