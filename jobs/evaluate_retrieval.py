"""Score a store's index against what is known to be similar: recall@k, MAP, nDCG."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain, whole_number
from jobs.program import run_script
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.index.vector_index import VectorIndex
    from pipeline.search.evaluate import RetrievalReport
    from pipeline.search.ground_truth import GroundTruth
    from pipeline.storage import Options

FORMATS = ("pairs", "lastfm", "lastfm-db", "cliques", "tags")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when it broke off, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)
    start_s = time.monotonic()

    def run() -> int:
        with parser.loading("the index"):
            from pipeline.index.vector_index import VectorIndex
            from pipeline.location import StoreLocation

        index = VectorIndex.open(
            StoreLocation(flags.store, dict(flags.storage_option)), "global", flags.recipe, flags.cache
        )
        truth = read_truth(flags.format, flags.truth, dict(flags.truth_option))
        artist_filter = flags.format == "tags" if flags.artist_filter is None else flags.artist_filter

        def evaluate(index: VectorIndex) -> RetrievalReport:
            return evaluate_index(index, truth, artist_filter, flags.k, flags.depth, flags.max_queries)

        report = evaluate(index)
        print_report(report)
        line = {
            **asdict(report),
            "distance": index.manifest.distance,
            "by_distance": compare_distances(index, evaluate) if flags.compare_distances else None,
            "artist_filter": artist_filter,
            "truth": flags.truth,
            "recipe": index.manifest.recipe,
            "store_version": index.manifest.store_version,
            "seconds": round(time.monotonic() - start_s, 3),
        }
        print(json.dumps(line), flush=True)
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None = None) -> OneLineParser:
    """Build the command's parser."""
    parser = OneLineParser(program, __doc__, "--store ~/features --truth pairs.csv -k 1,10")
    parser.add_argument(
        "--store", required=True, metavar="URL", help="feature store with an index of global vectors"
    )
    parser.add_argument("--recipe", metavar="ID", help="where the store has indexes of several recipes")
    parser.add_argument(
        "--truth", required=True, metavar="URL", help="file or folder of what is known to be similar"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="pairs",
        help="pairs: CSV or Parquet of query_id, relevant_id[, grade]; lastfm: folder of the Last.fm data set's "
        "JSON files; lastfm-db: its lastfm_similars.db; cliques: a SecondHandSongs list; tags: CSV or Parquet "
        "of track_id, tag[, artist], or a folder of those JSON files",
    )
    parser.add_argument(
        "--artist-filter",
        action=argparse.BooleanOptionalAction,
        help="a track of the query's own artist is neither relevant nor ranked; by default for tags",
    )
    parser.add_argument("-k", type=_parse_counts, default="1,10,100", metavar="N,…", help="ranks to score at")
    parser.add_argument(
        "--depth",
        type=whole_number(1),
        default=1000,
        metavar="N",
        help="ranks that MAP looks at, no fewer than -k",
    )
    parser.add_argument(
        "--max-queries", type=whole_number(1), metavar="N", help="draw so many; by default all are scored"
    )
    add_switch(
        parser,
        "--compare-distances",
        "also build an exact index by each distance in a temporary folder, and score those",
    )
    parser.add_argument("--cache", metavar="DIR", help="copies of an index that lies in object storage")
    add_storage_option(parser, "--storage-option", "the store")
    add_storage_option(parser, "--truth-option", "--truth")
    return parser


def read_truth(format_name: str, path: str, options: Options) -> GroundTruth:
    """Read what is known to be similar.

    Args:
        format_name: One of ``FORMATS``.
        path: File or folder.
        options: File system options.
    """
    from pipeline.search import ground_truth

    if format_name == "lastfm-db":
        return ground_truth.read_lastfm_database(path)
    readers = {
        "pairs": ground_truth.read_pairs,
        "lastfm": ground_truth.read_lastfm_folder,
        "cliques": ground_truth.read_cliques,
        "tags": ground_truth.read_tags,
    }
    return readers[format_name](path, options)


def evaluate_index(
    index: VectorIndex,
    truth: GroundTruth,
    artist_filter: bool,
    k_values: Sequence[int],
    depth: int,
    max_queries: int | None,
) -> RetrievalReport:
    """Score the rankings of an index of global vectors.

    Raises:
        UsageError: No query can be evaluated, or the artist filter has no artists to go by.
    """
    import numpy as np

    from pipeline.search.evaluate import evaluate_rankings
    from pipeline.search.ground_truth import leave_out_same_artist
    from pipeline.search.neighbors import find_neighbors

    track_ids = index.tracks.column("track_id").to_pylist()
    has_vector = index.tracks.column("num_vectors").to_numpy() > 0
    position_of = {track_id: position for position, track_id in enumerate(track_ids) if has_vector[position]}
    groups = None
    if artist_filter:
        artists = {**truth.artists, **_read_artists(index)}
        groups = _number_artists([artists.get(track_id) for track_id in track_ids])
        if (groups < 0).all():
            raise UsageError(
                "the artist filter needs artists, and neither catalog nor ground truth has any; give "
                "--no-artist-filter"
            )
        truth = leave_out_same_artist(truth, artists)
    depth = max(1, min(max(depth, *k_values), len(position_of) - 1))

    def rank_tracks(query_ids: Sequence[str]) -> list[list[str]]:
        positions = np.array([position_of[query_id] for query_id in query_ids], np.int64)
        _, found = find_neighbors(index, positions, depth, groups)
        return [[track_ids[position] for position in row if position >= 0] for row in found]

    return evaluate_rankings(truth, list(position_of), rank_tracks, k_values, depth, max_queries)


def compare_distances(
    index: VectorIndex, evaluate: Callable[[VectorIndex], RetrievalReport]
) -> dict[str, dict[str, Any]]:
    """Score the store of an index by every distance that it allows, and print a line of each.

    Args:
        index: Of global vectors; its store is read, as it is published now.
        evaluate: Scores an index.

    Returns:
        Recall, nDCG and MAP by distance.
    """
    from pipeline.index.alternative import open_alternative
    from pipeline.index.space import DISTANCES
    from pipeline.store.snapshot import NoVectorsError

    found: dict[str, dict[str, Any]] = {}
    for distance in DISTANCES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with open_alternative(
                    index.location.store, index.manifest.recipe, distance, folder
                ) as alternative:
                    report = evaluate(alternative)
            except NoVectorsError as error:
                print(f"  {distance}: {error}")
                continue
        figures = " ".join(f"recall@{k} {value:.4f}" for k, value in report.recall.items())
        print(f"  {distance:<13} {figures}  MAP {report.mean_average_precision:.4f}")
        found[distance] = {
            name: value
            for name, value in asdict(report).items()
            if name in ("recall", "ndcg", "mean_average_precision")
        }
    return found


def print_report(report: RetrievalReport) -> None:
    """Print the figures for people."""
    print(
        f"{report.num_queries} queries with {report.num_relevant:.1f} relevant tracks on average; left out: "
        f"{report.num_absent} not in the catalog, {report.num_without_relevant} with nothing relevant in it, "
        f"{report.num_not_drawn} not drawn"
    )
    for k in report.recall:
        print(f"  recall@{k:<5} {report.recall[k]:.4f}   nDCG@{k:<5} {report.ndcg[k]:.4f}")
    print(f"  MAP over {report.depth} ranks {report.mean_average_precision:.4f}")


def _read_artists(index: VectorIndex) -> dict[str, str]:
    columns = (index.tracks.column(name).to_pylist() for name in ("track_id", "artist"))
    return {track_id: artist for track_id, artist in zip(*columns, strict=True) if artist}


def _number_artists(artists: Sequence[str | None]) -> np.ndarray:
    import numpy as np

    numbers: dict[str, int] = {}
    return np.array([-1 if not name else numbers.setdefault(name, len(numbers)) for name in artists], np.int64)


def _parse_counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(item) for item in text.split(",") if item.strip().isdecimal())
    if not counts or min(counts) < 1 or len(counts) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,10,100; found {text!r}")
    return counts


if __name__ == "__main__":
    run_script(main)
