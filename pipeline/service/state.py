"""What the service answers from: the newest index of each resolution, and the model where there is one.

A newer index takes over between two requests. A request keeps the index that it began with; the old one goes with
the last of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.config import RESOLUTIONS
from pipeline.errors import FeatureStoreError, StorageError, UsageError
from pipeline.index.files import IndexLocation
from pipeline.index.manifest import find_index, is_removed
from pipeline.index.vector_index import VectorIndex
from pipeline.location import StoreLocation
from pipeline.search.query import AudioQuery
from pipeline.search.searcher import Searcher
from pipeline.service.catalog import TrackNames
from pipeline.service.guard import Access, Metrics
from pipeline.service.similarity import SIMILARITY_RESOLUTION, SelfSimilarity, compare_with_itself
from pipeline.service.uploads import UploadEmbedder
from pipeline.storage import Options
from pipeline.store.read import FeatureStore
from pipeline.store.withheld import WithheldWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, to whom, and how.

    Args:
        store: The feature store that the indexes lie beside.
        resolutions: Of the indexes; by default all that the store has.
        recipe: Recipe id; may be left out where only one is indexed.
        cache: Folder for copies of an object store's indexes.
        audio_options: File system options of the catalog's audio; never logged.
        checkpoint: Name or URL of the model; None for a service without queries by audio.
        stats: URL of the normalisation file, where it does not lie beside the checkpoint.
        device: Torch device; by default a GPU if there is one.
        num_threads: Torch threads of the model.
        access: Who may ask.
        max_upload_bytes: Longer files are refused.
        max_duration_s: Longer music is refused.
        poll_interval_s: Seconds between two looks for a newer index.
    """

    store: StoreLocation
    resolutions: tuple[str, ...] = ()
    recipe: str | None = None
    cache: str | None = None
    audio_options: Options | None = field(default=None, repr=False)
    checkpoint: str | None = None
    stats: str | None = None
    device: str | None = None
    num_threads: int = 1
    access: Access = field(default_factory=Access)
    max_upload_bytes: int = 50 * 2**20
    max_duration_s: float = 1200.0
    poll_interval_s: float = 5.0


class Generation:
    """One version of one index, and what is derived from it.

    Args:
        index: The version.
        withheld: What is taken down, whatever the index has.
    """

    def __init__(self, index: VectorIndex, withheld: WithheldWatch) -> None:
        self.index = index
        self.manifest = index.manifest
        self.searcher = Searcher(index, withheld=withheld)
        self.names = TrackNames(index.tracks, self.searcher.shown.mark)

    def warm_up(self) -> None:
        """Search once, so that no request pays for what the first one does."""
        shown = np.flatnonzero(self.searcher.shown.mark())
        if len(shown):
            self.searcher.search_track(self.index.tracks.column("track_id")[int(shown[0])].as_py(), k=1)


class ServiceState:
    """The open indexes, and what else requests need.

    Args:
        settings: What is served.

    Raises:
        UsageError: There is no index, or the checkpoint is not its recipe's.
        StorageError: The store or an index cannot be read.
        CheckpointError: The checkpoint is none, or not whole.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._refreshing = threading.Lock()
        self._features: FeatureStore | None = None
        self._generations: dict[str, Generation] = {}
        self._withheld = WithheldWatch(settings.store)
        for location in find_locations(settings):
            index = VectorIndex.open(settings.store, location.resolution, location.recipe, settings.cache)
            generation = Generation(index, self._withheld)
            generation.warm_up()
            self._take_over(generation)
        self.recipe = self.generation().manifest.recipe
        self.uploads = UploadEmbedder(self._load_model()) if settings.checkpoint is not None else None

    @property
    def generations(self) -> Mapping[str, Generation]:
        """The current index of each resolution."""
        return dict(self._generations)

    def generation(self, resolution: str | None = None) -> Generation:
        """Return the current index of a resolution; by default the first one's.

        Raises:
            UsageError: That resolution is not served.
            StorageError: None is any more.
        """
        if not self._generations:
            raise StorageError(f"the store at {self.settings.store.url} has no index any more")
        if resolution is None:
            resolution = next(iter(self._generations))
        if resolution not in self._generations:
            raise UsageError(f"expected resolution {' or '.join(self._generations)}, found {resolution}")
        return self._generations[resolution]

    def refresh(self) -> list[str]:
        """Open what is newer than what is served; where that fails, go on with the old, unless it was removed.

        Returns:
            The resolutions whose index was swapped.
        """
        swapped = []
        with self._refreshing:
            for name, generation in self.generations.items():
                if is_removed(generation.index.location):
                    del self._generations[name]
                    logger.warning("the index of %s was removed with what it was made of", name)
                    continue
                try:
                    newer = generation.index.open_newer()
                    if newer is None:
                        continue
                    fresh = Generation(newer, self._withheld)
                    fresh.warm_up()
                except (FeatureStoreError, OSError, ValueError, RuntimeError) as error:
                    self.metrics.failed_swaps.labels(name).inc()
                    version = generation.manifest.version_id
                    logger.warning(
                        "version %s of %s goes on, the newer one does not open: %s", version, name, error
                    )
                    continue
                self._take_over(fresh)
                self.metrics.swaps.labels(name).inc()
                logger.info("version %s of %s takes over", fresh.manifest.version_id, name)
                swapped.append(name)
        return swapped

    def compare_with_itself(self, track_id: str) -> SelfSimilarity | None:
        """Return a track's self-similarity, or None where the store has no frames of it.

        Raises:
            UsageError: The store has no 8 Hz frames at all.
            StorageError: The store cannot be read.
        """
        features, is_fresh = self._features, False
        while True:
            if features is None:
                settings = self.settings.store
                features, is_fresh = FeatureStore(settings.url, options=settings.options), True
                self._features = features
            try:
                rows = features.frames([track_id], SIMILARITY_RESOLUTION, recipe=self.recipe)
                break
            except StorageError:
                # A snapshot's files go when the store is compacted or vacuumed: look at a new one, once.
                if is_fresh:
                    raise
                features = None
        if rows.num_rows == 0:
            return None
        frames = np.array(rows.column("embeddings")[0].values.flatten(), np.float32)
        frames = frames.reshape(rows.column("num_frames")[0].as_py(), -1)
        return compare_with_itself(frames, rows.column("frame_rate_hz")[0].as_py())

    def _load_model(self) -> AudioQuery:
        settings, manifest = self.settings, self.generation().manifest
        assert settings.checkpoint is not None
        return AudioQuery.load(
            settings.checkpoint,
            manifest.recipe,
            manifest.definition,
            settings.stats,
            settings.device,
            settings.max_duration_s,
        )

    def _take_over(self, generation: Generation) -> None:
        """Let an index answer from now on; requests that run keep theirs."""
        manifest = generation.manifest
        self._generations[manifest.resolution] = generation
        self._features = None
        self.metrics.tracks.labels(manifest.resolution).set(manifest.num_tracks)
        self.metrics.store_version.labels(manifest.resolution).set(manifest.store_version)


def find_locations(settings: ServiceSettings) -> list[IndexLocation]:
    """Return the indexes to serve, all of one recipe; by default all that there are, ``global`` first.

    Raises:
        UsageError: There is none, or the recipe has to be named.
    """
    found: list[IndexLocation] = []
    missing: dict[str, UsageError] = {}
    for name in settings.resolutions or sorted(RESOLUTIONS, key=lambda name: name != "global"):
        try:
            found.append(find_index(settings.store, name, settings.recipe))
        except UsageError as error:
            missing[name] = error
    if missing and (settings.resolutions or not found):
        raise next(iter(missing.values()))
    recipes = sorted({location.recipe for location in found})
    if len(recipes) > 1:
        raise UsageError(
            f"the store at {settings.store.url} has indexes of {', '.join(recipes)}; name one with --recipe"
        )
    for name, mistake in missing.items():
        if _is_there(settings.store, name, recipes[0]):
            raise mistake  # several recipes at that resolution
    return found


def _is_there(store: StoreLocation, resolution: str, recipe: str) -> bool:
    try:
        find_index(store, resolution, recipe)
    except UsageError:
        return False
    return True
