"""Exact propagation: every frontier but the last is everything, so exchange lists and blocks are made once.

The normalised adjacency is symmetric, so the adjoint of "users from items" is "items from users" and no transpose is
kept; only the item-item graph needs one. A training step takes few users and items of the result: `restrict` leaves
out, for one step, the rows of the last layer and of the item graph that nobody looks at. Unrestricted this is also the
inference path of evaluation and export, at any size.
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
from cm3_dist.graph.sparse_ops import Csr, Pull, Relation
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
    """The operator over all local rows. Collective (on `planning`); rows later travel on `group`.

    Without `adjoint` there is no backward pass through the item graph, whose transpose takes as much memory as itself.
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
        Relation(user_from_item, item_from_user),
        Relation(item_from_user, user_from_item),
    )
    similar = []
    if item_item_layers:
        pull = _pull(shard.adjacency(SIMILAR), shard.first_item, shard.item_rows, "item-graph rows", *groups, kernels)
        similar = [(shard.item_rows, Relation.of(pull) if adjoint else Relation.forward_only(pull))]
    return Propagation([hop] * user_item_layers, similar * item_item_layers)


def restrict(whole: Propagation, users: Tensor, items: Tensor) -> Propagation:
    """The same operator, on the CPU, with the rows of `users` [n] and `items` [m] (int64, local) only, in that order.

    Without user-item layers the users stay whole, without item-item layers the items do. Not collective: every rank
    fetches what it fetched before.
    """
    hops, similar = list(whole.hops), list(whole.similar)
    if hops:
        pull = hops[0].user_from_item.forward
        assert isinstance(pull, Pull)
        hops[0] = replace(hops[0], users=users, user_from_item=Relation.of(pull.rows(users)))
    if similar:
        pull = similar[0][1].forward
        assert isinstance(pull, Pull)
        similar[0] = (items, Relation.of(pull.rows(items)))
    return Propagation(hops, similar)


def _pull(
    edges: Adjacency,
    first: int,
    own: int,
    kind: Kind,
    group: dist.ProcessGroup,
    planning: dist.ProcessGroup,
    kernels: Kernels,
) -> Pull:
    """Columns: the `own` local rows from global row `first` on, then the remote sources, ascending by row."""
    local = edges.source - first
    remote = (local < 0) | (local >= own)
    halo = np.unique(edges.source[remote])
    columns = local.copy()
    columns[remote] = own + np.searchsorted(halo, edges.source[remote])
    matrix = Csr.from_numpy(edges.indptr, columns, edges.value, own + len(halo), kernels)
    return Pull(matrix, plan_exchange(halo, first, own, kind, group, planning))


def plan_exchange(
    halo: np.ndarray, first: int, own: int, kind: Kind, group: dist.ProcessGroup, planning: dist.ProcessGroup
) -> Exchange:
    """Exchange of full local row sets: `halo` [n] int64 ascending global rows of others. Collective on `planning`."""
    requests = send_to_owners(halo, own, planning)
    alone = dist.get_world_size(planning) == 1
    send = torch.from_numpy(requests.table[:, 0] - first)
    return Exchange(send, requests.received, requests.asked, None if alone else group, kind)
