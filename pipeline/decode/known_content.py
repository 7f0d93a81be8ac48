"""Known content: which files need no decoding, because the store has their bytes under some id, or must not.

Every decode task is given the start of each known hash, eight bytes a track: a million take 8 MB. A hit is looked
up by its whole hash where the store is known (``store.takeover``), so that nothing rests on 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_HEX_DIGITS = 16


@dataclass(frozen=True)
class KnownContent:
    """What need not be decoded, under whatever id.

    Args:
        prefixes: From ``list_prefixes``.
        sizes_bytes: Sizes of those files that the store has; each once.
    """

    prefixes: NDArray[np.uint64]
    sizes_bytes: pa.Array


def list_prefixes(hashes: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the first 64 bits of each hash, sorted.

    Args:
        hashes: SHA-256 as 64 hexadecimal digits; what is none is left out.
    """
    whole = hashes.filter(pc.fill_null(pc.match_substring_regex(hashes, r"^[0-9a-f]{64}$"), False))
    text = "".join(pc.utf8_slice_codeunits(whole, 0, _HEX_DIGITS).to_pylist())
    return np.unique(np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64))


def is_known(content_hash: str, known: NDArray[np.uint64]) -> bool:
    """Say whether a hash may be one of those that ``list_prefixes`` was given; it always does where it is."""
    prefix = np.uint64(int(content_hash[:_HEX_DIGITS], 16))
    position = int(np.searchsorted(known, prefix))
    return position < len(known) and bool(known[position] == prefix)
