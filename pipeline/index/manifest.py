"""What an index says of itself, and how a version of it is published, found and cleared away.

::

    <store>/indexes/<recipe>/<resolution>/files/<uuid>.*          immutable, shared by later versions
    <store>/indexes/<recipe>/<resolution>/versions/00000007.json  one manifest a version, written last

The highest number is the index. A manifest is created exclusively, as a commit of Delta Lake is: of two builders
that started from version 6 one makes version 7 and the other is told so, and no reader ever sees half an index.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, StorageError, UsageError
from pipeline.index.files import IndexFile, IndexLocation, describe_error, remove_files
from pipeline.index.space import Distance
from pipeline.location import StoreLocation
from pipeline.storage import join_url, list_files, open_filesystem, read_file, remove_file
from pipeline.store.tables import has_tables

INDEX_FORMAT = 2
READABLE_FORMATS = (1, 2)  # 1 knew no spaces: its vectors are compared as they are
ORPHAN_HOURS = 24  # a file that no version names may belong to a build that still runs


@dataclass(frozen=True)
class IndexManifest:
    """What one version of an index holds; the one object that publishes it.

    Args:
        recipe: Recipe id of the vectors.
        definition: The recipe as JSON: everything that was hashed into its id.
        resolution: ``global``, or a resolution with frames.
        kind: ``exact`` or ``ivf``.
        embed_dim: Dimensions of an indexed vector; a space may leave some out.
        num_vectors: Vectors that a search can return.
        num_tracks: Tracks that they belong to.
        store_version: Version of ``tracks`` that was indexed.
        frames_version: Version of ``frames`` that goes with it.
        version: Number of this version of the index.
        created_time: When it was built, ISO 8601, UTC.
        segments: Files of half-precision unit vectors, in the order of their rows; dead rows among them.
        files: The other files by role: ``tracks``, ``map``, and ``parts``, ``codes`` and ``space`` where there are
            any.
        parameters: How it is searched (``nprobe``, ``depth``) and was trained.
        quality: What was measured against exact search on held-out queries.
        training: Rows at the last training or rebuild, and how many changed since.
        sizes: Bytes on disk, in memory, and of the same vectors in float32.
        distance: In which space vectors are compared; a query is placed in it first.
    """

    recipe: str
    definition: str
    resolution: str
    kind: str
    embed_dim: int
    num_vectors: int
    num_tracks: int
    store_version: int
    frames_version: int
    version: int
    created_time: str
    segments: tuple[IndexFile, ...]
    files: Mapping[str, IndexFile]
    parameters: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    distance: Distance = "plain"
    format: int = INDEX_FORMAT

    @property
    def version_id(self) -> str:
        """The version as its manifest's name spells it."""
        return f"{self.version:08d}"

    @property
    def all_files(self) -> tuple[IndexFile, ...]:
        """Every file that this version needs."""
        return (*self.segments, *self.files.values())

    def to_json(self) -> str:
        """Return the manifest as JSON with its own checksum."""
        body = asdict(self)
        return json.dumps({"manifest": body, "sha256": _hash_body(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, url: str) -> IndexManifest:
        """Read a manifest.

        Args:
            text: Its JSON.
            url: Where it came from, for the messages.

        Raises:
            StorageError: It is damaged, or of another format.
        """
        try:
            document = json.loads(text)
            body, stated = document["manifest"], document["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"expected the manifest of an index at {url}, found other text; rebuild it"
            ) from error
        if body.get("format") not in READABLE_FORMATS:
            raise StorageError(
                f"expected format 1 or 2 of the index at {url}, found {body.get('format')}; rebuild it"
            )
        if _hash_body(body) != stated:
            raise StorageError(f"the manifest at {url} is damaged: its checksum differs; rebuild the index")
        body["segments"] = tuple(IndexFile(**segment) for segment in body["segments"])
        body["files"] = {role: IndexFile(**file) for role, file in body["files"].items()}
        return cls(**body)


def list_indexes(store: StoreLocation) -> list[IndexLocation]:
    """Return where the indexes of a store lie, by recipe and resolution."""
    try:
        listed = list_files(join_url(store.url, "indexes"), store.options)
        paths = [path.split("/") for path in listed.column("path").to_pylist()]
    except StorageError:
        paths = []  # nothing there yet; a store that cannot be reached says so when it is read
    indexed = sorted({(path[0], path[1]) for path in paths if len(path) == 4 and path[2] == "versions"})
    return [IndexLocation(store, recipe, resolution) for recipe, resolution in indexed]


def find_index(store: StoreLocation, resolution: str, recipe: str | None = None) -> IndexLocation:
    """Find the index of a store at one resolution.

    Args:
        store: The store.
        resolution: ``global``, or a resolution with frames.
        recipe: Recipe id; may be left out where only one recipe is indexed.

    Raises:
        UsageError: There is none, or the recipe has to be named.
    """
    indexed = [(location.recipe, location.resolution) for location in list_indexes(store)]
    recipes = [name for name, its_resolution in indexed if its_resolution == resolution and recipe in (None, name)]
    if len(recipes) == 1:
        return IndexLocation(store, recipes[0], resolution)
    wanted = f"resolution {resolution}" + (f", recipe {recipe}" if recipe else "")
    if recipes:
        raise UsageError(
            f"the store at {store.url} has indexes of {', '.join(recipes)} at {wanted}; name one with --recipe"
        )
    if not indexed and not has_tables(store):
        raise UsageError(
            f"no index for {wanted}: there is no feature store at {store.url}; make one with musicfm embed, and "
            "its index with musicfm index"
        )
    known = ", ".join(f"{name}/{its_resolution}" for name, its_resolution in indexed) or "none"
    command = "musicfm index" if resolution == "global" else f"musicfm index --resolution {resolution}"
    raise UsageError(
        f"no index for {wanted} in the store at {store.url} (found: {known}); make one with {command} --store "
        f"{store.url}, where the catalog was embedded with --resolutions {resolution}"
    )


def remove_index(location: IndexLocation) -> None:
    """Remove an index whole, its manifests first: nobody opens what is half gone.

    Raises:
        StorageError: It cannot be listed, or a file not be removed.
    """
    paths = list_files(location.url, location.store.options).column("path").to_pylist()
    for path in sorted(paths, key=lambda path: not path.startswith("versions/")):
        remove_file(join_url(location.url, path), location.store.options)


def is_removed(location: IndexLocation) -> bool:
    """Say whether an index that was there is gone; of storage that does not answer nothing is said."""
    try:
        return not list_files(join_url(location.url, "versions"), location.store.options).num_rows
    except StorageError as error:
        return isinstance(error.__cause__, FileNotFoundError)


def list_versions(location: IndexLocation) -> list[int]:
    """Return the numbers of the versions that are there, ascending; empty where there is no index."""
    try:
        paths = list_files(join_url(location.url, "versions"), location.store.options).column("path").to_pylist()
    except StorageError:
        return []
    return sorted(int(path.removesuffix(".json")) for path in paths if path.removesuffix(".json").isdigit())


def read_manifest(location: IndexLocation, version: int | None = None) -> IndexManifest | None:
    """Read the manifest of a version, by default the newest; None where there is no index.

    Raises:
        StorageError: It is damaged, of another format, or cannot be read.
    """
    versions = list_versions(location) if version is None else [version]
    if not versions:
        return None
    url = location.version_url(versions[-1])
    return IndexManifest.from_json(read_file(url, location.store.options), url)


def publish(location: IndexLocation, manifest: IndexManifest) -> None:
    """Make a version the one that searchers open, if its number is still free and still the highest.

    Raises:
        RunError: Another builder published meanwhile; its index stays.
        StorageError: The manifest cannot be written.
    """
    url = location.version_url(manifest.version)
    lost = (
        f"another build published an index at {location.url} while this one ran; that one stays and this one is "
        "thrown away: run the same command again to bring it up to date"
    )
    if any(version >= manifest.version for version in list_versions(location)):
        raise RunError(lost)
    fs, path = open_filesystem(url, location.store.options)
    data = manifest.to_json().encode()
    try:
        if fs.async_impl:
            fs.pipe_file(path, data, mode="create")
        else:
            _create_local(Path(path), data)
    except FileExistsError as error:
        raise RunError(lost) from error
    except Exception as error:
        if manifest.version in list_versions(location):
            raise RunError(lost) from error  # an object store's refusal comes in many guises
        raise StorageError(f"cannot write {url}: {describe_error(error)}") from error
    if list_versions(location)[-1] != manifest.version:
        raise RunError(lost)


def remove_old_versions(location: IndexLocation, current: IndexManifest) -> list[str]:
    """Remove versions before the last but one, and the files that only they named.

    A searcher that opened the last version goes on with it; what it has mapped stays readable even longer. Files
    of builds that never published go once they are a day old.

    Returns:
        Names of the removed files.
    """
    versions = [version for version in list_versions(location) if version < current.version]
    kept = {file.name for file in current.all_files}
    old = set()
    for version in versions:
        with suppress(StorageError):
            manifest = read_manifest(location, version)
            names = {file.name for file in manifest.all_files} if manifest else set()
            if version == versions[-1]:
                kept |= names
            else:
                old |= names
    oldest = datetime.now(UTC) - timedelta(hours=ORPHAN_HOURS)
    listed = list_files(join_url(location.url, "files"), location.store.options)
    for name, written in zip(listed.column("path").to_pylist(), listed.column("modified_time"), strict=True):
        if written.is_valid and written.as_py() < oldest:
            old.add(name)
    for version in versions[:-1]:
        with suppress(StorageError):
            remove_file(location.version_url(version), location.store.options)
    remove_files(location, old - kept)
    return sorted(old - kept)


def _create_local(path: Path, data: bytes) -> None:
    """Create a file exclusively and whole: it has its name only once its bytes are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _hash_body(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
