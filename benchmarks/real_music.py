"""Recordings whose beats are known from a score: what Debian has as audio and as MIDI.

Planet Blupi's music comes as recordings and as the MIDI files that they were made of, Frets on Fire's songs with
the MIDI files that players follow. A file's tempo gives its beats; the two are aligned file by file
(``benchmarks.alignment``), and where that is not sure the file is left out. Bars are not taken from them: what
the files call one is not always heard as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.alignment import Alignment, align, measure_lateness
from benchmarks.charts import SAMPLE_RATE_HZ
from pipeline.decode.audio import decode_audio
from pipeline.errors import UsageError
from training.corpus import REVIEW, fetch_package
from training.packages import remove_parts
from training.review import Paragraph, Review, read_review

BLUPI, MULDJORD, SECTOID = "planetblupi-music-ogg", "fretsonfire-songs-muldjord", "fretsonfire-songs-sectoid"
SCORES = {BLUPI: "planetblupi-music-midi", MULDJORD: MULDJORD, SECTOID: SECTOID}
"""Packages of recordings, and of the scores to them."""
SONG, NOTES = "song.ogg", "notes.mid"
EXCERPT_S = 90.0  # from the middle of each piece


@dataclass(frozen=True)
class Piece:
    """An excerpt of a recording.

    Args:
        name: Package and file.
        is_heard: Whether the model in the box was trained on it, without any labels.
        waveform: Mono at 24 kHz, float32.
        beats_s: Times of the beats within it.
        alignment: Of the whole recording to its score.
    """

    name: str
    is_heard: bool
    waveform: npt.NDArray[np.float32]
    beats_s: tuple[float, ...]
    alignment: Alignment


def fetch_pieces(folder: Path) -> Iterator[Piece]:
    """Have the packages downloaded and unpacked, those that are there aside, and return an excerpt of each piece.

    Args:
        folder: Where packages and audio are kept; made if need be.

    Raises:
        CorpusError: A package cannot be had, or is not what was reviewed.
        UsageError: pretty_midi is not installed.
    """
    _load_reader()  # before anything is downloaded
    review = add_scores(read_review(REVIEW))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    for package, scores in SCORES.items():
        names = dict.fromkeys((package, scores))
        files = [path for name in names for _, path in fetch_package(folder, review, name)]
        for path in files:
            if path.suffix == ".ogg":
                name = f"{package}/{path.parent.name if path.name == SONG else path.stem}"
                yield cut_piece(name, review.name_split(package) == "train", path, find_score(path, files))


def add_scores(review: Review) -> Review:
    """Return a review of what is wanted here alone: the recordings as reviewed, and the scores to them."""
    paragraphs = []
    for package, scores in SCORES.items():
        (audio,) = review.choose_paragraphs(package)
        if scores == package:
            files = (*audio.files, f"*/{NOTES}")
            paragraphs.append(_change(audio, package, files))
        else:
            paragraphs += [audio, _change(audio, scores, ("*.mid",))]
    return Review(tuple(paragraphs), review.held_out, review.aliases, review.sha256)


def _change(paragraph: Paragraph, package: str, files: tuple[str, ...]) -> Paragraph:
    terms = (paragraph.author, paragraph.licence, paragraph.source)
    return Paragraph(package, paragraph.version, paragraph.folder, files, *terms)


def find_score(recording: Path, files: list[Path]) -> Path:
    """Return the score to a recording: beside it, or of the same name in the other package."""
    for path in files:
        is_beside = path.parent == recording.parent and path.name == NOTES
        if path.suffix == ".mid" and (is_beside or path.stem == recording.stem):
            return path
    raise UsageError(f"expected a score to {recording} in Debian's packages, found none: they are other versions")


def cut_piece(name: str, is_heard: bool, recording: Path, score: Path) -> Piece:
    """Align a recording with its score, and cut an excerpt out of its middle.

    Args:
        name: What to call it.
        is_heard: Whether the model in the box was trained on it.
        recording: Any audio file.
        score: A MIDI file of one tempo.

    Raises:
        UsageError: pretty_midi is not installed.
        TrackError: The recording cannot be decoded.
    """
    midi = _load_reader()(str(score))
    notes = [note for instrument in midi.instruments for note in instrument.notes]
    onsets_s, loudness = np.array([(note.start, note.velocity) for note in notes], np.float64).T
    beats_s = midi.get_beats()
    beat_s = float(np.median(np.diff(beats_s)))
    waveform = decode_audio(recording.read_bytes()).waveform
    alignment = align(onsets_s, loudness, beat_s, waveform)
    beats_s = beats_s + measure_lateness(onsets_s, beat_s) + alignment.offset_s
    num_samples = min(len(waveform), round(EXCERPT_S * SAMPLE_RATE_HZ))
    first = (len(waveform) - num_samples) // 2
    within_s = beats_s - first / SAMPLE_RATE_HZ
    kept = within_s[(within_s >= 0) & (within_s < num_samples / SAMPLE_RATE_HZ)]
    return Piece(name, is_heard, waveform[first : first + num_samples].copy(), tuple(kept.tolist()), alignment)


def _load_reader() -> type:
    try:
        from pretty_midi import PrettyMIDI
    except ImportError as error:
        raise UsageError("expected pretty_midi to read scores, found none: pip install pretty_midi") from error
    reader: type = PrettyMIDI
    return reader
