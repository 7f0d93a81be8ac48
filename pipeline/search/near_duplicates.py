"""Near-duplicates: from which score on two recordings are likely one.

No fixed cosine would do: a model's vectors share a direction, and how close strangers lie depends on the model.
So the mark is set by the catalog itself, at a quarter of the typical distance (1 - cosine) between a track and
its nearest other, or at more of it in the space of tracks' moments. Measured on 184 held-out excerpts with the
trained nano at layer 2 (record 28): of copies as mp3 at 64 kbit/s 96.7 % lie within that (99.5 % within-track), of
copies a semitone off 76 % (96 %), and a stranger lies within it of 1.1 % (2.2 %).
Passages of moments are compared after whitening, where strangers stay low whatever the model: at most 0.44 in
some 800 trials, while re-encoded tracks have 0.7 to 0.95 in the median.
"""

from __future__ import annotations

import numpy as np

from pipeline.index.vector_index import VectorIndex
from pipeline.search.neighbors import find_neighbors

SHARE_OF_TYPICAL_DISTANCE = 0.25
SHARE_WITHIN_TRACK = 0.4  # there a recording's own excerpts lie nearer together, and strangers farther off
MOMENT_SCORE = 0.5
NUM_SAMPLED = 256


def choose_near_duplicate_score(index: VectorIndex) -> float:
    """Return the score from which on a hit is marked as a near-duplicate.

    Args:
        index: The index that is searched. Of global vectors, the nearest neighbours of a sample are looked up.

    Returns:
        A score; just under 1 where there are no two tracks to compare.
    """
    if index.manifest.resolution != "global":
        return MOMENT_SCORE
    positions = np.flatnonzero(index.tracks.column("num_vectors").to_numpy() > 0)
    sample = np.random.default_rng(0).choice(positions, min(NUM_SAMPLED, len(positions)), replace=False)
    scores, _ = find_neighbors(index, sample, 1)
    known = scores[np.isfinite(scores)]
    typical = float(np.median(1 - known)) if len(known) else 0.0
    share = SHARE_WITHIN_TRACK if index.manifest.distance == "within-track" else SHARE_OF_TYPICAL_DISTANCE
    return 1 - max(share * typical, 1e-5)  # to about 1e-5 equal vectors have cosine 1
