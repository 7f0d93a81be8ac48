"""The catalog of a Million Song Dataset copy, in any of the layouts in which its audio is kept.

Facts: track ids, ``unique_tracks.txt`` and the folders ``A/B/C`` (letters 3 to 5 of the id) are those of the
dataset's own site, millionsongdataset.com. The 7digital tree with its two Python 2 pickles, and the MSD50
lists (``filtered_list_*.cP``, pickles of protocol 0), are those of github.com/jongpillee/music_dataset_split;
the CALS lists (``*_ids.npy``, fixed-width text) are those of
github.com/minzwon/semi-supervised-music-tagging-transformer; the ECALS JSON that of
github.com/seungheondoh/msd-subsets.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.load import (
    build_catalog,
    find_clashes,
    find_companion,
    load_catalog,
    select_audio,
    stem_names,
)
from pipeline.catalog.manifest import is_manifest
from pipeline.errors import CatalogError
from pipeline.storage import Options, absolute_url, list_files, read_file

TRACK_ID = "TR[A-Z0-9]{16}"

_TRACK_LINE = rf"^(?P<track_id>{TRACK_ID})<SEP>.*?<SEP>(?P<artist>.*?)<SEP>(?P<title>.*?)\r?$"
# An id may follow a V: that is how pickles of protocol 0 begin Unicode text.
_ID_IN_SPLIT = re.compile(rf"(?<![A-UW-Za-z0-9]){TRACK_ID}(?![A-Z0-9])".encode())
_TO_7DIGITAL = "MSD_id_to_7D_id.pkl"
_TO_PATH = "7D_id_to_path.pkl"


def load_msd_catalog(
    root: str, tracks: str | None = None, split: str | None = None, options: Options | None = None
) -> pa.Table:
    """List the tracks of a Million Song Dataset copy.

    The layout is seen from the listing: files named by track id up to the first dot, in whatever folders (the
    id tree and the flat layout); the 7digital tree, with its two pickles in the root, in its folder
    ``lastfm_annotation`` or beside it; or a manifest (see ``load_catalog``).

    Args:
        root: Folder, bucket prefix or manifest.
        tracks: ``unique_tracks.txt``, which gives artist and title. When named here, its ids belong to the
            catalog even without audio; when left out, one in the root or beside it only describes.
        split: File whose ids, and no others, make the catalog: lists as text, CSV, JSON, ``.cP`` or ``.npy``.
        options: File system options.

    Returns:
        Table of schema ``CATALOG``, sorted by ``track_id``; an id without audio has a null ``uri``.

    Raises:
        CatalogError: No audio of the dataset is there, a file is not of its kind, or two files claim one id.
        StorageError: A file or folder does not exist or may not be read.
    """
    root = absolute_url(root)
    if is_manifest(root):
        files, companion = _shorten_ids(load_catalog(root, options)), None
    else:
        listing = list_files(root, options)
        files = _find_audio(root, listing, options)
        companion = None if tracks else find_companion(root, listing, ["unique_tracks.txt"], options)
    metadata_url = tracks or companion
    metadata = read_unique_tracks(metadata_url, options) if metadata_url else None
    wanted = None
    if split:
        wanted = read_split(split, options)
    elif tracks and metadata is not None:
        wanted = pa.chunked_array([*files["track_id"].chunks, *metadata["track_id"].chunks])
    return build_catalog(files, wanted, metadata)


def read_unique_tracks(url: str, options: Options | None = None) -> pa.Table:
    """Read ``unique_tracks.txt``: lines of ``track<SEP>song<SEP>artist<SEP>title`` in UTF-8.

    Returns:
        Table of ``track_id``, ``artist`` and ``title``; an empty field is null.

    Raises:
        CatalogError: A line is not of this form.
        StorageError: The file is missing or may not be read.
    """
    # One title that is not UTF-8 must not stop a million tracks; and `splitlines` would cut titles at U+2028.
    text = read_file(url, options).decode("utf-8-sig", errors="replace")
    lines = pa.chunked_array([pa.array(text.split("\n"), pa.string())])
    fields = pc.extract_regex(lines, _TRACK_LINE)
    wrong = pc.and_(fields.is_null(), pc.not_equal(pc.utf8_trim_whitespace(lines), ""))
    if pc.any(wrong).as_py():
        number = pc.index(wrong, True).as_py()
        raise CatalogError(
            f"expected track<SEP>song<SEP>artist<SEP>title in line {number + 1} of {url}, "
            f"found {lines[number].as_py()[:80]!r}; give the dataset's unique_tracks.txt"
        )
    table = pa.Table.from_struct_array(fields.drop_null())
    described = [pc.if_else(pc.equal(table[name], ""), None, table[name]) for name in ("artist", "title")]
    return pa.table([table["track_id"], *described], names=["track_id", "artist", "title"])


def read_split(url: str, options: Options | None = None) -> pa.Array:
    """Collect the track ids of a split file.

    In every published kind the ids stand as plain text: one a line or in some column of a text file, within a
    path, as keys or values of JSON, and in Python 2 pickles too. So they are searched for, and nothing is
    unpickled. NumPy files of text are read as such.

    Returns:
        Ids in the file's order; may repeat.

    Raises:
        CatalogError: The file holds no track id.
        StorageError: It is missing or may not be read.
    """
    data = read_file(url, options)
    if data.startswith(b"\x93NUMPY"):
        try:
            data = "\n".join(np.load(io.BytesIO(data), allow_pickle=False).astype(str).ravel()).encode()
        except ValueError as error:
            raise CatalogError(f"expected an array of text in {url}, found another: {error}") from error
    ids = [match.decode() for match in _ID_IN_SPLIT.findall(data)]
    if not ids:
        raise CatalogError(
            f"expected track ids such as TRAXLZU12903D05F94 in {url}, found none in its {len(data)} bytes"
        )
    return pa.array(ids, pa.string())


def read_plain_pickle(url: str, options: Options | None = None) -> dict[str, str]:
    """Read a Python 2 pickle of a dictionary of strings or numbers, admitting nothing that could run code.

    Raises:
        CatalogError: The pickle is damaged, holds another object, or refers to a global; names the global.
        StorageError: It is missing or may not be read.
    """
    data = io.BytesIO(read_file(url, options))
    try:
        # Python 2 text was bytes: Latin-1 maps every one of them to a character.
        mapping = _PlainUnpickler(data, encoding="latin1").load()
    except CatalogError as error:
        raise CatalogError(f"expected a pickle of plain strings in {url}, found {error}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise CatalogError(f"cannot read the pickle {url}: {type(error).__name__}: {error}") from error
    if not isinstance(mapping, dict):
        raise CatalogError(f"expected a pickled dictionary in {url}, found {type(mapping).__name__}")
    return {_as_text(key): _as_text(value) for key, value in mapping.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Admits containers, strings and numbers, which need no global, and bytes as Python 3 spells them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # Python 3's bytes in protocols 0 to 2
            return lambda text, _encoding: text
        raise CatalogError(f"the global {module}.{name}, which is refused")


def _as_text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _shorten_ids(catalog: pa.Table) -> pa.Table:
    """Reduce a manifest's ids that are names of audio files, such as ``TR….clip``, to the track id."""
    shortened = pc.replace_substring_regex(catalog["track_id"], rf"(?s)^(?:.*/)?({TRACK_ID})(?:\..*)?$", r"\1")
    return catalog.set_column(0, "track_id", shortened)


def _find_audio(root: str, listing: pa.Table, options: Options | None) -> pa.Table:
    """Return the dataset's audio files with their ``track_id``, in the layout that most files follow."""
    audio = select_audio(listing, root)
    stems = stem_names(audio["path"])
    is_id = pc.match_substring_regex(stems, f"^{TRACK_ID}$")
    by_id = audio.append_column("track_id", stems).filter(is_id)
    if 2 * by_id.num_rows >= audio.num_rows:
        return by_id
    pickles = [
        find_companion(root, listing, [name, f"lastfm_annotation/{name}"], options)
        for name in (_TO_7DIGITAL, _TO_PATH)
    ]
    if all(pickles):
        to_7digital, to_path = (read_plain_pickle(str(url), options) for url in pickles)
        return _find_7digital_audio(root, audio, to_7digital, to_path)
    if by_id.num_rows:
        return by_id
    raise CatalogError(
        f"expected MSD audio at {root}: files named by track id (TRAXLZU12903D05F94.mp3), or a 7digital tree "
        f"with {_TO_7DIGITAL} and {_TO_PATH}; found {audio.num_rows} other files such as {audio['path'][0]}"
    )


def _find_7digital_audio(
    root: str, audio: pa.Table, to_7digital: dict[str, str], to_path: dict[str, str]
) -> pa.Table:
    """Return the mapped audio files with their MSD ids; two ids may share a file, as some do in the dataset.

    A file is known by its name up to the first dot, so the tree may lie deeper or be in another codec.
    """
    paths = [to_path.get(number) for number in to_7digital.values()]
    wanted = stem_names(pa.chunked_array([pa.array(paths, pa.string())]))
    stems = stem_names(audio["path"])
    mapped = pc.is_in(stems, value_set=wanted)
    audio, stems = audio.filter(mapped), stems.filter(mapped)
    if not audio.num_rows:
        raise CatalogError(f"expected audio at {root} that {_TO_PATH} names, found none; is it the right copy?")
    clashes = find_clashes(stems)
    if clashes:
        first, second = (audio["uri"][position] for position in clashes[0][:2])
        more = f" ({len(clashes) - 1} more such ids)" if len(clashes) > 1 else ""
        raise CatalogError(
            f"two files are 7digital's {stems[clashes[0][0]]}: {first} and {second}{more}; leave out one"
        )
    rows = pc.index_in(wanted, value_set=stems)
    track_ids = pa.chunked_array([pa.array(list(to_7digital), pa.string())])
    return audio.take(rows.drop_null()).append_column("track_id", track_ids.filter(rows.is_valid()))
