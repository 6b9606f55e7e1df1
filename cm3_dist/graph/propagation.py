"""LightGCN over the user-item graph, then the item-item graph: one linear operator with a hand-written adjoint.

Frontiers F_0 (the rows wanted) within F_1 within ... F_L (the rows whose ego embeddings are needed); every frontier is
a prefix of the next, so `rows[:n]` restricts to it. Horner's form (CM3.md section 2.5, DESIGN.md idea 3)::

    y <- E on F_L;   L times, on the next smaller frontier:   y <- E + A y

sums the layers A^l E with two buffers. The adjoint walks the same blocks the other way, so nothing is saved for the
backward pass. Exact and sampled propagation differ in the blocks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3_dist.graph.operators import Relation


@dataclass(frozen=True)
class Hop:
    """One user-item layer: rows of F_k from rows of F_{k+1}."""

    users: int  # rows of F_k
    items: int
    user_from_item: Relation
    item_from_user: Relation

    def to(self, device: torch.device) -> Hop:
        """The same on another device."""
        return Hop(self.users, self.items, self.user_from_item.to(device), self.item_from_user.to(device))


@dataclass(frozen=True)
class Propagation:
    """The whole operator, CM3.md sections 2.5 and 2.7: ego rows on F_L -> propagated rows on F_0 and T_0."""

    hops: Sequence[Hop]  # hops[k]: F_k from F_{k+1}
    similar: Sequence[
        tuple[int, Relation]
    ]  # item-item layers: rows of T_k, and T_k from T_{k+1}; T_last = items of F_0

    def __call__(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """User and item ego rows [n_L, width] -> [users of F_0, width], [items of T_0, width].

        Differentiable, collective.
        """
        return _Propagate.apply(users, items, self)

    def to(self, device: torch.device) -> Propagation:
        """The same on another device."""
        return Propagation([hop.to(device) for hop in self.hops], [(n, r.to(device)) for n, r in self.similar])


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, operator: Propagation) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.operator, ctx.shapes = operator, (users.shape, items.shape)
        u, i = users, items
        for hop in reversed(operator.hops):
            u, i = (
                hop.user_from_item.forward(i).add_(users[: hop.users]),
                hop.item_from_user.forward(u).add_(items[: hop.items]),
            )
        s = i
        for rows, relation in reversed(operator.similar):
            s = relation.forward(s)
            i = i[:rows]
        # Without any layer the operator is the identity; autograd wants its outputs distinct from its inputs.
        i = i + s if operator.similar else i.clone()
        return (u if operator.hops else u.clone()), i

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_i: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        operator: Propagation = ctx.operator
        if operator.similar:
            s = grad_i
            for _, relation in operator.similar:
                s = relation.adjoint(s)
            s[: len(grad_i)] += grad_i
            grad_i = s
        if not operator.hops:
            return _pad(grad_u, ctx.shapes[0]), _pad(grad_i, ctx.shapes[1]), None
        total_u, total_i = _pad(grad_u, ctx.shapes[0]), _pad(grad_i, ctx.shapes[1])
        for hop in operator.hops:
            grad_u, grad_i = hop.item_from_user.adjoint(grad_i), hop.user_from_item.adjoint(grad_u)
            total_u[: len(grad_u)] += grad_u
            total_i[: len(grad_i)] += grad_i
        return total_u, total_i, None


def _pad(rows: Tensor, shape: torch.Size) -> Tensor:
    if len(rows) == shape[0]:
        return rows.clone()
    padded = rows.new_zeros(shape)
    padded[: len(rows)] = rows
    return padded
