"""LightGCN over the user-item graph, then the item-item graph: one linear operator with a hand-written adjoint.

Frontiers are nested: F_0 (the rows of the result) in F_1 in ... F_L (the rows whose ego embeddings are needed). Each
is a prefix of the next; in exact mode, where F_1 contains all nodes, F_0 may be any selection of them. The sum of the
layers A^l E is evaluated by Horner's scheme with two buffers (docs/model.md)::

    y <- E on F_L;   L times, on the next smaller frontier:   y <- E + A y

The adjoint applies the same blocks in reverse order, so nothing is saved for the backward pass. Exact and sampled
propagation differ only in the blocks.

Shapes: n_k users and m_k items in frontier F_k; rows of any width, which propagation does not mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cm3_dist.graph.sparse_ops import LinearMap

# A frontier within the next one: its first n rows, or the rows at these indices ([n] int64, distinct).
Rows: TypeAlias = int | Tensor


@dataclass(frozen=True)
class Hop:
    """One user-item layer: rows of F_k from rows of F_{k+1}."""

    users: Rows  # users of F_k in F_{k+1}; indices only in hops[0]
    items: Rows  # items of F_k in F_{k+1}
    user_from_item: LinearMap
    item_from_user: LinearMap


@dataclass(frozen=True)
class Propagation:
    """The complete operator: ego rows on F_L -> propagated rows of the users of F_0 and the items T_0."""

    hops: Sequence[Hop]  # hops[k]: F_k from F_{k+1}
    # Item-item layers: T_k in T_{k+1} (indices only in the first), and the map from T_{k+1} to T_k. The last T is the
    # items of F_0.
    similar: Sequence[tuple[Rows, LinearMap]]

    def __call__(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Propagates ego rows [n_L, width] and [m_L, width]. Differentiable. Collective.

        Returns:
            Rows of the users of F_0, [n_0, width], and of the items T_0.
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
        # Without layers the operator is the identity, but autograd requires outputs that are not inputs.
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
    """The adjoint of the item-item layers; a separate function, so that its temporaries are freed when it returns."""
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
    """The adjoint of `_take`: a new tensor of `shape`, zero except for `x` at `rows`."""
    if len(x) == shape[0] and not isinstance(rows, Tensor):
        return x.clone()
    spread = x.new_zeros(shape)
    if isinstance(rows, Tensor):
        spread.index_copy_(0, rows, x)
    else:
        spread[: len(x)] = x
    return spread
