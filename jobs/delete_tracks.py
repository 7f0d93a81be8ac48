"""Take tracks down for good: no run brings them back. With --vacuum they leave older versions' files as well.

Searches no longer return them. Indexes, the table neighbors and exports still hold them until they are made again:
musicfm index --rebuild for each resolution, then musicfm neighbors, and musicfm export into a new folder.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import EXIT_OPEN_BOOKS, run_script
from pipeline.errors import StorageError, UsageError

if TYPE_CHECKING:
    from pipeline.location import StoreLocation
    from pipeline.store.writer import StoreWriter

MAX_NAMED = 10
DERIVED = ("indexes", "neighbors")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when the tracks are gone, 1 when it broke off, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --ids taken_down.txt --vacuum")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument("--ids", required=True, metavar="FILE", help="track ids, one a line")
    parser.add_argument("--reason", metavar="TEXT", help="kept with the take-down")
    add_switch(parser, "--restore", "take the take-down of these ids back: the next run embeds them again")
    add_switch(parser, "--dry-run", "say what would be done, write nothing")
    add_switch(parser, "--vacuum", "also remove every file that is not current: older versions go with it")
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)
    if flags.restore and (flags.vacuum or flags.reason):
        parser.error("--restore takes neither --vacuum nor --reason: it deletes nothing")

    def run() -> int:
        with parser.loading("the store"):
            from pipeline.location import StoreLocation
            from pipeline.store.writer import StoreWriter

        store = StoreLocation(flags.store, dict(flags.storage_option))
        ids = read_ids(flags.ids)
        if flags.restore or flags.dry_run:
            print(
                json.dumps(
                    {"ids": len(set(ids)), "dry_run": flags.dry_run, **restore_or_preview(store, ids, flags)}
                )
            )
            return 0
        line = delete(StoreWriter(store, f"delete-{uuid.uuid4().hex[:12]}"), ids, flags.vacuum, flags.reason)
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
    ids = [line.strip() for line in text.split("\n") if line.strip()]  # other line breaks may be part of an id
    if not ids:
        raise UsageError(f"expected track ids in {url}, one a line, found none")
    return ids


def restore_or_preview(
    store: StoreLocation, track_ids: Sequence[str], flags: argparse.Namespace
) -> dict[str, object]:
    """Take a take-down back, or say what that or a take-down would do."""
    from pipeline.store.takedown import preview_take_down, restore_tracks

    if not flags.restore:
        preview = preview_take_down(store, track_ids)
        tell(preview.not_found, preview.same_content)
        return asdict(preview)
    restored, missing = restore_tracks(store, track_ids, flags.dry_run)
    tell(missing)
    if restored and not flags.dry_run:
        print("the next run embeds these tracks again, where the catalog has them")
    return {"restored": len(restored), "not_found": missing}


def tell(not_found: Sequence[str], same_content: Sequence[str] = ()) -> None:
    """Say which ids are unknown, and which tracks of the same content stay."""
    for what, ids, advice in (
        ("not found", not_found, "ids are those of the ledger, endings included"),
        ("the same content stays under other ids", same_content, "name them as well if it is to go"),
    ):
        if ids:
            more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
            print(f"{what}: {', '.join(ids[:MAX_NAMED])}{more}; {advice}")


def delete(
    writer: StoreWriter, track_ids: Sequence[str], vacuum: bool, reason: str | None = None
) -> dict[str, object]:
    """Take down, vacuum if asked to, and read every file that is left to see whether the tracks are in it."""
    from pipeline.report.publish import remove_reports_of
    from pipeline.store.maintain import find_stored_ids, vacuum_store
    from pipeline.store.prediction_writer import remove_predictions
    from pipeline.store.takedown import take_down

    store = writer.store
    outcome = take_down(writer, track_ids, reason)
    tell(outcome.not_found, outcome.same_content)
    line: dict[str, object] = {"ids": len(set(track_ids)), **asdict(outcome)}
    line["store_version"] = writer.store_version
    line["predictions_removed"] = remove_predictions(store, track_ids, vacuum)
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
            f"no search returns these tracks, but what was made from the store still has their vectors "
            f"({', '.join(derived)}): make it again with musicfm index --rebuild for each resolution, and "
            "musicfm neighbors"
        )
    return line


def list_derived(store: StoreLocation) -> list[str]:
    """List what lies beside the tables and was made from them: indexes, neighbours."""
    from pipeline.storage import list_files

    derived = []
    for name in DERIVED:
        with suppress(StorageError):  # there is none
            if list_files(store.table_url(name), store.options).num_rows:
                derived.append(name)
    return derived


if __name__ == "__main__":
    run_script(main)
