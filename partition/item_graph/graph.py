"""The item-item graph S (CM3.md section 2.7): nearest neighbours per modality, weighted and added; never N x N."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from partition.item_graph.knn import nearest
from partition.transform.dataset import SPECTRAL

APPROXIMATE_ABOVE = 200_000
Nearest = tuple[np.ndarray, float]  # neighbours [items, k] int64, recall
COOCCURRENCE_WORK = 1 << 23  # pairs of interactions looked at in one block: some hundred MiB


@dataclass(frozen=True)
class ItemGraph:
    """CSR of S: row i lists the items whose rows are summed into item i."""

    indptr: np.ndarray  # [items + 1] int64
    neighbour: np.ndarray  # [nnz] int64 item index, ascending within a row, unique
    weight: np.ndarray  # [nnz] float32; every row sums to 1
    recall: float  # 1.0 when exact, else the worst modality's recall of true neighbours, on a sample of items


def default_weights(modalities: Sequence[str]) -> dict[str, float]:
    """0.1 for the image and 0.9 for the other of two modalities, as the source has it; else equal.

    The spectral modality has no part unless it is the only one.
    """
    if len(modalities) > 1 and SPECTRAL in modalities:
        return {**default_weights([name for name in modalities if name != SPECTRAL]), SPECTRAL: 0.0}
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
    keep: Callable[[str, Callable[[], Nearest]], Nearest] = lambda _, find: find(),
) -> ItemGraph:
    """Builds S: of every modality the k nearest items by cosine, the item itself among them, each weighted weight/k.

    Args:
        features: modality -> [items, d] of any float dtype, finite; may be memory-mapped.
        weights: modality -> weight; scaled so that all weights, the co-occurrence's among them, sum to 1.
        k: neighbours an item, itself included; fewer when there are fewer items.
        approximate_above: items above which neighbours are searched in an inverted file instead of exactly.
        cooccurrence: (user index, item index, number of users) of the training interactions; adds the k items with the
            nearest columns of the training matrix, by cosine, as one more term. Items that share no user with enough
            others keep fewer neighbours, with the rest of the weight on themselves.
        cooccurrence_weight: its weight before scaling.
        block: feature rows at a time.
        seed: of an approximate search and of the sample on which its recall is measured.
        keep: gets a modality's name and the search for its neighbours, and returns what that returns, now or earlier.

    Source: CM3.md section 2.7; `partition.item_graph.knn` says how ties, zero rows and duplicates are treated.
    """
    items = len(next(iter(features.values())))
    k = min(k, items)
    total = sum(weights[name] for name in features) + (cooccurrence_weight if cooccurrence else 0.0)
    matrix = sp.csr_array((items, items), dtype=np.float64)
    recall = 1.0
    for name, values in features.items():
        if not weights[name]:
            continue
        approximate = items > approximate_above
        find = partial(nearest, values, k, approximate=approximate, block=block, seed=seed, name=name)
        neighbours, found = keep(name, find)
        recall = min(recall, found)
        matrix += _weighted(neighbours, weights[name] / total / k)
    if cooccurrence is not None and cooccurrence_weight:
        matrix += _weighted(_cooccurring(*cooccurrence, items, k), cooccurrence_weight / total / k)
    matrix = sp.csr_array(matrix)
    matrix.sort_indices()
    return ItemGraph(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(np.float32), recall
    )


def _weighted(neighbours: np.ndarray, weight: float) -> sp.csr_array:
    """[items, k] lists to a matrix with `weight` at every entry; entries that repeat (the item itself) add up."""
    items, k = neighbours.shape
    row = np.repeat(np.arange(items), k)
    return sp.csr_array((np.full(items * k, weight), (row, neighbours.ravel())), shape=(items, items))


def _cooccurring(user: np.ndarray, item: np.ndarray, users: int, items: int, k: int) -> np.ndarray:
    """[items, k]: the item itself and the k - 1 whose columns of the training matrix are nearest by cosine.

    Ties go to the lower item number. Counts of common users are exact integers in float64, and within a row the cosine
    orders like count**2 / degree, so that equal cosines compare equal.
    """
    by_item = sp.csr_array((np.ones(len(item)), (item, user)), shape=(items, users))
    by_user = sp.csr_array(by_item.T)
    degree = np.diff(by_item.indptr).astype(np.float64)
    # A popular item meets nearly every other: blocks are cut by the products they take, not by their number of items.
    work = np.cumsum(by_item @ np.diff(by_user.indptr).astype(np.float64))
    cuts = np.searchsorted(work, np.arange(COOCCURRENCE_WORK, work[-1] + COOCCURRENCE_WORK, COOCCURRENCE_WORK))
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts + 1, items), [items]]))
    found = np.repeat(np.arange(items)[:, None], k, axis=1)
    blocks = np.stack([bounds[:-1], bounds[1:]], axis=1)
    for begin, end in tqdm(blocks, desc="item graph: co-occurrence", unit="block", disable=None):
        common = sp.csr_array(by_item[begin:end] @ by_user)
        row = np.repeat(np.arange(end - begin), np.diff(common.indptr))
        keep = common.indices != row + begin
        row, column = row[keep], common.indices[keep]
        order = np.lexsort((column, -(common.data[keep] ** 2) / degree[column], row))
        row, column = row[order], column[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        top = rank < k - 1
        found[begin + row[top], rank[top] + 1] = column[top]
    return found
