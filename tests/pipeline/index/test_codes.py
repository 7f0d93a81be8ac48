from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ortho_group

from pipeline.index.codes import (
    CODE_DIM_STEP,
    add_codes,
    choose_num_lists,
    describe_codes,
    deserialise_codes,
    find_axes,
    load_codes,
    make_rows,
    map_index,
    merge_codes,
    normalise_rows,
    remove_codes,
    scan_rows,
    search_codes,
    serialise_codes,
    train_codes,
    write_index,
)
from tests.indexes import Matrix

EMBED_DIM = 192


@pytest.fixture(scope="module")
def vectors() -> Matrix:
    """Unit rows in a subspace of 20 dimensions, with a little noise."""
    random = np.random.default_rng(0)
    basis = ortho_group.rvs(EMBED_DIM, random_state=random)[:20]
    rows = random.standard_normal((2000, 20)) @ basis + 0.02 * random.standard_normal((2000, EMBED_DIM))
    return normalise_rows(rows.astype(np.float32))


@pytest.fixture
def codes(vectors: Matrix) -> object:
    codes = train_codes(vectors, find_axes(vectors), 30)
    add_codes(codes, vectors, 0)
    return codes


def recall(found: np.ndarray, vectors: Matrix, queries: Matrix) -> float:
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    return float(np.mean([np.isin(own, rows).mean() for own, rows in zip(truth, found, strict=True)]))


def test_candidates_hold_the_nearest(codes: object, vectors: Matrix) -> None:
    assert recall(search_codes(codes, vectors[:50], 30, 60), vectors, vectors[:50]) > 0.99


def test_more_lists_and_more_candidates_find_more(codes: object, vectors: Matrix) -> None:
    queries = vectors[:100]
    few, some, all_ = (recall(search_codes(codes, queries, n, 60), vectors, queries) for n in (1, 5, 30))
    assert few < some < all_
    assert recall(search_codes(codes, queries, 30, 10), vectors, queries) < all_


def test_codes_keep_the_dimensions_that_vary(codes: object) -> None:
    assert describe_codes(codes) == {"num_lists": 30, "code_dim": CODE_DIM_STEP, "code_bits": 2}


def test_isotropic_vectors_keep_all_dimensions() -> None:
    rows = normalise_rows(np.random.default_rng(0).standard_normal((3000, EMBED_DIM)).astype(np.float32))
    assert describe_codes(train_codes(rows, find_axes(rows), 5))["code_dim"] == EMBED_DIM


def test_removed_and_unwanted_rows_are_never_found(codes: object, vectors: Matrix) -> None:
    dead = np.arange(2000) % 3 == 0
    assert remove_codes(codes, dead) == dead.sum()
    assert remove_codes(codes, dead) == 0
    wanted = np.arange(2000) % 2 == 0
    found = search_codes(codes, vectors[:20], 30, 2000, wanted)
    assert {row for row in found.ravel().tolist() if row >= 0} == set(np.flatnonzero(wanted & ~dead).tolist())


def test_what_shards_encode_apart_is_what_one_encodes(codes: object, vectors: Matrix) -> None:
    empty = train_codes(vectors, find_axes(vectors), 30)
    trained = serialise_codes(empty)
    for first in (0, 700, 1400):
        shard = deserialise_codes(trained)
        add_codes(shard, vectors[first : first + 700], first)
        merge_codes(empty, serialise_codes(shard))
    queries = vectors[:40]
    assert np.array_equal(search_codes(empty, queries, 30, 20), search_codes(codes, queries, 30, 20))


def test_mapped_codes_find_what_loaded_ones_find(codes: object, vectors: Matrix, tmp_path: Path) -> None:
    path = str(tmp_path / "codes.faiss")
    write_index(codes, path)
    wanted = np.arange(2000) % 2 == 0
    mapped, loaded = (search_codes(read(path), vectors[:9], 9, 50, wanted) for read in (map_index, load_codes))
    assert np.array_equal(mapped, loaded)


def test_axes_are_those_of_a_singular_value_decomposition(vectors: Matrix) -> None:
    axes = find_axes(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(axes.mean, vectors.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(axes.variance[:20], values[:20] ** 2 / 1999, rtol=1e-4)
    aligned = np.abs((axes.directions[:20] * directions[:20]).sum(axis=1))
    np.testing.assert_allclose(aligned, 1, atol=1e-3)


def test_scans_return_inner_products_of_half_precision_rows(vectors: Matrix) -> None:
    rows = make_rows(EMBED_DIM)
    rows.add(vectors)
    half = vectors.astype(np.float16).astype(np.float64)
    scores, found = scan_rows(rows, vectors[:5], 3)
    expected = np.sort(vectors[:5] @ half.T, axis=1)[:, ::-1][:, :3]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    wanted = np.zeros(2000, np.bool_)
    wanted[[7, 11]] = True
    scores, found = scan_rows(rows, vectors[:5], 3, wanted)
    assert set(found[:, :2].ravel().tolist()) == {7, 11}
    assert np.isneginf(scores[:, 2]).all()
    assert (found[:, 2] == -1).all()


def test_rows_become_unit_rows_and_zeros_stay() -> None:
    rows = normalise_rows(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(1, 1), (160, 10), (100_000, 2529), (1_000_000, 8000), (10**8, 16384)]
)
def test_lists_grow_with_the_square_root(num_rows: int, expected: int) -> None:
    assert choose_num_lists(num_rows) == expected
