"""Search a feature store: what sounds like a track, like a moment of one, or like a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import run_script
from pipeline.errors import TrackError, UsageError

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
        if flags.track is not None:
            hits = search_by_track(searcher, flags)
        else:
            hits = search_by_audio(parser, searcher, flags)
        if flags.json:
            query = {"audio": flags.audio} if flags.track is None else {"track_id": flags.track}
            query |= {"start_s": flags.start_s, "end_s": flags.end_s} if flags.track is not None else {}
            manifest = index.manifest
            line = {
                "query": query | {"k": flags.k, "resolution": manifest.resolution, "filter": flags.filter},
                "results": [asdict(hit) for hit in hits],
                "recipe": manifest.recipe,
                "store_version": manifest.store_version,
                "near_duplicate_score": searcher.near_duplicate_score,
            }
            print(json.dumps(line), flush=True)
        else:
            print_hits(hits)
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None = None) -> OneLineParser:
    """Build the command's parser."""
    parser = OneLineParser(program, __doc__, "--store ~/features --track caves -k 5")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store with an index")
    query = parser.add_group("the query (one of --track and --audio)")
    one = query.add_exclusive_group()
    one.add_argument("--track", metavar="ID", help="a track of the catalog")
    one.add_argument("--audio", metavar="URL", help="a file, of the catalog or not")
    query.add_argument("--start-s", "--start_s", type=float, metavar="S", help="only this section of --track")
    query.add_argument("--end-s", "--end_s", type=float, metavar="S", help="only this section of --track")
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
        help="condition on track_id, title, artist, album, genre, duration_s, uri, content_hash, and on "
        "tag('LABEL'): the score that musicfm predict gave it",
    )
    hits.add_argument("--exclude-same", choices=("artist", "album"), help="leave out what shares it with --track")
    hits.add_argument(
        "--near-duplicate-score", type=float, metavar="SCORE", help="mark hits from here on; by default measured"
    )
    add_switch(hits, "--json", "print one line of JSON, and nothing else")
    storage = parser.add_group("storage (credentials come from the standard places, such as AWS_*)")
    storage.add_argument("--cache", metavar="DIR", help="copies of an index that lies in object storage")
    add_storage_option(storage, "--storage-option", "the store")
    add_storage_option(storage, "--audio-option", "--audio")
    return parser


def search_by_track(searcher: Searcher, flags: argparse.Namespace) -> list[Hit]:
    """Search by a track of the catalog, or a section of it."""
    return searcher.search_track(
        flags.track, flags.k, flags.start_s, flags.end_s, flags.filter, flags.exclude_same
    )


def search_by_audio(parser: OneLineParser, searcher: Searcher, flags: argparse.Namespace) -> list[Hit]:
    """Search by a file, embedded as the catalog was."""
    with parser.loading("PyTorch"):  # for which a search by a track need not wait
        from pipeline.search.query import AudioQuery
        from pipeline.storage import read_file

    manifest = searcher.index.manifest
    data = read_file(flags.audio, dict(flags.audio_option))
    model = AudioQuery.load(flags.checkpoint, manifest.recipe, manifest.definition, flags.stats, flags.device)
    try:
        query = model.embed(data, manifest.resolution, searcher.holds_content(data))
    except TrackError as error:
        raise UsageError(f"cannot search by {flags.audio}: {error.message}") from error
    return searcher.search_heard(query, flags.k, flags.filter)


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
    track_only = {"--start-s": flags.start_s, "--end-s": flags.end_s, "--exclude-same": flags.exclude_same}
    given = [name for name, value in track_only.items() if value is not None]
    if flags.audio is not None and given:
        parser.error(f"{', '.join(given)}: only with --track")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


if __name__ == "__main__":
    run_script(main)
