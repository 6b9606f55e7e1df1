"""LightGCN over the user-item graph, then the item-item graph: one linear operator with a hand-written adjoint.

Frontiers F_0 (the rows wanted) within F_1 within ... F_L (the rows whose ego embeddings are needed); every frontier is
a prefix of the next, or, where F_1 is everything (exact mode), F_0 a choice of its rows. Horner's form
(docs/model.md)::

    y <- E on F_L;   L times, on the next smaller frontier:   y <- E + A y

sums the layers A^l E with two buffers. The adjoint walks the same blocks in the other direction, so nothing is saved
for the backward pass. Exact and sampled propagation differ in the blocks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cm3_dist.graph.sparse_ops import Relation

# A frontier within the next one: its first n rows, or the rows at these places ([n] int64, distinct).
Rows: TypeAlias = int | Tensor


@dataclass(frozen=True)
class Hop:
    """One user-item layer: rows of F_k from rows of F_{k+1}."""

    users: Rows  # of F_k; places only in hops[0]
    items: Rows
    user_from_item: Relation
    item_from_user: Relation


@dataclass(frozen=True)
class Propagation:
    """The whole operator: ego rows on F_L -> propagated rows on F_0 and T_0."""

    hops: Sequence[Hop]  # hops[k]: F_k from F_{k+1}
    # Item-item layers: rows of T_k (places only in the first), and T_k from T_{k+1}; T_last = items of F_0.
    similar: Sequence[tuple[Rows, Relation]]

    def __call__(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """User and item ego rows [n_L, width] -> [users of F_0, width], [items of T_0, width].

        Differentiable, collective.
        """
        propagated: tuple[Tensor, Tensor] = _Propagate.apply(users, items, self)
        return propagated


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, operator: Propagation) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.operator, ctx.shapes = operator, (users.shape, items.shape)
        u, i = users, items
        for hop in reversed(operator.hops):
            u, i = (
                hop.user_from_item.forward(i).add_(_take(users, hop.users)),
                hop.item_from_user.forward(u).add_(_take(items, hop.items)),
            )
        s = i
        for rows, relation in reversed(operator.similar):
            s = relation.forward(s)
            i = _take(i, rows)
        # Without any layer the operator is the identity; autograd requires outputs that are not its inputs.
        i = s.add_(i) if operator.similar else i.clone()
        return (u if operator.hops else u.clone()), i

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_i: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        operator: Propagation = ctx.operator
        grad_i = _through_similar(operator, grad_i)
        wanted_u, wanted_i = (operator.hops[0].users, operator.hops[0].items) if operator.hops else (None, None)
        total_u, total_i = _spread(grad_u, wanted_u, ctx.shapes[0]), _spread(grad_i, wanted_i, ctx.shapes[1])
        for hop in operator.hops:
            grad_u, grad_i = hop.item_from_user.adjoint(grad_i), hop.user_from_item.adjoint(grad_u)
            total_u[: len(grad_u)].add_(grad_u)
            total_i[: len(grad_i)].add_(grad_i)
        return total_u, total_i, None


def _through_similar(operator: Propagation, grad: Tensor) -> Tensor:
    """The adjoint of the item-item layers. A function of its own, so that nothing of it outlives it."""
    if not operator.similar:
        return grad
    direct = s = grad
    for rows, relation in operator.similar:
        s = relation.adjoint(s)
        direct = _spread(direct, rows, s.shape)
    return s.add_(direct)


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x[:rows] if isinstance(rows, int) else x.index_select(0, rows)


def _spread(x: Tensor, rows: Rows | None, shape: torch.Size) -> Tensor:
    """The adjoint of `_take`, in a tensor of its own: zeros of `shape` with `x` in their place."""
    if len(x) == shape[0] and not isinstance(rows, Tensor):
        return x.clone()
    spread = x.new_zeros(shape)
    if isinstance(rows, Tensor):
        spread.index_copy_(0, rows, x)
    else:
        spread[: len(x)] = x
    return spread
