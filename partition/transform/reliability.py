"""Measures how well feature similarities agree with the training interactions.

Pairs of items of the same user are compared with random pairs of the same items. An informative similarity is higher
for the former: D = P(higher) - P(lower), Somers' D, is 0 for noise. The ceiling is the agreement of interactions with
each other: the cosine of co-occurrence among half of the users, evaluated on the pairs of the other half.

    reliability = (D of the features - 2 standard errors) / D of co-occurrence, clipped to [0, 1]

If a share q of the items have the wrong row, features keep about (1 - q)^2 of their D, on any data set. Features that
are noise get 0 in 39 of 40 cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

from partition import columns_on_disk as blocks
from partition.item_graph.knn import unit_rows

PAIRS, PER_INTERACTION = 200_000, 4  # limits of the number of pairs drawn, with repetition
BLOCK = 16_384  # pairs at a time


def reliability(
    features: Mapping[str, np.ndarray],
    user: np.ndarray,
    item: np.ndarray,
    seed: int,
    folder: Path | None = None,
    *,
    missing: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """`reliability` of the mean cosine over the modalities, and `reliability_NAME` of each modality.

    Args:
        features: modality -> [items, d]; may be memory-mapped.
        user, item: [E] indices of the training interactions, unique pairs sorted by both; may be memory-mapped.
        seed: of the halves and the pairs.
        folder: for columns (see `partition.columns_on_disk`).
        missing: modality -> [items] bool: the items that lack it. A pair is compared by the modalities that both have;
            pairs that have none in common are left out.
    """
    rng = np.random.default_rng([seed, len(user)])
    items, pairs = len(next(iter(features.values()))), min(PAIRS, PER_INTERACTION * len(user))
    second_half = rng.random(int(user.max()) + 1) < 0.5
    owner, owned = blocks.select((user, item), lambda rows: second_half[user[rows]], folder)
    together = _same_user(owner, owned, pairs, rng)
    apart = np.stack([together[0], rng.permutation(together[1])])
    apart = apart[:, apart[0] != apart[1]]
    names = [f"reliability_{name}" for name in features]
    if not together.size or not apart.size:
        return dict.fromkeys(["reliability", *names], 0.0)
    owner, owned = blocks.select((user, item), lambda rows: ~second_half[user[rows]], folder)
    matrix = _by_item(owner, owned, items, folder)
    ceiling = somers_d(*(_cooccurrence(matrix, p) for p in (together, apart)))

    def share(both: Sequence[np.ma.MaskedArray]) -> float:
        there = [~np.ma.getmaskarray(values) for values in both]
        # Standard error of Somers' D under the null hypothesis; a pair drawn twice counts once.
        n, m = (
            len(np.unique(pair[0, chosen] * np.int64(items) + pair[1, chosen]))
            for pair, chosen in zip((together, apart), there, strict=True)
        )
        if not n or not m:
            return 0.0
        error = 2 * np.sqrt((n + m + 1) / 12 / n / m)
        certain = somers_d(both[0].compressed(), both[1].compressed()) - 2 * error
        if certain <= 0:
            return 0.0
        return float(min(1.0, certain / ceiling)) if ceiling > 0 else 1.0

    masks = missing or {}
    cosines = {
        name: [np.ma.masked_array(_cosine(values, pair), _lacking(masks.get(name), pair)) for pair in (together, apart)]
        for name, values in features.items()
    }
    mean = [np.ma.mean(np.ma.stack([both[kind] for both in cosines.values()]), axis=0) for kind in (0, 1)]
    shares = [share(both) for both in (mean, *cosines.values())]
    return dict(zip(["reliability", *names], shares, strict=True))


def somers_d(higher: np.ndarray, lower: np.ndarray) -> float:
    """P(a > b) - P(a < b) for a in `higher` [n] and b in `lower` [m], computed from ranks."""
    n, m = len(higher), len(lower)
    ranks = rankdata(np.concatenate([higher, lower]))[:n].sum()
    return float(2 * (ranks - n * (n + 1) / 2) / n / m - 1)


def _same_user(user: np.ndarray, item: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """[2, n] pairs of different items of the same user; a user is drawn in proportion to its interactions."""
    if not len(user):
        return np.empty((2, 0), np.int64)
    first = rng.integers(0, len(user), pairs)
    begin = np.searchsorted(user, user[first])
    degree = np.searchsorted(user, user[first], side="right") - begin
    found = np.stack([item[first], item[begin + rng.integers(0, degree)]]).astype(np.int64)
    return found[:, found[0] != found[1]]


def _by_item(user: np.ndarray, item: np.ndarray, items: int, folder: Path | None) -> sp.csr_array:
    """[items, users] int8 matrix of the interactions, memory-mapped."""
    users = int(user.max(initial=0)) + 1
    kind = blocks.index_type(max(users, len(user)))
    indices, ones = blocks.column(len(user), kind, folder), blocks.column(len(user), np.int8, folder)
    indptr = blocks.by_node(item, user, indices, blocks.counts(item, items))
    for rows in blocks.slices(len(ones)):
        ones[rows] = 1
    return sp.csr_array((ones, indices, indptr.astype(kind)), shape=(items, users))


def _cooccurrence(matrix: sp.csr_array, pairs: np.ndarray) -> np.ndarray:
    """[n] cosines of rows of `matrix` [items, users]; 0 for an item without interactions."""
    degree = np.diff(matrix.indptr).astype(np.int64)
    norm = np.sqrt(np.maximum(degree, 1))
    found = np.empty(pairs.shape[1])
    bounds = blocks.cuts(degree[pairs].sum(axis=0) + 1, blocks.BLOCK)
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        a, b = pairs[:, begin:end]
        found[begin:end] = matrix[a].multiply(matrix[b]).sum(axis=1) / norm[a] / norm[b]
    return found


def _lacking(missing: np.ndarray | None, pairs: np.ndarray) -> np.ndarray:
    """[n] bool: the pairs of which an item is `missing` [items]."""
    return np.zeros(pairs.shape[1], bool) if missing is None else missing[pairs].any(axis=0)


def _cosine(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[n] cosines of feature rows; 0 for a row of zeros."""
    found = np.empty(pairs.shape[1])
    for begin in range(0, len(found), BLOCK):
        a, b = (unit_rows(values, side) for side in pairs[:, begin : begin + BLOCK])
        found[begin : begin + BLOCK] = np.einsum("nd,nd->n", a, b)
    return found
