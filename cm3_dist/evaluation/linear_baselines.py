"""Two baselines without features: EASE in closed form, and item-based nearest neighbours (item-kNN).

Both score a user by `x_u B`, where x_u are the user's training interactions and B is an item-item matrix: dense for
EASE, which is therefore for small catalogues only, sparse for item-kNN. Every rank reads the training interactions of
all parts; scores exist for a block of users at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import scipy.sparse as sp
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from cm3_dist.errors import InputError
from cm3_dist.evaluation.protocol import Ranked, Task, with_metrics
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.ranking.topk import top_columns
from partition.folder import layout
from partition.folder.arrays import read_graph

EASE_ITEMS = 20_000  # most items: the dense matrix in float64 then has 3.2 GB
EASE_L2 = 400.0  # best of 50, 100, 200, 400, 800 on Baby's validation
NEIGHBOURS, SHRINK = 200, 100.0  # Recall@20 0.076 on Baby's validation; without shrinking 0.033
SCORES = 1 << 26  # computed at a time
EASE_TIMEOUT = timedelta(days=1)
ITEM_BLOCK = 1024

Scorer = Callable[[sp.csr_array], np.ndarray]


def ease(model: TrainedModel, task: Task, l2: float = EASE_L2) -> Ranked:
    """Embarrassingly shallow autoencoder: B = I - P / diag(P), P = (X'X + l2 I)^-1 (Steck, WWW 2019). Collective.

    Raises:
        InputError: more than EASE_ITEMS items.
    """
    if model.manifest.items > EASE_ITEMS:
        raise InputError(
            f"{model.manifest.name}: {model.manifest.items:,} items are too many for EASE (up to {EASE_ITEMS:,}); "
            "use --baselines popularity,item-knn",
            "baselines.too-many-items",
        )
    matrix = _training(model)
    rows = matrix.shape[1]
    weights = torch.zeros(rows, rows)
    if model.runtime.rank == 0:
        # In float64, so that items with the same users get the same weights: ties stay ties on any number of ranks.
        gram = torch.from_numpy((matrix.T @ matrix).toarray()).double()
        gram.diagonal().add_(l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = inverse.div_(-inverse.diagonal().clone()).float().fill_diagonal_(0).contiguous()
    if model.runtime.world_size > 1:
        # The other ranks wait for rank 0 longer than machine.timeout allows.
        patient = dist.new_group(backend="gloo", timeout=EASE_TIMEOUT)
        dist.broadcast(weights, group_src=0, group=patient)
        dist.destroy_process_group(patient)
    dense = weights.numpy()
    return _rank(model, task, lambda users: users @ dense)


def item_knn(model: TrainedModel, task: Task, neighbours: int = NEIGHBOURS) -> Ranked:
    """Item-based collaborative filtering: B_ji = common users / (sqrt(d_i d_j) + SHRINK), `neighbours` per item.

    Collective.
    """
    matrix = _training(model)
    similar = _neighbours(model, matrix, neighbours)
    return _rank(model, task, lambda users: (users @ similar).toarray())


def _training(model: TrainedModel) -> sp.csr_array:
    """[user rows, item rows] of ones: interactions are not weighted."""
    manifest = model.manifest
    users, items = [], []
    for part in range(manifest.num_parts):
        graph = read_graph(layout.part_dir(model.shard.root, part) / layout.GRAPH, manifest.weighted)
        source, destination = graph.edges[layout.ITEM_TO_USER]
        users.append(graph.row["user"][destination])
        items.append(graph.row["item"][source])
    user, item = np.concatenate(users), np.concatenate(items)
    return sp.csr_array((np.ones(len(user), np.float32), (user, item)), shape=(manifest.user_rows, manifest.item_rows))


def _neighbours(model: TrainedModel, matrix: sp.csr_array, count: int) -> sp.csr_array:
    """[item rows, item rows]: column i has the similarities of item i's `count` nearest; ranks share the columns."""
    degree = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1)
    by_item = sp.csr_array(matrix.T)
    first, last = model.shard.first_item, model.shard.first_item + model.shard.item_rows
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    disable = None if model.runtime.rank == 0 else True
    for begin in tqdm(range(first, last, ITEM_BLOCK), desc="item-kNN", unit="block", disable=disable, leave=False):
        common = sp.csr_array(by_item[begin : min(begin + ITEM_BLOCK, last)] @ matrix)
        row = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr)) + begin
        column = common.indices.astype(np.int64)
        value = common.data / (np.sqrt(degree[row] * degree[column]) + SHRINK)
        keep = column != row
        row, column, value = row[keep], column[keep], value[keep]
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        top = np.arange(len(row)) - np.searchsorted(row, row) < count
        found.append((row[top], column[top], value[top].astype(np.float32)))
    gathered: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(model.runtime.world_size)]
    dist.all_gather_object(gathered, found, group=model.runtime.control)
    row, column, value = (np.concatenate(parts) for parts in zip(*(b for own in gathered for b in own), strict=True))
    return sp.csr_array((value, (column, row)), shape=(matrix.shape[1],) * 2)


def _rank(model: TrainedModel, task: Task, score: Scorer) -> Ranked:
    """Ranks by `score`: interactions of b users [b, item rows], sparse -> scores [b, item rows], dense."""
    seen = task.seen
    rows, k = model.manifest.item_rows, max(task.ks)
    lists = torch.full((len(task.users), k), -1, dtype=torch.int64)
    candidates = np.flatnonzero(task.is_candidate)
    block = max(1, SCORES // rows)
    for begin in range(0, len(task.users), block):
        part = range(begin, min(begin + block, len(task.users)))
        indptr = seen.indptr[part.start : part.stop + 1].numpy()
        values = seen.values[indptr[0] : indptr[-1]].numpy()
        users = sp.csr_array((np.ones(len(values), np.float32), values, indptr - indptr[0]), shape=(len(part), rows))
        scores = score(users)
        scores[np.repeat(np.arange(len(part)), np.diff(indptr)), values] = -np.inf
        lists[part.start : part.stop] = _best(torch.from_numpy(scores[:, candidates]), candidates, k)
    return with_metrics(lists, task)


def _best(scores: Tensor, columns: np.ndarray, k: int) -> Tensor:
    """[b, m] scores of the item rows `columns` -> [b, k] item rows, -1 where there are fewer."""
    best, place = top_columns(scores, min(k, scores.shape[1]))
    found = torch.full((len(scores), k), -1, dtype=torch.int64)
    found[:, : best.shape[1]] = torch.where(best == -torch.inf, -1, torch.from_numpy(columns)[place])
    return found
