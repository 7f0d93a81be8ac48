"""The catalog of a Free Music Archive copy (github.com/mdeff/fma).

Audio lies at ``NNN/NNNNNN.mp3``, the six digits being the track id and the first three of them the folder.
``tracks.csv`` of ``fma_metadata`` has three header rows: groups (album, artist, set, track), names, and the
index's name. Its ``(set, subset)`` names the smallest subset that a track belongs to: small ⊂ medium ⊂ large;
full has the tracks of large, at full length.
"""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from pipeline.catalog.labels import convert_labels
from pipeline.catalog.load import build_catalog, find_companion, select_audio, stem_names
from pipeline.errors import CatalogError, UsageError
from pipeline.storage import Options, absolute_url, list_files, read_file

SUBSETS = ("small", "medium", "large", "full")

_COLUMNS = {
    "title": ("track", "title"),
    "artist": ("artist", "name"),
    "album": ("album", "title"),
    "genre": ("track", "genre_top"),
    "subset": ("set", "subset"),
}
_MORE_COLUMNS = {"track_number": ("track", "number"), "year": ("album", "date_released")}
"""What copies of the table that somebody has made smaller need not have."""

_MAX_ROW_BYTES = 1 << 24  # some rows of tracks.csv hold whole biographies


def load_fma_catalog(
    root: str, metadata: str | None = None, subset: str | None = None, options: Options | None = None
) -> pa.Table:
    """List the tracks of a Free Music Archive copy.

    Args:
        root: Folder or bucket prefix; its audio files with six digits for a name are the tracks.
        metadata: ``tracks.csv``, which gives title, artist, album and top genre; when left out, that in the
            root, in its folder ``fma_metadata`` or beside it, if there is one.
        subset: One of ``SUBSETS``: its tracks and no others make the catalog.
        options: File system options.

    Returns:
        Table of schema ``CATALOG``, sorted by ``track_id``; a track of the subset without audio has a null
        ``uri``.

    Raises:
        UsageError: The subset is unknown, or there is no metadata to tell its tracks.
        CatalogError: No audio of the dataset is there, ``tracks.csv`` is another file, or two files claim one
            id, as where the root holds several subsets' folders.
        StorageError: A file or folder does not exist or may not be read.
    """
    if subset is not None and subset not in SUBSETS:
        raise UsageError(f"expected the subset {', '.join(SUBSETS[:-1])} or {SUBSETS[-1]}, found {subset!r}")
    root = absolute_url(root)
    listing = list_files(root, options)
    audio = select_audio(listing, root)
    stems = stem_names(audio["path"])
    files = audio.append_column("track_id", stems).filter(pc.match_substring_regex(stems, "^[0-9]{6}$"))
    if not files.num_rows:
        raise CatalogError(
            f"expected FMA audio such as 000/000002.mp3 at {root}, found {audio.num_rows} other audio files "
            f"such as {audio['path'][0]}"
        )
    url = metadata or find_companion(root, listing, ["tracks.csv", "fma_metadata/tracks.csv"], options)
    if url is None:
        if subset:
            raise UsageError(
                f"expected FMA's tracks.csv at or beside {root} to choose the subset {subset}, found none; "
                "name it as metadata"
            )
        return build_catalog(files)
    tracks = read_fma_tracks(url, options)
    wanted = None
    if subset:
        smaller = pa.array(SUBSETS[: SUBSETS.index(subset) + 1])
        # Full is everything, whatever the column says.
        chosen = tracks if subset == "full" else tracks.filter(pc.is_in(tracks["subset"], value_set=smaller))
        wanted = chosen["track_id"]
    return build_catalog(files, wanted, tracks)


def read_fma_tracks(url: str, options: Options | None = None) -> pa.Table:
    """Read what a catalog takes from FMA's ``tracks.csv``.

    Returns:
        Table of ``track_id`` (six digits), ``title``, ``artist``, ``album``, ``genre`` and ``subset``, text, and,
        where the file has them, ``track_number`` and ``year``; null where the field is empty.

    Raises:
        CatalogError: The file does not have the three header rows and the columns needed.
        StorageError: It is missing or may not be read.
    """
    data = read_file(url, options)
    header = io.StringIO(data[: 1 << 16].decode("utf-8-sig", errors="replace"))
    groups, names, index = (next(csv.reader(header), []) for _ in range(3))
    columns = list(zip(groups, names, strict=False))
    missing = [".".join(column) for column in _COLUMNS.values() if column not in columns]
    if index[:1] != ["track_id"] or missing:
        raise CatalogError(
            f"expected FMA's tracks.csv with three header rows in {url}, "
            f"found no {', '.join(missing) or 'third row that begins with track_id'}"
        )
    chosen = _COLUMNS | {name: column for name, column in _MORE_COLUMNS.items() if column in columns}
    positions = {"track_id": 0} | {name: columns.index(column) for name, column in chosen.items()}
    fields = {name: str(position) for name, position in positions.items()}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                skip_rows=3, column_names=[str(i) for i in range(len(columns))], block_size=_MAX_ROW_BYTES
            ),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(fields.values()),
                column_types=dict.fromkeys(fields.values(), pa.string()),
            ),
        )
    except pa.ArrowInvalid as error:
        raise CatalogError(f"cannot read FMA's tracks.csv {url}: {' '.join(str(error).split())}") from error
    text = {name: table[field] for name, field in fields.items()}
    text = {
        name: convert_labels(pc.if_else(pc.equal(column, ""), None, column), name) for name, column in text.items()
    }
    text["track_id"] = pc.utf8_lpad(text["track_id"], width=6, padding="0")
    return pa.table(text)
