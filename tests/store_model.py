"""What a store must hold after any runs, as plain dicts, and what can happen to a catalog between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.location import StoreLocation
from tests.rows import at_second, read_store
from tests.runs import ERRORS, Catalog, Track

EDITS = [
    "new content",
    "new content",
    "first content",
    "touch",
    "retitle",
    "corrupt",
    "deny",
    "lose",
    "repair",
    "restore",
    "remove",
]


@dataclass
class Model:
    """What the store must hold: the rules of a run, on dicts."""

    tracks: dict[tuple[str, str], tuple[Track, frozenset[str]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    frames: set[tuple[str, str, str, str]] = field(default_factory=set)

    def fails(self, track_id: str, track: Track, recipes: Sequence[str], resolutions: frozenset[str]) -> bool:
        """Say whether a run finds the track wanting: a file that needs no look is not found to be out of reach."""
        return track.state != "sound" and not (
            track.state == "denied"
            and all(self.is_settled(track_id, track, recipe, resolutions) for recipe in recipes)
        )

    def is_settled(self, track_id: str, track: Track, recipe: str, resolutions: frozenset[str]) -> bool:
        then, held = self.tracks.get((recipe, track_id), (None, frozenset()))
        return then is not None and (then.uri, then.second) == (track.uri, track.second) and resolutions <= held

    def process(
        self,
        catalog: Catalog,
        ids: set[str],
        recipes: Sequence[str],
        resolutions: frozenset[str],
        ledger: bool = True,
    ) -> None:
        """Apply a run to some tracks; without the ledger, as far as it got when it was killed before that."""
        for track_id in ids:
            track = catalog[track_id]
            fails = self.fails(track_id, track, recipes, resolutions)
            for key in [(recipe, track_id) for recipe in recipes]:
                if fails:
                    self.failures[key] = ERRORS[track.state][1]
                    continue
                self.failures.pop(key, None)
                then, held = self.tracks.get(key, (None, frozenset()))
                same = then is not None and then.content == track.content
                if ledger:
                    self.tracks[key] = (track, (held if same else frozenset()) | resolutions)
        if ledger:
            self.frames |= {
                (recipe, name, track_id, track.content)
                for (recipe, track_id), (track, held) in self.tracks.items()
                for name in held
            }

    def prune(self, catalog: Catalog, recipes: Sequence[str]) -> int:
        departed = [key for key in self.tracks if key[0] in recipes and key[1] not in catalog]
        for key in departed:
            del self.tracks[key]
        for key in [key for key in self.failures if key[0] in recipes and key[1] not in catalog]:
            del self.failures[key]  # of tracks that never got into the store as well
        return len({track_id for _, track_id in departed})

    def check(self, store: StoreLocation) -> None:
        tracks = read_store(store, "tracks")
        assert len(tracks) == len(self.tracks)
        for row in tracks:
            track, resolutions = self.tracks[row["recipe"], row["track_id"]]
            found = (row["uri"], row["modified_time"], row["title"], row["content_hash"])
            assert found == (track.uri, at_second(track.second), track.title, track.content)
            assert sorted(row["resolutions"]) == sorted(resolutions)
        failures = read_store(store, "failures")
        assert len(failures) == len(self.failures)
        assert {(row["recipe"], row["track_id"]): row["error_type"] for row in failures} == self.failures


def edit_catalog(
    catalog: dict[str, Track], last_good: dict[str, Track], edit: str, track_id: str, now: int
) -> None:
    """Let something happen to a track; its content is new, the last that was sound, or the first."""
    track = catalog.get(track_id)
    if edit == "remove":
        catalog.pop(track_id, None)
    elif edit == "first content":
        catalog[track_id] = Track(f"/{track_id}", f"first content of {track_id}", now)
    elif track is None or edit == "new content":
        catalog[track_id] = Track(f"/{track_id}", f"content {now}", now)
    elif edit == "touch":
        catalog[track_id] = replace(track, second=now)
    elif edit == "retitle":
        catalog[track_id] = replace(track, title=f"title {now}")
    elif edit == "corrupt":
        catalog[track_id] = replace(track, uri=f"/{track_id}", state="corrupt", second=now)
    elif edit == "deny":
        catalog[track_id] = replace(last_good[track_id], state="denied")
    elif edit == "lose":
        catalog[track_id] = replace(track, state="missing", uri=None)
    elif edit == "repair":
        catalog[track_id] = replace(last_good[track_id], second=now)
    elif edit == "restore":
        catalog[track_id] = last_good[track_id]
    if track_id in catalog and catalog[track_id].state == "sound":
        last_good[track_id] = catalog[track_id]
