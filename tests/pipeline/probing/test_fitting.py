import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.probing.fitting import ALONE, Sharing


@given(st.integers(1, 200), st.integers(1, 9))
def test_workers_take_every_chunk_of_a_batch_once_and_none_goes_away_empty(
    num_chunks: int, num_workers: int
) -> None:
    batch = np.arange(num_chunks)
    parts = [Sharing(rank, num_workers).take_part(batch) for rank in range(num_workers)]
    assert min(map(len, parts)) > 0
    if num_chunks < num_workers:
        assert all(part.tolist() == batch.tolist() for part in parts)
    else:
        assert sorted(np.concatenate(parts).tolist()) == batch.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert ALONE.take_part(batch).tolist() == batch.tolist()
