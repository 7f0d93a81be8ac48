"""Fetch the corpus: download Debian's packages, keep their music, check it, drop what is there twice, list it.

    python -m training.corpus --out FOLDER [--list]

Nothing is installed, and root is not needed. Afterwards FOLDER holds ``packages/`` (the downloads), ``audio/``
(the files as they were published), and ``manifest.csv``, ``train.csv`` and ``held_out.csv``, each a catalog that
``--audio`` takes. A run that was cut short goes on with the package that it was at, one that was not does nothing.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.packages import download_package, extract_audio, is_whole, remove_parts, require_version
from training.recordings import MIN_DURATION_S, Recording, find_duplicates, read_recording
from training.review import CorpusError, Review, read_review

REVIEW = Path(__file__).with_name("corpus.toml")
MIN_HELD_OUT = 150

COLUMNS = (
    *("track_id", "uri", "title", "artist", "album", "genre", "split", "package", "version"),
    *("author", "licence", "source", "duration_s", "content_hash"),
)
Track = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 where the corpus cannot be had as it was reviewed."""
    parser = argparse.ArgumentParser(prog="corpus", description="Fetch free music from Debian's packages.")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where it goes; made if need be")
    parser.add_argument("--list", action="store_true", help="print what each package holds")
    options = parser.parse_args(arguments)
    try:
        summary = fetch_corpus(options.out.resolve(), read_review(REVIEW), MIN_HELD_OUT)
    except CorpusError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 2
    if options.list:
        print(format_list(read_tracks(options.out / "manifest.csv")))
    print(json.dumps(summary))
    return 0


def fetch_corpus(folder: Path, review: Review, min_held_out: int) -> dict[str, Any]:
    """Make the corpus in a folder, or see that it is there.

    Args:
        folder: Where to; absolute.
        review: What is taken of which package.
        min_held_out: How many tracks must be held out.

    Returns:
        What the corpus holds, in numbers.

    Raises:
        CorpusError: A package cannot be had or is not the reviewed one, a file is broken, an artist stands on both
            sides of the split, or too few tracks are held out.
    """
    if (summary := _find_whole_corpus(folder, review)) is not None:
        return summary
    remove_parts(folder)
    tracks, recordings = [], []
    for package in review.packages:
        files = fetch_package(folder, review, package)
        print(f"{package}: {len(files)} files", file=sys.stderr)
        for track, path in files:
            recording = read_recording(path)
            if recording.duration_s >= MIN_DURATION_S:
                tracks.append(describe_track(track, recording, review))
                recordings.append(recording)
    repeats = find_duplicates(recordings)
    for later, earlier in repeats.items():
        print(f"{tracks[later]['track_id']} repeats {tracks[earlier]['track_id']}: left out", file=sys.stderr)
    kept = [track for position, track in enumerate(tracks) if position not in repeats]
    check_split(kept, min_held_out)
    for name, split in (("train", {"train"}), ("held_out", {"held_out"}), ("manifest", {"train", "held_out"})):
        write_tracks(folder / f"{name}.csv", [track for track in kept if track["split"] in split])
    summary = {**count_tracks(kept), "num_repeats_left_out": len(repeats), "review_sha256": review.sha256}
    (folder / "corpus.json").write_text(json.dumps(summary))
    return summary


def fetch_package(folder: Path, review: Review, package: str) -> list[tuple[Track, Path]]:
    """Return a package's files with their terms; download and unpack it, if that was not done before.

    Raises:
        CorpusError: As ``fetch_corpus``.
    """
    paragraphs = review.choose_paragraphs(package)
    cache, audio = folder / "packages", folder / "audio" / package
    cache.mkdir(parents=True, exist_ok=True)
    file = download_package(package, cache)
    version = require_version(file, paragraphs)
    if not is_whole(audio):
        extract_audio(file, paragraphs, audio)
    listed = []
    for path in sorted(audio.rglob("*")):
        name = path.relative_to(audio).as_posix()
        names = {name, name.removesuffix(path.suffix)}  # an ending may have been given to it
        terms = next((p for p in paragraphs if any(p.covers(each) for each in names)), None)
        if path.is_file() and terms is not None:
            track = {
                "track_id": f"{package}/{name.removeprefix(terms.folder + '/').removesuffix(path.suffix)}",
                "uri": path.relative_to(folder).as_posix(),
                "split": review.name_split(package),
                "package": package,
                "version": version,
                "author": terms.author,
                "licence": terms.licence,
                "source": terms.source,
            }
            listed.append((track, path))
    return listed


def describe_track(track: Track, recording: Recording, review: Review) -> Track:
    """Add what the file itself tells to a track's terms."""
    return {
        **track,
        "title": recording.title,
        "artist": review.name_artist(recording.artist, track["author"]),
        "album": recording.album,
        "genre": recording.genre,
        "duration_s": round(recording.duration_s, 3),
        "content_hash": recording.content_hash,
    }


def check_split(tracks: Sequence[Track], min_held_out: int) -> None:
    """Make sure that training and held-out tracks have no artist in common, and that enough are held out.

    Raises:
        CorpusError: They have, or too few are, or two tracks have one id.
    """
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for track in tracks:
        sides[track["artist"].casefold()].add(track["split"])
    if both := sorted(artist for artist, splits in sides.items() if len(splits) > 1):
        raise CorpusError(f"{', '.join(both)} would be trained on and held out: move a package in corpus.toml")
    num_held_out = sum(track["split"] == "held_out" for track in tracks)
    if num_held_out < min_held_out:
        raise CorpusError(f"expected at least {min_held_out} tracks held out, found {num_held_out}")
    if len({track["track_id"] for track in tracks}) < len(tracks):
        raise CorpusError("two files of the corpus have one track_id: tell their folders apart in corpus.toml")


def count_tracks(tracks: Sequence[Track]) -> dict[str, Any]:
    """Count tracks, hours, artists and packages."""
    hours = dict.fromkeys(("train", "held_out"), 0.0)
    for track in tracks:
        hours[track["split"]] += float(track["duration_s"]) / 3_600
    return {
        "num_tracks": len(tracks),
        "num_held_out": sum(track["split"] == "held_out" for track in tracks),
        "train_hours": round(hours["train"], 2),
        "held_out_hours": round(hours["held_out"], 2),
        "num_artists": len({track["artist"] for track in tracks}),
        "num_packages": len({track["package"] for track in tracks}),
    }


def format_list(tracks: Sequence[Track]) -> str:
    """Return a Markdown table of the packages: split, tracks, hours and licences."""
    groups: defaultdict[str, list[Track]] = defaultdict(list)
    for track in tracks:
        groups[track["package"]].append(track)
    lines = ["| package | split | tracks | hours | licences |", "|---|---|---|---|---|"]
    for package, group in sorted(groups.items()):
        hours = sum(float(track["duration_s"]) for track in group) / 3_600
        licences = ", ".join(sorted({track["licence"] for track in group}))
        lines.append(f"| {package} | {group[0]['split']} | {len(group)} | {hours:.2f} | {licences} |")
    return "\n".join(lines)


def write_tracks(path: Path, tracks: Sequence[Track]) -> None:
    """Write tracks as a manifest."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(tracks)


def read_tracks(path: Path) -> list[Track]:
    """Read what ``write_tracks`` wrote; all values are text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _find_whole_corpus(folder: Path, review: Review) -> dict[str, Any] | None:
    """Return the summary of an earlier run of the same review, if all its files are there, whole."""
    try:
        summary: dict[str, Any] = json.loads((folder / "corpus.json").read_text())
        tracks = read_tracks(folder / "manifest.csv")
    except (OSError, ValueError):
        return None
    is_same = summary.get("review_sha256") == review.sha256 and len(tracks) == summary.get("num_tracks")
    return summary if is_same and all(is_whole(folder / "audio" / name) for name in review.packages) else None


if __name__ == "__main__":
    sys.exit(main())
