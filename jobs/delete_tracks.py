"""Take tracks down: out of the current tables at once, and with --vacuum out of the files as well."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import EXIT_OPEN_BOOKS, run_script
from pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from pipeline.location import StoreLocation
    from pipeline.store.writer import StoreWriter

DERIVED = ("indexes", "neighbors")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when the tracks are gone, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --ids taken_down.txt --vacuum")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--ids", required=True, metavar="FILE", help="track ids, one a line")
    add_switch(parser, "--vacuum", "also remove every file that is not current: older versions go with it")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.store.writer import StoreWriter

        store = StoreLocation(flags.store, dict(flags.storage_option))
        ids = read_ids(flags.ids)
        line = take_down(StoreWriter(store, f"delete-{uuid.uuid4().hex[:12]}"), ids, flags.vacuum)
        print(json.dumps(line))
        return EXIT_OPEN_BOOKS if flags.vacuum and line["files_with_rows"] else 0

    return run_or_explain(parser, run)


def read_ids(url: str) -> list[str]:
    """Read track ids, one a line; blank lines do not count.

    Raises:
        UsageError: There is none, or the file is no text in UTF-8.
    """
    from pipeline.storage import read_file

    try:
        text = read_file(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"expected text in UTF-8 in {url}, one track id a line, found other bytes: {error}"
        ) from error
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise UsageError(f"expected track ids in {url}, one a line, found none")
    return ids


def take_down(writer: StoreWriter, track_ids: Sequence[str], vacuum: bool) -> dict[str, object]:
    """Delete, vacuum if asked to, and read every file that is left to see whether the tracks are in it."""
    from pipeline.report.publish import remove_reports_of
    from pipeline.store.maintain import delete_tracks, find_stored_ids, vacuum_store

    store = writer.store
    line: dict[str, object] = {"ids": len(set(track_ids)), "deleted": delete_tracks(writer, track_ids)}
    line["store_version"] = writer.store_version
    if vacuum:
        line["files_removed"] = vacuum_store(writer, 0)
    line["reports_removed"] = remove_reports_of(store, track_ids)
    left = find_stored_ids(store, track_ids)
    for path, ids in sorted(left.items()):
        print(f"still in {path}: {', '.join(ids[:5])}")
    if left and not vacuum:
        print("those files belong to older versions; --vacuum removes them")
    line["files_with_rows"] = len(left)
    derived = list_derived(store)
    line["derived"] = derived
    if derived:
        print(
            f"what was made from the store still knows these tracks ({', '.join(derived)}): make it again with "
            "musicfm index --rebuild for each resolution, and musicfm neighbors"
        )
    return line


def list_derived(store: StoreLocation) -> list[str]:
    """List what lies beside the tables and was made from them: indexes, neighbours."""
    from pipeline.storage import list_files

    found = []
    for name in DERIVED:
        with suppress(StorageError):  # there is none
            if list_files(store.table_url(name), store.options).num_rows:
                found.append(name)
    return found


if __name__ == "__main__":
    run_script(main)
