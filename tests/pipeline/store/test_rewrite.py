from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.location import StoreLocation
from pipeline.schema import FRAMES
from pipeline.store import read_parts
from pipeline.store.ledger import join_keys
from pipeline.store.parts import Part, write_part
from pipeline.store.rewrite import Rewrite, rewrite_parts
from tests.pipeline.store.test_parts import build_frames

PARTITION = {"recipe": "musicfm-l7-test", "resolution": "8hz"}
FRAME_ROWS = build_frames(12, 3, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreLocation:
    return StoreLocation(str(tmp_path_factory.mktemp("rewrite")))


def write_parts(store: StoreLocation, rows: Sequence[Sequence[int]]) -> list[Part]:
    url = store.table_url("frames")
    parts = [write_part(FRAME_ROWS.take(sorted(own)), "frames", url, PARTITION, "run1") for own in rows if own]
    return sorted(parts, key=lambda part: str(part.min_track_id))


def read_part(store: StoreLocation, part: Part) -> pa.Table:
    return pq.ParquetFile(f"{store.url}/frames/{part.path}").read()


@settings(deadline=None, max_examples=30)
@given(
    owners=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    dead=st.sets(st.integers(0, 11)),
    in_order=st.booleans(),
    read_bytes=st.sampled_from([1, 2**26]),
)
def test_the_live_rows_stay_in_order(
    store: StoreLocation, owners: list[int], dead: set[int], in_order: bool, read_bytes: int
) -> None:
    owners = sorted(owners) if in_order else owners
    parts = write_parts(store, [[row for row in range(12) if owners[row] == part] for part in range(4)])
    keys = join_keys(FRAME_ROWS)
    live = keys.take(pa.array([row for row in range(12) if row not in dead], pa.int64()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_parts, "READ_BYTES", read_bytes)
        part = rewrite_parts(Rewrite(parts, live if dead else None), store, "run2")
    expected = FRAME_ROWS.filter(pc.is_in(keys, live))
    if part is None:
        assert expected.num_rows == 0
        return
    stored = expected.drop_columns(["recipe", "resolution"])
    found = read_part(store, part)
    assert found.equals(stored.cast(found.schema))
    ids = expected.column("track_id").to_pylist()
    assert (part.num_rows, part.min_track_id, part.max_track_id) == (len(ids), ids[0], ids[-1])
    assert part.path.startswith("recipe=musicfm-l7-test/resolution=8hz/part-run2-")


def test_files_of_another_tool_are_encoded_again(store: StoreLocation) -> None:
    first, second = write_parts(store, [range(5), range(5, 12)])
    path = f"{store.url}/frames/{second.path}"
    pq.write_table(pq.ParquetFile(path).read(), path, compression="snappy")  # it stores Arrow's schema beside
    part = rewrite_parts(Rewrite([first, second], None), store, "run2")
    assert part is not None
    found = read_part(store, part)
    assert found.equals(
        FRAME_ROWS.select([name for name in FRAMES.names if name not in PARTITION]).cast(found.schema)
    )
    files = {path.name for path in Path(store.url).rglob("part-run2-*")}
    assert part.path.rsplit("/", 1)[1] in files


def test_a_part_that_is_gone_is_named(store: StoreLocation) -> None:
    parts = write_parts(store, [range(5), range(5, 12)])
    Path(f"{store.url}/frames/{parts[1].path}").unlink()
    for live in (None, join_keys(FRAME_ROWS)):
        with pytest.raises(StorageError):
            rewrite_parts(Rewrite(parts, live), store, "run2")
