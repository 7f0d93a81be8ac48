"""Reading annotations, whatever they lie in."""

from __future__ import annotations

from pipeline.catalog.delimited import read_delimited
from pipeline.catalog.mirdata import is_mirdata
from pipeline.errors import CatalogError, StorageError, UsageError
from pipeline.probing.annotation_files import is_jams, read_folder, read_jams
from pipeline.probing.annotation_sets import (
    is_magnatagatune,
    read_cals,
    read_magnatagatune,
    read_mirdata_annotations,
)
from pipeline.probing.annotation_tables import read_table
from pipeline.probing.annotations import TASK_RESOLUTIONS, Annotations
from pipeline.storage import Options, list_files, read_file

TABLE_ENDINGS = (".csv", ".tsv", ".tab")
_CALS_MARK = "train_ids.npy"


def read_annotations(url: str, task: str, options: Options | None = None) -> Annotations:
    """Read annotations for a task.

    Args:
        url: A CSV or TSV file (MagnaTagATune's own included); a JAMS file; a folder of JAMS or text files, one a
            track, or of the MSD's tags in CALS splits; ``mirdata:NAME`` or ``mirdata:NAME:FOLDER``.
        task: Name of a task.
        options: File system options.

    Raises:
        UsageError: They cannot be read, or are not of this task.
        CatalogError: It is no such file.
        StorageError: It cannot be read.
    """
    if task not in TASK_RESOLUTIONS:
        raise UsageError(f"expected a task ({', '.join(TASK_RESOLUTIONS)}), found {task}")
    if is_mirdata(url):
        return read_mirdata_annotations(url, task, options)
    if is_jams(url):
        return read_jams(url, task, options)
    if not url.lower().endswith(TABLE_ENDINGS) and (paths := _list(url, options)):
        return (
            read_cals(url, options)
            if task == "tagging" and _CALS_MARK in paths
            else read_folder(url, task, options)
        )
    if task == "tagging" and _begins_like_magnatagatune(read_file(url, options), url):
        return read_magnatagatune(url, options)
    return read_table(url, task, options)


def _list(url: str, options: Options | None) -> list[str]:
    """Return paths of the files in a folder; none where it is no folder."""
    try:
        return [str(path) for path in list_files(url, options).column("path").to_pylist()]
    except StorageError:
        return []


def _begins_like_magnatagatune(data: bytes, url: str) -> bool:
    try:
        first = read_delimited(data.split(b"\n", 1)[0] + b"\n", "\t", url)
    except CatalogError:
        return False
    return is_magnatagatune(first.column_names)
