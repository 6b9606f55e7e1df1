"""Searches of faiss on several threads whose results do not depend on how many there are.

faiss multiplies matrices by a BLAS, and the last bits of a product depend on how a BLAS divides it among threads: two
machines would find different neighbours where cosines are nearly equal. Here queries are divided into chunks of one
size, and each chunk is the work of one thread, in which faiss and its BLAS have no other.

Shapes: n queries or rows of width d.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import scipy.sparse as sp

CHUNK = 2048  # queries; smaller ones take twice the time
PASSES = 10  # of k-means

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # queries -> scores and numbers, a row per query


def in_chunks(search: Search, queries: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `search` finds for the queries [n, d]."""
    chunks = [queries[begin : begin + CHUNK] for begin in range(0, len(queries), CHUNK)]
    with ThreadPoolExecutor(threads, "faiss", faiss.omp_set_num_threads, (1,)) as pool:
        found = list(pool.map(search, chunks))
    scores, numbers = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(numbers)


def centroids(rows: np.ndarray, count: int, seed: int, threads: int) -> np.ndarray:
    """Spherical k-means.

    Args:
        rows: [n, d] float32 unit rows, n >= count.
        count: number of centroids.
        seed: of the rows that are the first centroids, or replace one to which no row is nearest.
        threads: that search.

    Returns:
        [count, d] float32 unit rows.
    """
    rng = np.random.default_rng(seed)
    centre = rows[rng.permutation(len(rows))[:count]]
    one, begin = np.ones(len(rows), np.float32), np.arange(len(rows) + 1)
    for _ in range(PASSES):
        nearest = in_chunks(lambda queries: knn(queries, centre, 1), rows, threads)[1][:, 0]  # noqa: B023  used at once
        member = sp.csr_array((one, nearest, begin), shape=(len(rows), count))
        centre = member.T @ rows
        empty = np.bincount(nearest, minlength=count) == 0
        centre[empty] = rows[rng.integers(len(rows), size=np.count_nonzero(empty))]
        centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return centre


def knn(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and numbers of the `count` rows with the highest, by query, by comparison with all."""
    score, number = faiss.knn(queries, rows, count, metric=faiss.METRIC_INNER_PRODUCT)
    return score, number
