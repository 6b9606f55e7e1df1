"""Exact propagation: all frontiers except the last contain all nodes, so blocks and exchanges are built once.

The normalised adjacency is symmetric, so the adjoint of user-from-item propagation is item-from-user propagation, and
no transpose is stored; only the item graph needs one. A training step uses few rows of the result: `restrict` leaves
out the rows of the last layer and of the item graph that the step does not use. The unrestricted operator also serves
evaluation and export, at any size.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.traffic import Kind
from cm3_dist.graph.halo_exchange import Exchange, send_to_owners
from cm3_dist.graph.lightgcn import Hop, Propagation
from cm3_dist.graph.part_graph import SIMILAR
from cm3_dist.graph.shard import Adjacency, Shard
from cm3_dist.graph.sparse_ops import Csr, GatherSpMM, LinearMap
from cm3_dist.kernels import Kernels
from partition.folder import layout


def exact_propagation(
    shard: Shard,
    user_item_layers: int,
    item_item_layers: int,
    group: dist.ProcessGroup,
    planning: dist.ProcessGroup,
    *,
    adjoint: bool = True,
    kernels: Kernels = "torch",
) -> Propagation:
    """The operator over all local rows. Collective on `planning`.

    Args:
        shard: this rank's.
        user_item_layers: number of user-item layers.
        item_item_layers: number of item-item layers.
        group: process group that rows are exchanged on later.
        planning: process group that node ids are exchanged on now.
        adjoint: build the adjoint of the item graph, which needs as much memory as the graph. Without it a backward
            pass raises RuntimeError.
        kernels: of the sparse products on a GPU.
    """
    groups = group, planning
    user_from_item = _pull(
        shard.adjacency(layout.ITEM_TO_USER), shard.first_item, shard.item_rows, "user-item rows", *groups, kernels
    )
    item_from_user = _pull(
        shard.adjacency(layout.USER_TO_ITEM), shard.first_user, shard.user_rows, "user-item rows", *groups, kernels
    )
    hop = Hop(
        shard.user_rows,
        shard.item_rows,
        LinearMap(user_from_item, item_from_user),
        LinearMap(item_from_user, user_from_item),
    )
    similar = []
    if item_item_layers:
        pull = _pull(shard.adjacency(SIMILAR), shard.first_item, shard.item_rows, "item-graph rows", *groups, kernels)
        similar = [(shard.item_rows, LinearMap.of(pull) if adjoint else LinearMap.forward_only(pull))]
    return Propagation([hop] * user_item_layers, similar * item_item_layers)


def restrict(whole: Propagation, users: Tensor, items: Tensor) -> Propagation:
    """The operator on the CPU, restricted to the output rows `users` [n] and `items` [m] (int64, local), in that order.

    Without user-item layers all users remain, without item-item layers all items. Not collective: every rank still
    fetches the same remote rows.
    """
    hops, similar = list(whole.hops), list(whole.similar)
    if hops:
        pull = hops[0].user_from_item.forward
        assert isinstance(pull, GatherSpMM)
        hops[0] = replace(hops[0], users=users, user_from_item=LinearMap.of(pull.rows(users)))
    if similar:
        pull = similar[0][1].forward
        assert isinstance(pull, GatherSpMM)
        similar[0] = (items, LinearMap.of(pull.rows(items)))
    return Propagation(hops, similar)


def _pull(
    edges: Adjacency,
    first: int,
    own: int,
    kind: Kind,
    group: dist.ProcessGroup,
    planning: dist.ProcessGroup,
    kernels: Kernels,
) -> GatherSpMM:
    """The operator of one relation. Columns: the `own` local rows (global rows from `first`), then remote sources."""
    local = edges.source - first
    remote = (local < 0) | (local >= own)
    halo = np.unique(edges.source[remote])
    columns = local.copy()
    columns[remote] = own + np.searchsorted(halo, edges.source[remote])
    matrix = Csr.from_numpy(edges.indptr, columns, edges.value, own + len(halo), kernels)
    return GatherSpMM(matrix, plan_exchange(halo, first, own, kind, group, planning))


def plan_exchange(
    halo: np.ndarray, first: int, own: int, kind: Kind, group: dist.ProcessGroup, planning: dist.ProcessGroup
) -> Exchange:
    """Plans an exchange between ranks that hold all their local rows. Collective on `planning`.

    Args:
        halo: [n] int64 global rows of other ranks to fetch, ascending.
        first: global row of local row 0.
        own: number of local rows, the same on all ranks.
        kind: kind of traffic that the rows count as.
        group: process group that rows are exchanged on later.
        planning: process group that node ids are exchanged on now.
    """
    requests = send_to_owners(halo, own, planning)
    alone = dist.get_world_size(planning) == 1
    send = torch.from_numpy(requests.table[:, 0] - first)
    return Exchange(send, requests.received, requests.asked, None if alone else group, kind)
