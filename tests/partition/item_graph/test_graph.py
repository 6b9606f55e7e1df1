"""The item graph against dense float64 references, and the search for neighbours it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from partition.item_graph.graph import ItemGraph, build_item_graph
from partition.item_graph.knn import nearest
from partition.options import default_weights
from tests.support.paths import SHARED_DATA

BABY = SHARED_DATA / "baby"


def dense(graph: ItemGraph) -> np.ndarray:
    items = len(graph.indptr) - 1
    matrix = np.zeros((items, items))
    matrix[np.repeat(np.arange(items), np.diff(graph.indptr)), graph.neighbour] = graph.weight
    return matrix


def reference_lists(similarity: np.ndarray, k: int, listed: np.ndarray) -> list[list[int]]:
    """Per item: itself, then the best `listed` ([items, items] bool) others, ties by number, then itself again."""
    lists = []
    for item, row in enumerate(np.round(similarity, 9)):
        others = [j for j in np.lexsort((np.arange(len(row)), -row)) if j != item and listed[item, j]]
        lists.append(([item, *others] + [item] * k)[:k])
    return lists


def by_features(values: np.ndarray, k: int) -> np.ndarray:
    rows = values.astype(np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    filled = norm[:, 0] > 0
    rows = rows / np.where(norm > 0, norm, 1)
    return as_matrix(reference_lists(rows @ rows.T, k, filled[:, None] & filled[None, :]))


def by_cooccurrence(user: np.ndarray, item: np.ndarray, users: int, items: int, k: int) -> np.ndarray:
    matrix = np.zeros((users, items))
    matrix[user, item] = 1
    common = matrix.T @ matrix
    norm = np.maximum(np.sqrt(np.diag(common)), 1)
    return as_matrix(reference_lists(common / norm[:, None] / norm[None, :], k, common > 0))


def as_matrix(lists: list[list[int]]) -> np.ndarray:
    """1/k on every entry of a list, repeated entries added."""
    matrix = np.zeros((len(lists), len(lists)))
    for item, row in enumerate(lists):
        np.add.at(matrix[item], row, 1 / len(row))
    return matrix


def awkward(items: int, dim: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    """Random rows with zeros, twins, scaled twins, and more copies of one row than there are neighbours."""
    values = np.random.default_rng(seed).normal(size=(items, dim))
    values[[3, 17]] = 0
    values[8] = values[30]
    values[9] = 4 * values[31]
    values[10] = -values[32]
    values[40:60] = values[5]
    return values.astype(dtype)


@pytest.mark.parametrize("k", [1, 2, 7, 10, 75])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_equals_a_dense_reference(modalities: int, k: int) -> None:
    dtypes = (np.float32, np.float16, np.float64)
    features = {f"m{n}": awkward(75, 5 + 3 * n, n, dtypes[n]) for n in range(modalities)}
    weights = {"m0": 0.5, "m1": 2.0, "m2": 1.0}
    # A block that does not divide the items: several blocks of queries and of the index, the last one short.
    graph = build_item_graph(features, weights, k, block=8)
    total = sum(weights[name] for name in features)
    expected = sum(weights[name] / total * by_features(values, k) for name, values in features.items())
    np.testing.assert_allclose(dense(graph), expected, atol=1e-7)
    assert graph.recall == 1.0
    assert graph.indptr.dtype == graph.neighbour.dtype == np.int64
    assert graph.weight.dtype == np.float32
    assert (graph.weight > 0).all()


def test_the_block_does_not_matter() -> None:
    features = {"image": awkward(300, 16, 1), "text": awkward(300, 9, 2)}
    graphs = [build_item_graph(features, default_weights(list(features)), 10, block=block) for block in (7, 64, 4096)]
    for graph in graphs[1:]:
        np.testing.assert_array_equal(graph.neighbour, graphs[0].neighbour)
        np.testing.assert_array_equal(graph.weight, graphs[0].weight)


def test_more_neighbours_than_items() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_allclose(
        dense(build_item_graph({"a": values}, {"a": 1.0}, 10)), np.full((6, 6), 1 / 6), rtol=1e-6
    )


def test_one_item() -> None:
    np.testing.assert_array_equal(dense(build_item_graph({"a": np.ones((1, 4))}, {"a": 1.0}, 10)), [[1.0]])


def test_an_item_is_its_own_neighbour_among_many_copies() -> None:
    values = np.tile(np.random.default_rng(0).normal(size=(1, 37)), (900, 1))
    found, _ = nearest(values, 5, approximate=False, block=128, seed=0, name="a")
    np.testing.assert_array_equal(found[:, 0], np.arange(900))
    np.testing.assert_array_equal(found[500:, 1:], np.tile(np.arange(4), (400, 1)))  # the lowest numbers
    np.testing.assert_array_equal(found[2, 1:], [0, 1, 3, 4])


def test_a_row_of_zeros_keeps_to_itself() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    values[:, 0] = np.abs(values[:, 0])
    values[7] = 0
    values[11] = [-9, 0, 0]  # opposed to nearly all: a zero row would otherwise be the best it can get
    matrix = dense(build_item_graph({"a": values}, {"a": 1.0}, 5))
    assert matrix[7, 7] == 1
    assert np.count_nonzero(matrix[:, 7]) == 1
    only_zeros = dense(build_item_graph({"a": np.zeros((5, 3), np.float16)}, {"a": 1.0}, 3))
    np.testing.assert_array_equal(only_zeros, np.eye(5))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    values = awkward(75, 6, 0, np.float64)
    np.testing.assert_allclose(dense(build_item_graph({"a": scale * values}, {"a": 1.0}, 6)), by_features(values, 6))


@pytest.mark.parametrize("work", [1, 40, 1 << 23])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_cooccurrence_equals_a_dense_reference(k: int, work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.item_graph.graph.COOCCURRENCE_WORK", work)
    users, items = 50, 30
    pairs = np.unique(np.random.default_rng(1).zipf(1.4, (400, 2)) % [users, items - 2], axis=0)  # two items unseen
    user, item = pairs.T
    values = awkward(75, 6, 0)[:items]
    graph = build_item_graph(
        {"a": values}, {"a": 0.6}, k, cooccurrence=(user, item, users), cooccurrence_weight=0.2, block=8
    )
    expected = 0.75 * by_features(values, k) + 0.25 * by_cooccurrence(user, item, users, items, k)
    np.testing.assert_allclose(dense(graph), expected, atol=1e-7)


def test_a_weight_of_zero_leaves_a_modality_out() -> None:
    features = {"a": awkward(75, 6, 0), "b": awkward(75, 6, 1)}
    np.testing.assert_allclose(
        dense(build_item_graph(features, {"a": 0.0, "b": 3.0}, 5)), by_features(features["b"], 5), rtol=1e-6
    )


def clustered(items: int, dim: int, clusters: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(clusters, dim))
    return (centres[rng.integers(0, clusters, items)] + 0.5 * rng.normal(size=(items, dim))).astype(np.float16)


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the other items of lists b [n, k] that lists a have, too."""
    return float(np.mean([len(np.intersect1d(x[1:], y[1:])) / len(y[1:]) for x, y in zip(a, b, strict=True)]))


def test_approximate_search_finds_nearly_all() -> None:
    values = clustered(5000, 24, 60)
    exact, _ = nearest(values, 10, approximate=False, block=1024, seed=0, name="a")
    found, recall = nearest(values, 10, approximate=True, block=1024, seed=0, name="a")
    again, _ = nearest(values, 10, approximate=True, block=1024, seed=0, name="a")
    np.testing.assert_array_equal(found, again)
    assert (found[:, 0] == np.arange(len(values))).all()
    actual = shared(found, exact)
    assert actual > 0.9
    assert recall == pytest.approx(actual, abs=0.03)  # of a sample
    assert recall < 1  # it is measured


def test_approximate_search_looks_further_where_there_are_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(3000, 32))
    exact, _ = nearest(values, 10, approximate=False, block=1024, seed=0, name="a")
    found, recall = nearest(values, 10, approximate=True, block=1024, seed=0, name="a")
    assert recall >= 0.95
    assert shared(found, exact) > 0.93
    monkeypatch.setattr("partition.item_graph.knn.RECALL_TARGET", 0.0)
    found, recall = nearest(values, 10, approximate=True, block=1024, seed=0, name="a")
    assert shared(found, exact) == pytest.approx(recall, abs=0.03)
    assert recall < 0.8


def test_approximate_above_a_size() -> None:
    values = np.concatenate([clustered(2000, 16, 20), np.zeros((3, 16), np.float16)])
    exact = build_item_graph({"a": values}, {"a": 1.0}, 10, approximate_above=2003)
    approximate = build_item_graph({"a": values}, {"a": 1.0}, 10, approximate_above=2002)
    assert exact.recall == 1.0
    assert 0.9 < approximate.recall <= 1.0
    assert np.array_equal(approximate.neighbour[-3:], [2000, 2001, 2002])
    np.testing.assert_allclose(np.add.reduceat(approximate.weight, approximate.indptr[:-1]), 1, atol=1e-5)


@pytest.mark.skipif(not BABY.is_dir(), reason=f"no real data: {BABY} does not exist")
@pytest.mark.parametrize(("modality", "least"), [("image", 0.955), ("text", 0.963)])
def test_baby_has_its_true_neighbours(modality: str, least: float) -> None:
    """The features are reconstructed: .96 of their neighbours are those of the original ones."""
    truth = np.load(BABY / f"{modality}_knn10.npz")["idx"]
    values = np.load(BABY / f"{modality}_feat.npy")
    found, _ = nearest(values, 10, approximate=False, block=4096, seed=0, name=modality)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert least < recall < least + 0.01


def test_a_matrix_that_was_stored_by_columns() -> None:
    values = np.random.default_rng(0).standard_normal((30, 6))
    by_rows, by_columns = (build_item_graph({"text": v}, {"text": 1.0}, 5) for v in (values, np.asfortranarray(values)))
    np.testing.assert_array_equal(by_columns.neighbour, by_rows.neighbour)


def test_a_modality_that_an_item_lacks_gives_it_no_neighbours_and_no_weight() -> None:
    rng, k = np.random.default_rng(0), 6
    weights = {"a": 0.2, "b": 0.5, "c": 0.3, "unused": 0.0}
    features = {name: rng.normal(size=(60, 4)) for name in weights}
    missing = {name: rng.random(60) < 0.4 for name in ("a", "b", "unused")}
    missing["a"][:2] = missing["b"][:2] = True
    missing["c"] = np.arange(60) < 1  # item 0 lacks all three that have a weight
    for name, mask in missing.items():
        features[name][mask] = 0
    found = dense(build_item_graph(features, weights, k, missing=missing))
    expected = np.zeros((60, 60))
    for item in range(60):
        has = [name for name in weights if not missing.get(name, np.zeros(60, bool))[item]]
        whole = sum(weights[name] for name in has)
        for name in has if whole else []:
            expected[item] += weights[name] / whole * by_features(features[name], k)[item]
        if not whole:
            expected[item, item] = 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_masks_that_mark_nothing_change_no_bit_of_the_graph() -> None:
    features = {"a": awkward(75, 5, 0), "b": awkward(75, 8, 1)}
    weights, pairs = {"a": 0.1, "b": 0.9}, (np.array([0, 0, 1, 1, 2]), np.array([3, 5, 5, 9, 3]), 3)
    nothing = {"a": np.zeros(75, bool)}
    plain, masked = (
        build_item_graph(features, weights, 7, cooccurrence=pairs, cooccurrence_weight=0.4, missing=mask)
        for mask in (None, nothing)
    )
    for name in ("indptr", "neighbour", "weight"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(masked, name))
