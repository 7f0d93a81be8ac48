"""Search a feature store: what sounds like a track, several of them, a moment of one, or a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import run_script
from pipeline.errors import StorageError, TrackError, UsageError

if TYPE_CHECKING:
    from pipeline.search.hits import Hit
    from pipeline.search.searcher import Searcher


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when it searched, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)
    _check_flags(parser, flags)

    def run() -> int:
        with parser.loading("the index"):
            from pipeline.index.vector_index import VectorIndex
            from pipeline.location import StoreLocation
            from pipeline.search.searcher import Searcher

        index = VectorIndex.open(
            StoreLocation(flags.store, dict(flags.storage_option)), flags.resolution, flags.recipe, flags.cache
        )
        searcher = Searcher(index, flags.near_duplicate_score)
        if flags.audio is not None:
            return search_by_audio(parser, searcher, flags)
        print_answer(searcher, flags, describe_tracks(flags), search_by_track(searcher, flags))
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None = None) -> OneLineParser:
    """Build the command's parser."""
    parser = OneLineParser(program, __doc__, "--store ~/features --track caves.mp3 -k 5")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store with an index")
    query = parser.add_group("the query (one of --track and --audio)")
    one = query.add_exclusive_group()
    one.add_argument(
        "--track", nargs="+", metavar="ID", help="a track of the catalog; of several, what sounds like all of them"
    )
    one.add_argument(
        "--audio", nargs="+", metavar="URL", help="files, of the catalog or not; each is searched by alone"
    )
    query.add_argument("--minus", nargs="+", default=[], metavar="ID", help="--track, but not like these tracks")
    query.add_argument("--start-s", "--start_s", type=float, metavar="S", help="only this section of it")
    query.add_argument("--end-s", "--end_s", type=float, metavar="S", help="only this section of it")
    query.add_argument(
        "--checkpoint", metavar="NAME_OR_URL", help="for --audio: the one the catalog was embedded with"
    )
    query.add_argument("--stats", metavar="URL", help="normalisation file, where it is not beside the checkpoint")
    query.add_argument("--device", choices=("cuda", "cpu"), help="for --audio; by default a GPU if there is one")
    hits = parser.add_group("the hits")
    hits.add_argument("-k", type=_count, default=10, metavar="N", help="how many")
    hits.add_argument(
        "--resolution", default="global", metavar="NAME", help="global: tracks; 0.5hz: moments, with their spans"
    )
    hits.add_argument("--recipe", metavar="ID", help="where the store has indexes of several recipes")
    hits.add_argument(
        "--filter",
        metavar="SQL",
        help="condition on track_id, title, artist, album, genre, track_number, year, duration_s, uri, "
        "content_hash, and on tag('LABEL'): the score that musicfm predict gave it",
    )
    hits.add_argument("--exclude-same", choices=("artist", "album"), help="leave out what shares it with --track")
    hits.add_argument(
        "--near-duplicate-score", type=float, metavar="SCORE", help="mark hits from here on; by default measured"
    )
    add_switch(hits, "--json", "print one line of JSON a query, and nothing else")
    storage = parser.add_group("storage (credentials come from the standard places, such as AWS_*)")
    storage.add_argument("--cache", metavar="DIR", help="copies of an index that lies in object storage")
    add_storage_option(storage, "--storage-option", "the store")
    add_storage_option(storage, "--audio-option", "--audio")
    return parser


def search_by_track(searcher: Searcher, flags: argparse.Namespace) -> list[Hit]:
    """Search by a track of the catalog, a section of it, or several tracks."""
    if len(flags.track) == 1 and not flags.minus:
        return searcher.search_track(
            flags.track[0], flags.k, flags.start_s, flags.end_s, flags.filter, flags.exclude_same
        )
    from pipeline.search.combine import search_tracks

    return search_tracks(searcher, flags.track, flags.minus, flags.k, flags.filter, flags.exclude_same)


def describe_tracks(flags: argparse.Namespace) -> dict[str, object]:
    """Return what a search by tracks asks with."""
    if len(flags.track) == 1 and not flags.minus:
        return {"track_id": flags.track[0], "start_s": flags.start_s, "end_s": flags.end_s}
    return {"track_ids": flags.track, "minus": flags.minus}


def search_by_audio(parser: OneLineParser, searcher: Searcher, flags: argparse.Namespace) -> int:
    """Search by files, embedded as the catalog was by a model that is loaded once.

    A file that cannot be heard is told and passed over; a single one is a mistake in the call.

    Returns:
        1 where a file could not be heard, else 0.
    """
    with parser.loading("PyTorch"):  # for which a search by a track need not wait
        from pipeline.search.query import AudioQuery
        from pipeline.storage import read_file

    manifest = searcher.index.manifest
    model: AudioQuery | None = None
    num_failed = 0
    for url in flags.audio:
        query: dict[str, object] = {"audio": url}
        if (flags.start_s, flags.end_s) != (None, None):
            query |= {"start_s": flags.start_s, "end_s": flags.end_s}
        try:
            data = read_file(url, dict(flags.audio_option))
            model = model or AudioQuery.load(
                flags.checkpoint, manifest.recipe, manifest.definition, flags.stats, flags.device
            )
            is_stored = searcher.holds_content(data)
            file = model.embed(data, manifest.resolution, is_stored, flags.start_s, flags.end_s)
        except (TrackError, StorageError) as error:
            if len(flags.audio) == 1:
                raise UsageError(f"cannot search by {url}: {error}") from error
            num_failed += 1
            print_failure(flags, query, f"cannot search by {url}: {error}")
            continue
        print_answer(searcher, flags, query, searcher.search_file(file, flags.k, flags.filter))
    return 1 if num_failed else 0


def print_answer(
    searcher: Searcher, flags: argparse.Namespace, query: dict[str, object], hits: Sequence[Hit]
) -> None:
    """Print the hits of a query, for people, or as one line of JSON."""
    if not flags.json:
        if flags.audio is not None and len(flags.audio) > 1:
            print(f"{query['audio']}:")
        print_hits(hits)
        return
    manifest = searcher.index.manifest
    line = {
        "query": query | {"k": flags.k, "resolution": manifest.resolution, "filter": flags.filter},
        "results": [asdict(hit) for hit in hits],
        "recipe": manifest.recipe,
        "store_version": manifest.store_version,
        "near_duplicate_score": searcher.near_duplicate_score,
    }
    print(json.dumps(line), flush=True)


def print_failure(flags: argparse.Namespace, query: dict[str, object], message: str) -> None:
    """Say that one of several files could not be searched by."""
    if flags.json:
        print(json.dumps({"query": query, "error": message}), flush=True)
    else:
        print(message, flush=True)


def print_hits(hits: Sequence[Hit]) -> None:
    """Print one line per hit; a near-duplicate of the query is marked with =."""
    if not hits:
        print("no hits")
        return
    print(
        f"{'rank':>4} {'score':>8}   {'span':<15} {'track':<24} {'artist':<24} {'title':<24} {'album':<24} genre"
    )
    for hit in hits:
        span = "" if hit.start_s is None or hit.end_s is None else f"{hit.start_s:.1f}-{hit.end_s:.1f} s"
        mark = "=" if hit.near_duplicate else " "
        print(
            f"{hit.rank:>4} {hit.score:>8.5f} {mark} {span:<15} {hit.track_id:<24} {hit.artist or '-':<24} "
            f"{hit.title or '-':<24} {hit.album or '-':<24} {hit.genre or '-'}"
        )
    if any(hit.near_duplicate for hit in hits):
        print("= likely the same recording")


def _check_flags(parser: OneLineParser, flags: argparse.Namespace) -> None:
    if flags.audio is not None and flags.checkpoint is None:
        parser.error("--audio needs --checkpoint, the one that the catalog was embedded with")
    if flags.audio is not None:
        given = [
            name for name, value in (("--minus", flags.minus), ("--exclude-same", flags.exclude_same)) if value
        ]
        if given:
            parser.error(f"{', '.join(given)}: only with --track")
        return
    if (flags.start_s, flags.end_s) != (None, None) and (len(flags.track) > 1 or flags.minus):
        parser.error("--start-s, --end-s: a section is of one --track, found several")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


if __name__ == "__main__":
    run_script(main)
