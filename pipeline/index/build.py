"""Build: make an index from the published snapshot, or bring the one that is there up to date with it.

A build reads the store once, into segments of half-precision rows, and works from those: sampling, training,
encoding, measuring. ``follow`` does less where it can. Plain functions do the work; ``dataflow`` maps
the same ones over Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.index.codes import (
    AXES_SAMPLE,
    TRAINING_ROWS_PER_LIST,
    Axes,
    choose_num_lists,
    describe_codes,
    find_axes,
    map_index,
    merge_codes,
    remove_codes,
    serialise_codes,
    train_codes,
)
from pipeline.index.draft import Draft, IndexSettings, add_places, choose_kind, describe_draft, save_file
from pipeline.index.files import IndexLocation, fetch_file, remove_files, working_folder
from pipeline.index.follow import follow
from pipeline.index.manifest import (
    IndexManifest,
    find_index,
    list_versions,
    publish,
    read_manifest,
    remove_index,
    remove_old_versions,
)
from pipeline.index.quality import measure_quality, tune
from pipeline.index.segments import (
    WrittenSegments,
    encode_segment,
    fit_map,
    join_segments,
    place_rows,
    sample_rows,
    write_shard,
)
from pipeline.index.statistics import choose_distance, fit_space
from pipeline.index.vector_index import VectorIndex, mark_rows
from pipeline.location import StoreLocation
from pipeline.store.snapshot import NoVectorsError
from pipeline.store.source import Source, open_source

logger = logging.getLogger(__name__)

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

RECALL_MARGIN = 0.03  # measured so far below the target, a follow-up becomes a rebuild
SHARD_ROWS = 100_000  # ledger rows or frame rows that one task reads
TUNING_QUERIES = 200


def build_index(store: StoreLocation, settings: IndexSettings, run_map: Map = map) -> IndexManifest:
    """Make an index of the published snapshot, or bring the present one up to date with it.

    Args:
        store: The store.
        settings: What to make.
        run_map: Maps a function over items: the built-in, or one that spreads the work.

    Returns:
        The manifest of the newest version: the present one where nothing was published since.

    Raises:
        NoVectorsError: There is no such recipe, or it has no vectors at this resolution; an index that was made of
            it before is removed.
        UsageError: The recipe has to be named.
        StorageError: The store or the index cannot be read or written, or a file of the index is damaged.
        RunError: The build measures less than ``min_recall``, or another build was faster; nothing is published.
    """
    source = _open_source(store, settings)
    location = IndexLocation(store, source.recipe, source.resolution)
    versions = list_versions(location)
    previous = _read_newest(location, versions, settings.rebuild)
    if previous is not None and previous.store_version > source.store_version:
        raise RunError(
            f"the index at {location.url} is of snapshot {previous.store_version}, this build read snapshot "
            f"{source.store_version}: another build was faster, and nothing is published"
        )
    kept = None if previous is None or settings.rebuild else previous.distance
    settings = replace(settings, distance=settings.distance or choose_distance(source, kept))
    if previous is not None and not _meets(previous, settings):
        previous = None
    if previous is not None and previous.store_version == source.store_version:
        return previous
    version = max(versions, default=0) + 1
    with working_folder(location, settings.cache) as folder:
        if previous is not None:
            draft = follow(previous, source, location, settings, folder)
            manifest = None if draft is None else _finish(draft, source, location, settings, version, folder, True)
            if manifest is not None:
                return manifest
        draft = build(source, location, settings, folder, run_map)
        finished = _finish(draft, source, location, settings, version, folder, False)
    assert finished is not None
    return finished


def _open_source(store: StoreLocation, settings: IndexSettings) -> Source:
    """Open what an index is made of; where nothing of it is left in the store, what was made of it goes as well.

    Raises:
        UsageError: As ``open_source``.
        StorageError: The store cannot be read, or the index not be removed.
    """
    try:
        return open_source(store, settings.resolution, settings.recipe)
    except NoVectorsError as error:
        try:
            location = find_index(store, settings.resolution, settings.recipe)
        except UsageError:
            raise error from None  # there is none either
        remove_index(location)
        raise NoVectorsError(
            f"{error}. The index of recipe {location.recipe} that was made before is removed, so that nothing "
            "finds what is gone"
        ) from error


def _read_newest(location: IndexLocation, versions: Sequence[int], may_be_damaged: bool) -> IndexManifest | None:
    try:
        return read_manifest(location, versions[-1]) if versions else None
    except StorageError:
        if may_be_damaged:
            return None
        raise


def _meets(previous: IndexManifest, settings: IndexSettings) -> bool:
    """Say whether an index is of the kind and the quality asked for; a follow-up keeps both."""
    if settings.rebuild or settings.kind not in (None, previous.kind) or settings.distance != previous.distance:
        return False
    if previous.parameters.get("target_recall", settings.target_recall) != settings.target_recall:
        return False
    return settings.min_recall is None or bool(previous.quality["recall_at_10"] >= settings.min_recall)


def build(
    source: Source, location: IndexLocation, settings: IndexSettings, folder: str, run_map: Map = map
) -> Draft:
    """Make an index anew.

    Args:
        source: The snapshot.
        location: Where the index goes.
        settings: What to make.
        folder: For files that are not finished.
        run_map: Maps a function over items.

    Raises:
        StorageError: The store cannot be read, or the index not be written.
        UsageError: No vector was found.
    """
    distance = settings.distance or "plain"
    space = fit_space(distance, source)
    write = partial(write_shard, source=source, location=location, space=space, cache=settings.cache)
    written = join_segments(run_map(write, _list_shards(source)))
    if not written.files:
        raise UsageError(
            f"expected vectors of resolution {source.resolution} in the store at {location.store.url}, found "
            "none; check the store with musicfm check"
        )
    segments = [map_index(fetch_file(location, file, settings.cache)) for file in written.files]
    embed_dim = int(segments[0].d)
    axes = find_axes(sample_rows(segments, AXES_SAMPLE))
    projection = fit_map(axes)
    place = partial(place_rows, location=location, projection=projection, cache=settings.cache)
    placed = np.concatenate(list(run_map(place, written.files)))
    files = {"map": save_file(location, folder, "map.npy", projection, settings.cache)}
    if space is not None:
        files["space"] = save_file(location, folder, "space.npy", space.to_array(), settings.cache)
    kind = settings.kind or choose_kind(written.num_rows * embed_dim)
    parameters: dict[str, Any] = {}
    if kind == "ivf":
        codes = _encode(written, segments, axes, location, settings, run_map)
        parameters = describe_codes(codes)
        files["codes"] = save_file(location, folder, "codes.faiss", codes, settings.cache)
    return Draft(
        kind,
        embed_dim,
        written.files,
        add_places(written.owners, placed, 0),
        files,
        parameters,
        training={"num_tracks": written.owners.num_rows, "num_changed": 0},
        distance=distance,
    )


def _encode(
    written: WrittenSegments,
    segments: Sequence[Any],
    axes: Axes,
    location: IndexLocation,
    settings: IndexSettings,
    run_map: Map,
) -> Any:
    """Train codes on a sample and fill them, segment by segment."""
    num_lists = choose_num_lists(written.num_rows)
    codes = train_codes(sample_rows(segments, TRAINING_ROWS_PER_LIST * num_lists), axes, num_lists)
    trained = serialise_codes(codes)
    encode = partial(encode_segment, location=location, trained=trained, cache=settings.cache)
    firsts = np.cumsum([0, *(file.num_rows for file in written.files)])
    for filled in run_map(encode, zip(written.files, firsts.tolist(), strict=False)):
        merge_codes(codes, filled)
    dead = ~mark_rows(written.owners, written.num_rows)
    if dead.any():
        remove_codes(codes, dead)
    return codes


def _list_shards(source: Source) -> list[list[str]]:
    """Group neighbouring parts into tasks."""
    shards: list[list[str]] = [[]]
    num_rows = 0
    for path, rows in zip(
        *(source.parts.column(name).to_pylist() for name in ("path", "num_records")), strict=True
    ):
        if num_rows >= SHARD_ROWS:
            shards.append([])
            num_rows = 0
        shards[-1].append(path)
        num_rows += rows or 0
    return shards


def _finish(
    draft: Draft,
    source: Source,
    location: IndexLocation,
    settings: IndexSettings,
    version: int,
    folder: str,
    is_follow_up: bool,
) -> IndexManifest | None:
    """Measure a draft and publish it; None for a follow-up that has lost too much recall."""
    manifest = describe_draft(draft, source, location, settings, version, folder)
    try:
        index = VectorIndex(location, manifest, settings.cache)
        if draft.kind == "ivf" and not is_follow_up:
            manifest.parameters.update(tune(index, settings.target_recall, TUNING_QUERIES))
            manifest.parameters["target_recall"] = settings.target_recall
        quality = _measure(index, draft.kind, is_follow_up, settings)
        if is_follow_up and quality["recall_at_10"] < settings.target_recall - RECALL_MARGIN:
            logger.warning("recall@10 fell to %.3f: the index is built anew", quality["recall_at_10"])
            _discard(location, manifest)
            return None
        if settings.min_recall is not None and quality["recall_at_10"] < settings.min_recall:
            raise RunError(
                f"nothing was published: the index measures recall@10 {quality['recall_at_10']:.3f}, below the "
                f"{settings.min_recall} asked for; raise --target-recall, or choose --kind exact"
            )
        manifest = replace(manifest, quality=quality)
        publish(location, manifest)
    except RunError:
        _discard(location, manifest)
        raise
    remove_old_versions(location, manifest)
    return manifest


def _measure(index: VectorIndex, kind: str, is_follow_up: bool, settings: IndexSettings) -> dict[str, Any]:
    """Measure an index; a follow-up, which must not cost what it spares, by few queries if they leave no doubt."""
    few, many = (4, 40) if kind == "exact" else (32, 200)
    if is_follow_up:
        quality = measure_quality(index, few)
        limit = max(settings.target_recall - RECALL_MARGIN, settings.min_recall or 0.0)
        if quality["recall_at_10"] >= limit:
            return quality
    return measure_quality(index, many)


def _discard(location: IndexLocation, manifest: IndexManifest) -> None:
    """Remove the files of a draft that no published version names."""
    try:
        published = [read_manifest(location, version) for version in list_versions(location)]
    except StorageError:
        return  # a version was cleared away meanwhile: what is left over goes with a later build
    kept = {file.name for other in published if other is not None for file in other.all_files}
    remove_files(location, {file.name for file in manifest.all_files} - kept)
