"""Which tracks of an index are shown: all that are not taken down in the store, as of now."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.withheld import Withheld, WithheldWatch

Mask = npt.NDArray[np.bool_]


class ShownTracks:
    """Marks of an index's tracks; an index follows the store later than a take-down holds.

    Args:
        track_ids: Of the index.
        withheld: What is taken down.
    """

    def __init__(self, track_ids: pa.ChunkedArray, withheld: WithheldWatch) -> None:
        self._track_ids = track_ids
        self._withheld = withheld
        self._marked: tuple[Withheld, Mask] | None = None

    def mark(self) -> Mask:
        """Look what is taken down, and mark the others; not to be written to."""
        withheld = self._withheld.read()
        marked = self._marked
        if marked is None or marked[0] is not withheld:
            hidden = pc.is_in(self._track_ids, pa.array(sorted(withheld.ids), pa.string()))
            marked = self._marked = withheld, ~np.asarray(hidden.to_numpy(), np.bool_)
        return marked[1]
