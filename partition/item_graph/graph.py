"""The item graph S (docs/model.md): nearest neighbours per modality, weighted and added; never N x N in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from partition.item_graph.knn import nearest
from partition.item_graph.shares import neighbour_shares
from partition.threads import at_once, each

Nearest = tuple[np.ndarray, float]  # neighbours [items, k] int64, recall
COOCCURRENCE_WORK = 1 << 23  # pairs of interactions per block
BYTES = 64  # of memory per pair


@dataclass(frozen=True)
class ItemGraph:
    """CSR of S: row i holds the items whose rows are summed into item i."""

    indptr: np.ndarray  # [items + 1] int64
    neighbour: np.ndarray  # [nnz] int64 item index, ascending within a row, unique
    weight: np.ndarray  # [nnz] float32; every row sums to 1
    recall: float  # 1.0 if exact, else the recall of true neighbours of the worst modality, on a sample of items


def build_item_graph(
    features: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    k: int = 10,
    *,
    approximate_above: int | None = None,
    cooccurrence: tuple[np.ndarray, np.ndarray, int] | None = None,
    cooccurrence_weight: float = 0.0,
    missing: Mapping[str, np.ndarray] | None = None,
    block: int = 4096,
    seed: int = 0,
    threads: int = 1,
    keep: Callable[[str, Callable[[], Nearest]], Nearest] = lambda _, find: find(),
) -> ItemGraph:
    """Builds S: per modality the k nearest items by cosine, including the item itself, each with weight/k.

    `partition.item_graph.knn` explains how ties, rows of zeros and duplicates are treated.

    Args:
        features: modality -> [items, d] of any float dtype, finite; may be memory-mapped.
        weights: modality -> weight; scaled so that all weights, including that of co-occurrence, sum to 1.
        k: neighbours per item, itself included; fewer if there are fewer items.
        approximate_above: number of items above which an inverted file is searched; None for always exact.
        cooccurrence: (user index, item index, number of users) of the training interactions; adds as one more term the
            k items with the nearest columns of the training matrix, by cosine. Items that share users with fewer others
            have fewer neighbours, and the rest of the weight is on themselves.
        cooccurrence_weight: its weight before scaling.
        missing: modality -> [items] bool: the items that lack it, whose rows are zeros; they have no neighbours by it,
            and its weight goes to the modalities that they have (`partition.item_graph.shares`).
        block: feature rows at a time.
        seed: of an approximate search and of the sample on which its recall is measured.
        threads: that search; the graph is the same for any number.
        keep: gets the name of a modality and a function that searches its neighbours, and returns the result of that
            function, from this run or an earlier one.
    """
    items = len(next(iter(features.values())))
    k = min(k, items)
    total = sum(weights[name] for name in features) + (cooccurrence_weight if cooccurrence else 0.0)
    matrix = sp.csr_array((items, items), dtype=np.float64)
    recall = 1.0
    shares = neighbour_shares({name: weights[name] for name in features}, missing, items) if missing else {}
    for name, values in features.items():
        if not weights[name]:
            continue
        approximate = approximate_above is not None and items > approximate_above
        find = partial(nearest, values, k, approximate=approximate, block=block, seed=seed, name=name, threads=threads)
        neighbours, found = keep(name, find)
        recall = min(recall, found)
        matrix += _weighted(neighbours, weights[name] / total / k, shares.get(name))
    if cooccurrence is not None and cooccurrence_weight:
        matrix += _weighted(_cooccurring(*cooccurrence, items, k, threads), cooccurrence_weight / total / k)
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    return ItemGraph(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32), recall
    )


def _weighted(neighbours: np.ndarray, weight: float, share: np.ndarray | None = None) -> sp.csr_array:
    """Matrix with `weight` at every entry of the lists [items, k]; repeated entries (the item itself) add up.

    With `share` [items] an item's weight is multiplied by it; where it is 0 the item's row is empty.
    """
    items, k = neighbours.shape
    rows = np.arange(items) if share is None else np.flatnonzero(share)
    values = np.full(items * k, weight) if share is None else np.repeat(share[rows] * weight, k)
    row = np.repeat(rows, k)
    return sp.csr_array((values, (row, neighbours[rows].ravel())), shape=(items, items))


def _cooccurring(user: np.ndarray, item: np.ndarray, users: int, items: int, k: int, threads: int) -> np.ndarray:
    """[items, k] neighbours: the item itself and the k - 1 nearest columns of the training matrix, by cosine.

    Ties go to the lower item index. Counts of common users are exact integers in float64, and within a row the order by
    cosine is that of count**2 / degree, so equal cosines compare equal.
    """
    by_item = sp.csr_array((np.ones(len(item)), (item, user)), shape=(items, users))
    by_user = sp.csr_array(by_item.T)
    degree = np.diff(by_item.indptr).astype(np.float64)
    # Popular items share users with nearly all others: blocks are bounded by their products, not their number of items.
    work = np.cumsum(by_item @ np.diff(by_user.indptr).astype(np.float64))
    cuts = np.searchsorted(work, np.arange(COOCCURRENCE_WORK, work[-1] + COOCCURRENCE_WORK, COOCCURRENCE_WORK))
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts + 1, items), [items]]))
    found = np.repeat(np.arange(items)[:, None], k, axis=1)

    def search(begin: int, end: int) -> None:
        common = sp.csr_array(by_item[begin:end] @ by_user)
        row = np.repeat(np.arange(end - begin), np.diff(common.indptr))
        keep = common.indices != row + begin
        row, column = row[keep], common.indices[keep]
        order = np.lexsort((column, -(common.data[keep] ** 2) / degree[column], row))
        row, column = row[order], column[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        top = rank < k - 1
        found[begin + row[top], rank[top] + 1] = column[top]
        bar.update()

    with tqdm(total=len(bounds) - 1, desc="item graph: co-occurrence", unit="block", disable=None) as bar:
        ends = zip(bounds[:-1], bounds[1:], strict=True)
        each(lambda pair: search(*pair), ends, at_once(threads, BYTES * COOCCURRENCE_WORK))
    return found
