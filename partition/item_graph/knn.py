"""The nearest items by cosine, block by block: exactly, or in an inverted file whose recall is measured.

Rules of both searches: An item is its own first neighbour. A row of zeros is not similar to anything: it has no other
neighbours and is nobody else's. Cosines that agree to 2**-20 (the noise of float32) are ties, which the lower item
index wins. Items with identical rows, such as the placeholder of a missing image, are searched once and ordered by that
rule. If there are too few neighbours, the item itself fills the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np
from tqdm import tqdm

from partition.item_graph.chunks import centroids, in_chunks, knn
from partition.threads import at_once, each

RECALL_SAMPLE = 1000
RECALL_TARGET = 0.95  # an approximate search looks into more lists until it gets there
TRAINING_VALUES = 1 << 28  # limit of the float32 values on which centroids are trained: 1 GiB
QUERY_VALUES = 1 << 26  # of the rows that are searched for at a time, if that is 4 to 16 blocks: 256 MiB
# A candidate is one integer that sorts by score (best first), then by item index.
_SCALE, _NUMBER_BITS = 1 << 20, 40
_NONE = np.iinfo(np.int64).max

Search = Callable[[np.ndarray, int], np.ndarray]  # (positions [n], count) -> candidates [n, count], ascending


@dataclass(frozen=True)
class _Distinct:
    """The distinct non-zero rows of one modality, in the order of their first items."""

    first: np.ndarray  # [distinct] int64: the lowest item with this row
    of: np.ndarray  # [items] int64: position in `first`; -1 for a row of zeros
    members: np.ndarray  # [distinct, width] int64: the lowest items with this row, ascending, then -1; width <= k


def nearest(
    values: np.ndarray, k: int, *, approximate: bool, block: int, seed: int, name: str, threads: int = 1
) -> tuple[np.ndarray, float]:
    """Finds the k nearest items of every item, itself first.

    Memory: blocks of `block` to 16 * `block` unit rows, and the result; an approximate search keeps all rows in
    float16.

    Args:
        values: [items, d], any float dtype, finite; may be memory-mapped.
        k: at most the number of items.
        approximate: search in an inverted file instead of all rows.
        block: rows at a time.
        seed: of the centroids of the inverted file and of the sample on which its recall is measured.
        name: of the modality, for the progress bar.
        threads: that search; the result is the same for any number.

    Returns:
        Neighbours [items, k] int64, and the share of true neighbours (without the item itself) found for a sample of
        items; 1.0 for an exact search.
    """
    found = np.repeat(np.arange(len(values))[:, None], k, axis=1)
    distinct = _distinct(values, k, block, name, threads)
    # Twice as many as needed, so that the rule for ties decides, not the order of the search.
    count = min(2 * k, len(distinct.first))
    if k == 1 or not count:
        return found, 1.0
    search, recall = _exact(values, distinct.first, block, threads), 1.0
    if approximate:
        search, recall = _inverted_file(values, distinct.first, k, search, block, seed, name, threads)
    step = min(max(QUERY_VALUES // values.shape[1], 4 * block), 16 * block)
    for begin in tqdm(range(0, len(found), step), desc=f"item graph: {name}, search", unit="block", disable=None):
        own = begin + np.flatnonzero(distinct.of[begin : begin + step] >= 0)
        positions, inverse = np.unique(distinct.of[own], return_inverse=True)
        if len(own):
            _fill(found, own, search(positions, count)[inverse], distinct.members)
    return found, recall


def _fill(found: np.ndarray, own: np.ndarray, candidates: np.ndarray, members: np.ndarray) -> None:
    """Writes the best members of `candidates` [n, count] into the rows of `found` of the items `own` [n]."""
    score, position = candidates >> _NUMBER_BITS, candidates & ((1 << _NUMBER_BITS) - 1)
    there = candidates != _NONE
    item = members[np.where(there, position, 0)]  # [n, count, width]
    key = np.where(
        there[..., None] & (item >= 0) & (item != own[:, None, None]), (score[..., None] << _NUMBER_BITS) | item, _NONE
    ).reshape(len(own), -1)
    best = np.sort(key, axis=1)[:, : found.shape[1] - 1]
    chosen = np.where(best == _NONE, own[:, None], best & ((1 << _NUMBER_BITS) - 1))
    found[own, 1 : 1 + chosen.shape[1]] = chosen


def _distinct(values: np.ndarray, k: int, block: int, name: str, threads: int) -> _Distinct:
    items = len(values)
    digest, zero = np.empty((items, 2), np.uint64), np.empty(items, bool)

    def read(begin: int) -> None:
        # Rows of a transposed array are not contiguous.
        rows = np.ascontiguousarray(unit_rows(values, slice(begin, begin + block)))
        zero[begin : begin + len(rows)] = ~rows.any(axis=1)
        text = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
        digest[begin : begin + len(rows)] = np.frombuffer(text, np.uint64).reshape(-1, 2)
        bar.update()

    begins = range(0, items, block)
    with tqdm(total=len(begins), desc=f"item graph: {name}, read", unit="block", disable=None) as bar:
        each(read, begins, at_once(threads, 32 * block * values.shape[1]))
    filled = np.flatnonzero(~zero)
    order = filled[np.lexsort((filled, digest[filled, 1], digest[filled, 0]))]  # equal rows together, items ascending
    starts = np.ones(len(order), bool)
    starts[1:] = (digest[order[1:]] != digest[order[:-1]]).any(axis=1)
    run = np.cumsum(starts) - 1
    first = order[starts]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    of = np.full(items, -1, np.int64)
    of[order] = rank[run]
    within = np.arange(len(order)) - np.flatnonzero(starts)[run]
    kept = within < k
    members = np.full((len(first), int(within.max(initial=0, where=kept)) + 1), -1, np.int64)
    members[of[order[kept]], within[kept]] = order[kept]
    return _Distinct(np.sort(first), of, members)


def unit_rows(values: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """[n, d] float32 rows of norm 1; zero rows stay zero. Rows are divided by their largest value first."""
    chosen = values[rows].astype(np.float64)
    largest = np.abs(chosen).max(axis=1, keepdims=True, initial=0)
    chosen /= np.where(largest > 0, largest, 1)
    length = np.linalg.norm(chosen, axis=1, keepdims=True)
    chosen /= np.where(length > 0, length, 1)
    return chosen.astype(np.float32)


def _units(values: np.ndarray, items: np.ndarray, block: int) -> np.ndarray:
    """[n, d] unit rows of the items [n], converted one block at a time, so that float64 takes little memory."""
    rows = np.empty((len(items), values.shape[1]), np.float32)
    for begin in range(0, len(items), block):
        rows[begin : begin + block] = unit_rows(values, items[begin : begin + block])
    return rows


def _candidates(score: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Sortable integers of scores and positions; a position of -1 is no candidate."""
    worse = _SCALE - np.rint(np.clip(score, -1, 1).astype(np.float64) * _SCALE).astype(np.int64)
    return np.where(position < 0, _NONE, (worse << _NUMBER_BITS) | position)


def _exact(values: np.ndarray, first: np.ndarray, block: int, threads: int) -> Search:
    def search(positions: np.ndarray, count: int) -> np.ndarray:
        queries = _units(values, first[positions], block)
        best = np.empty((len(positions), 0), np.int64)
        for begin in range(0, len(first), block):
            rows = unit_rows(values, first[begin : begin + block])
            score, found = in_chunks(partial(knn, rows=rows, count=min(count, len(rows))), queries, threads)
            best = np.sort(np.concatenate([best, _candidates(score, found + begin)], axis=1), axis=1)[:, :count]
        return best

    return search


def _inverted_file(
    values: np.ndarray, first: np.ndarray, k: int, exact: Search, block: int, seed: int, name: str, threads: int
) -> tuple[Search, float]:
    """Inverted file of faiss with float16 rows, searched in as many lists as the target recall needs.

    Compared with HNSW it takes half the memory, is built faster, and can search further after it is built. On features
    without clusters it has to search nearly all lists, which costs time but not recall.
    """
    total, dim = len(first), values.shape[1]
    rng = np.random.default_rng(seed)
    lists = max(1, min(int(4 * np.sqrt(total)), total // 39))
    sample = rng.choice(total, min(total, 64 * lists, max(lists, TRAINING_VALUES // dim)), replace=False)
    coarse = faiss.IndexFlatIP(dim)
    coarse.add(centroids(_units(values, first[np.sort(sample)], block), lists, seed, threads))
    index = faiss.IndexIVFScalarQuantizer(
        coarse, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.train(np.zeros((1, dim), np.float32))  # the lists are there already, and float16 needs no training
    for begin in tqdm(range(0, total, block), desc=f"item graph: {name}, index", unit="block", disable=None):
        rows = unit_rows(values, first[begin : begin + block])
        number = in_chunks(lambda queries: coarse.search(queries, 1), rows, threads)[1]
        index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(number))

    def search(positions: np.ndarray, count: int) -> np.ndarray:
        queries = _units(values, first[positions], block)
        score, found = in_chunks(lambda part: index.search(part, count), queries, threads)
        return np.sort(_candidates(score, found), axis=1)

    asked = np.sort(rng.choice(total, min(RECALL_SAMPLE, total), replace=False))
    truth = _others(exact(asked, min(k + 1, total)), asked, k)
    index.nprobe = min(8, lists)
    while True:
        recall = _recall(truth, _others(search(asked, min(k + 1, total)), asked, k))
        if recall >= RECALL_TARGET or index.nprobe >= lists:
            return search, recall
        index.nprobe = min(2 * index.nprobe, lists)


def _others(candidates: np.ndarray, own: np.ndarray, k: int) -> list[np.ndarray]:
    position = np.where(candidates == _NONE, -1, candidates & ((1 << _NUMBER_BITS) - 1))
    return [row[(row >= 0) & (row != number)][: k - 1] for row, number in zip(position, own, strict=True)]


def _recall(truth: list[np.ndarray], found: list[np.ndarray]) -> float:
    hits = sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(truth, found, strict=True))
    return hits / max(sum(len(row) for row in truth), 1)
