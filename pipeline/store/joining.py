"""Joining: several parts of one partition become one, their row groups carried over as they are.

A write task's part is as large as its block, and small at low resolutions. Nothing is decoded: to encode values
again would cost more than to write them did. The joined file is read as any other (docs/decisions/0030).
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from pipeline.errors import StorageError
from pipeline.storage import Options, create_file, join_url, read_file, remove_file
from pipeline.store.footer import MAGIC, Struct, join_footers, split_file
from pipeline.store.parts import Part, name_part

logger = logging.getLogger(__name__)

TARGET_PART_BYTES = 2**28
"""What a part of ``frames`` that is joined has at most: three blocks of 64 clips at 50 Hz, nine at 8 Hz."""
_NUM_REMOVED_AT_ONCE = 32  # a removal is mostly waited for


class DifferentSchemasError(StorageError):
    """Parts that other tools have written cannot be joined as they are."""


Partition = tuple[str | None, str | None]


def plan_joins(
    parts: Iterable[Part], first_ids: Mapping[Partition, Sequence[str]], target_bytes: int = TARGET_PART_BYTES
) -> list[list[Part]]:
    """Group parts that may become one: neighbours of one partition, with no other part between them.

    A joined part is sorted, as those it is made of are. A block that comes late, beside much later ones, stays by
    itself, so that no part reaches over all that was committed between.

    Args:
        parts: Not committed yet.
        first_ids: Of each partition, the smallest track id of each part that this run has committed, sorted.
        target_bytes: What a group has at most; a larger part is a group of its own.

    Returns:
        Groups of one part and more, by partition and track id.
    """
    by_partition: dict[Partition, list[Part]] = defaultdict(list)
    for part in parts:
        by_partition[part.recipe, part.resolution].append(part)
    groups: list[list[Part]] = []
    for partition, members in by_partition.items():
        members.sort(key=lambda part: str(part.min_track_id))
        others = first_ids.get(partition, ())
        groups.append(members[:1])
        size_bytes = members[0].size_bytes
        for before, part in pairwise(members):
            size_bytes += part.size_bytes
            if size_bytes > target_bytes or not _are_neighbours(before, part, others):
                groups.append([])
                size_bytes = part.size_bytes
            groups[-1].append(part)
    return groups


def _are_neighbours(before: Part, after: Part, first_ids: Sequence[str]) -> bool:
    last, first = str(before.max_track_id), str(after.min_track_id)
    return last < first and bisect_right(first_ids, last) == bisect_left(first_ids, first)


def join_parts(parts: Sequence[Part], table_url: str, run_id: str, options: Options | None = None) -> Part:
    """Write some parts' row groups, in their order, as one new file of their table; they stay where they are.

    Args:
        parts: Of one partition.
        table_url: Where the table lies.
        run_id: The run that writes; part of the file's name.
        options: File system options.

    Returns:
        The new part, which no reader sees before a commit adds it.

    Raises:
        DifferentSchemasError: They are not of one schema, to the last word of their footers.
        StorageError: One cannot be read or is damaged, or nothing can be written.
    """
    partition = {"recipe": parts[0].recipe, "resolution": parts[0].resolution}
    path = name_part({name: value for name, value in partition.items() if value is not None}, run_id)
    size_bytes = _write_joined(parts, path, table_url, options)
    first = min(str(part.min_track_id) for part in parts)
    last = max(str(part.max_track_id) for part in parts)
    num_rows = sum(part.num_rows for part in parts)
    return Part(parts[0].recipe, parts[0].resolution, path, size_bytes, num_rows, first, last)


def _write_joined(parts: Sequence[Part], path: str, table_url: str, options: Options | None) -> int:
    """Write parts as one file; return its size."""
    footers: list[Struct] = []
    shifts: list[int] = []
    with create_file(join_url(table_url, path), options) as file:
        file.write(MAGIC)
        for part in parts:  # one at a time in memory
            body, footer = _read_part(part, table_url, options)
            shifts.append(file.tell() - len(MAGIC))
            footers.append(footer)
            file.write(body)
            del body
        end = join_footers(footers, shifts)
        if end is None:
            raise DifferentSchemasError(f"expected parts of one schema, found several: {parts[0].path} and others")
        file.write(end)
        return int(file.tell())


def remove_parts(parts: Iterable[Part], table_url: str, options: Options | None = None) -> None:
    """Remove parts that no commit names; where that fails they are left for a vacuum.

    Args:
        parts: Which.
        table_url: Where their table lies.
        options: File system options.
    """
    urls = [join_url(table_url, part.path) for part in parts]
    with ThreadPoolExecutor(_NUM_REMOVED_AT_ONCE) as pool:
        removals = [pool.submit(remove_file, url, options) for url in urls]
    errors = [error for removal in removals if (error := removal.exception()) is not None]
    if errors:
        logger.warning("%d parts that were joined are left for a vacuum: %s", len(errors), errors[0])


def _read_part(part: Part, table_url: str, options: Options | None) -> tuple[memoryview, Struct]:
    try:
        return split_file(read_file(join_url(table_url, part.path), options))
    except ValueError as error:
        raise StorageError(
            f"{part.path} of {table_url} is damaged: {error}; bring it back from a backup"
        ) from error
