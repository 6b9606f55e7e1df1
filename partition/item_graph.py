"""The item-item graph S (CM3.md section 2.7): nearest neighbours per modality, weighted and added; never N x N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

RECALL_SAMPLE = 1000
APPROXIMATE_ABOVE = 200_000


@dataclass(frozen=True)
class ItemGraph:
    """CSR of S: row i lists the items whose rows are summed into item i."""

    indptr: np.ndarray  # [items + 1] int64
    neighbour: np.ndarray  # [nnz] int64 item index, ascending within a row, unique
    weight: np.ndarray  # [nnz] float32; every row sums to 1
    recall: float  # 1.0 when exact, else the mean over modalities of the recall on a sample of items


def default_weights(modalities: Sequence[str]) -> dict[str, float]:
    """0.1 for the image and 0.9 for the other of two modalities, as the source has it; else equal."""
    if len(modalities) == 2 and "image" in modalities:
        return {name: 0.1 if name == "image" else 0.9 for name in modalities}
    return {name: 1 / len(modalities) for name in modalities}


def build_item_graph(
    features: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    k: int = 10,
    *,
    approximate_above: int = APPROXIMATE_ABOVE,
    cooccurrence: tuple[np.ndarray, np.ndarray, int] | None = None,
    cooccurrence_weight: float = 0.0,
    block: int = 4096,
    seed: int = 0,
) -> ItemGraph:
    """Builds S: of every modality the k nearest items by cosine, the item itself among them, each weighted weight/k.

    Args:
        features: modality -> [items, d] of any float dtype, finite; may be memory-mapped.
        weights: modality -> weight; scaled so that all weights, the co-occurrence's among them, sum to 1.
        k: neighbours an item, itself included; fewer when there are fewer items.
        approximate_above: items above which neighbours are searched in an HNSW graph instead of exactly.
        cooccurrence: (user index, item index, number of users) of the training interactions; adds the k items with the
            nearest columns of the training matrix, by cosine, as one more term. Items that share no user with enough
            others keep fewer neighbours, with the rest of the weight on themselves.
        cooccurrence_weight: its weight before scaling.
        block: queries at a time.
        seed: of the sample on which an approximate search's recall is measured.
    """
    items = len(next(iter(features.values())))
    k = min(k, items)
    total = sum(weights[name] for name in features) + (cooccurrence_weight if cooccurrence else 0.0)
    matrix = sp.csr_array((items, items), dtype=np.float64)
    recalls = []
    for name, values in features.items():
        if not weights[name]:
            continue
        neighbours, recall = _nearest(values, k, items > approximate_above, block, seed, name)
        recalls.append(recall)
        matrix += _weighted(neighbours, weights[name] / total / k)
    if cooccurrence is not None and cooccurrence_weight:
        matrix += _weighted(_cooccurring(*cooccurrence, items, k, block), cooccurrence_weight / total / k)
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    recall = float(np.mean(recalls)) if recalls else 1.0
    return ItemGraph(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32), recall
    )


def _weighted(neighbours: np.ndarray, weight: float) -> sp.csr_array:
    """[items, k] lists to a matrix with `weight` at every entry; entries that repeat (the item itself) add up."""
    items, k = neighbours.shape
    row = np.repeat(np.arange(items), k)
    return sp.csr_array((np.full(items * k, weight), (row, neighbours.ravel())), shape=(items, items))


def _unit(values: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(values, dtype=np.float32)
    norm = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)


def _nearest(
    values: np.ndarray, k: int, approximate: bool, block: int, seed: int, name: str
) -> tuple[np.ndarray, float]:
    """[items, k] neighbours by cosine, the item itself first; and the recall of the search.

    An item whose feature row is zero is similar to nothing: it keeps itself alone, k times.
    """
    items, dim = values.shape
    exact = faiss.IndexFlatIP(dim)
    index: Any = exact
    if approximate:
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, max(64, 4 * k)
    blocks = range(0, items, block)
    for begin in tqdm(blocks, desc=f"item graph: {name}, index", unit="block", disable=None if approximate else True):
        index.add(_unit(values[begin : begin + block]))
    found = np.empty((items, k), np.int64)
    for begin in tqdm(blocks, desc=f"item graph: {name}, search", unit="block", disable=None):
        rows = _unit(values[begin : begin + block])
        found[begin : begin + len(rows)] = _with_self(index, rows, np.arange(begin, begin + len(rows)), k)
    if not approximate:
        return found, 1.0
    sample = np.sort(np.random.default_rng(seed).choice(items, min(RECALL_SAMPLE, items), replace=False))
    for begin in blocks:
        exact.add(_unit(values[begin : begin + block]))
    truth = _with_self(exact, _unit(values[sample]), sample, k)
    hits = sum(len(np.intersect1d(a, b)) / len(np.unique(a)) for a, b in zip(truth, found[sample], strict=True))
    return found, hits / len(sample)


def _with_self(index: faiss.Index, rows: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of each row with its own number first, also where duplicates of it push it off the list."""
    score, found = index.search(rows, min(k + 1, index.ntotal))
    # Ties in ascending order of the item, so that the graph does not depend on how the search walks.
    order = np.lexsort((found, -score), axis=1)
    found = np.take_along_axis(found, order, axis=1)
    others = found != own[:, None]
    others &= found >= 0  # an approximate search pads short answers with -1
    first = np.argsort(~others, axis=1, kind="stable")[:, : k - 1]  # the others first, in their order
    chosen = np.take_along_axis(found, first, axis=1)
    missing = ~np.take_along_axis(others, first, axis=1)
    missing |= ~rows.any(axis=1, keepdims=True)
    return np.concatenate([own[:, None], np.where(missing, own[:, None], chosen)], axis=1)


def _cooccurring(user: np.ndarray, item: np.ndarray, users: int, items: int, k: int, block: int) -> np.ndarray:
    """[items, k]: the item itself and the k - 1 whose columns of the training matrix are nearest by cosine."""
    by_item = sp.csr_array((np.ones(len(item)), (item, user)), shape=(items, users))
    degree = np.asarray(by_item.sum(axis=1)).ravel()
    by_item = sp.csr_array(sp.diags_array(1 / np.sqrt(np.maximum(degree, 1))) @ by_item)
    by_user = sp.csr_array(by_item.T)
    found = np.repeat(np.arange(items)[:, None], k, axis=1)
    for begin in tqdm(range(0, items, block), desc="item graph: co-occurrence", unit="block", disable=None):
        similar = sp.csr_array(by_item[begin : begin + block] @ by_user)
        row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
        keep = similar.indices != row + begin
        row, column, value = row[keep], similar.indices[keep], similar.data[keep]
        order = np.lexsort((column, -value, row))
        row, column = row[order], column[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        top = rank < k - 1
        found[begin + row[top], rank[top] + 1] = column[top]
    return found
