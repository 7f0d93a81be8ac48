"""Make the similarity index of a store, or bring the one that is there up to date with the published snapshot."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, add_switch, run_or_explain
from jobs.program import run_script
from pipeline.config import DEFAULT_INDEX_CACHE, RESOLUTIONS

DISTANCES = ("plain", "centred", "whitened", "within-track")

if TYPE_CHECKING:
    from pipeline.index.manifest import IndexManifest


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 when done, 1 when nothing could be published, 2 for a mistake in the call."""
    parser = OneLineParser(program, __doc__, "--store ~/features --resolution 0.5hz")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store")
    parser.add_argument(
        "--resolution", choices=tuple(RESOLUTIONS), default="global", help="global: tracks; 0.5hz: moments"
    )
    parser.add_argument("--recipe", metavar="ID", help="which recipe, where the store has several")
    parser.add_argument("--kind", choices=("exact", "ivf"), help="by default what the size asks for")
    parser.add_argument(
        "--distance",
        choices=DISTANCES,
        help="of whole tracks: cosine of the vectors as they are, less their mean, whitened by the catalog's "
        "covariance, or by how its tracks' moments vary; by default within-track from 50 tracks with stored "
        "moments (0.5hz) on, else plain",
    )
    parser.add_argument(
        "--target-recall", type=_share, default=0.95, metavar="R", help="recall@10 that an ivf search is tuned to"
    )
    parser.add_argument(
        "--min-recall", type=_share, metavar="R", help="publish nothing that measures a lower recall@10"
    )
    add_switch(parser, "--rebuild", "start anew even where a follow-up would do")
    add_switch(parser, "--ray", "spread the work over a Ray cluster")
    parser.add_argument(
        "--cache", default=DEFAULT_INDEX_CACHE, metavar="DIR", help="copies of what lies in object storage"
    )
    add_storage_option(parser, "--storage-option", "the store")
    flags = parser.parse_args(arguments)
    start_s = time.monotonic()

    def run() -> int:
        with parser.loading("the index library"):
            from pipeline.index.build import build_index
            from pipeline.index.draft import IndexSettings
            from pipeline.location import StoreLocation

        settings = IndexSettings(
            resolution=flags.resolution,
            recipe=flags.recipe,
            kind=flags.kind,
            distance=flags.distance,
            target_recall=flags.target_recall,
            min_recall=flags.min_recall,
            rebuild=flags.rebuild,
            cache=flags.cache,
        )
        store = StoreLocation(flags.store, dict(flags.storage_option))
        if flags.ray:
            with parser.loading("Ray"):  # few calls need it
                from pipeline.index.dataflow import map_over_ray

            manifest = build_index(store, settings, map_over_ray)
        else:
            manifest = build_index(store, settings)
        print_report(manifest, time.monotonic() - start_s)
        return 0

    return run_or_explain(parser, run)


def print_report(manifest: IndexManifest, seconds: float) -> None:
    """Print what was made for people, then one line of JSON for programs."""
    quality, sizes = manifest.quality, manifest.sizes
    print(
        f"version {manifest.version} of snapshot {manifest.store_version}: {manifest.num_vectors} vectors of "
        f"{manifest.num_tracks} tracks, kind {manifest.kind}, distance {manifest.distance}, in {seconds:.1f} s"
    )
    print(
        f"  recall@10 {quality['recall_at_10']:.3f} on {quality['num_queries']} held-out queries, "
        f"{quality.get('median_ms', 0):.2f} ms median, {quality.get('p95_ms', 0):.2f} ms p95, one thread"
    )
    print(
        f"  {sizes['memory_bytes'] / 2**20:.1f} MiB in memory, {sizes['mapped_bytes'] / 2**20:.1f} MiB "
        f"of rows mapped, {sizes['disk_bytes'] / 2**20:.1f} MiB on disk"
    )
    line = {
        "recipe": manifest.recipe,
        "resolution": manifest.resolution,
        "kind": manifest.kind,
        "distance": manifest.distance,
        "version": manifest.version,
        "store_version": manifest.store_version,
        "num_tracks": manifest.num_tracks,
        "num_vectors": manifest.num_vectors,
        "parameters": manifest.parameters,
        "quality": quality,
        "sizes": sizes,
        "seconds": round(seconds, 3),
    }
    print(json.dumps(line), flush=True)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number over 0 and up to 1, found {text}")
    return value


if __name__ == "__main__":
    run_script(main)
