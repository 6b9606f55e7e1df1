"""LightGCN over the user-item graph, then the item-item graph: one linear operator with a hand-written adjoint.

Frontiers F_0 (the rows wanted) within F_1 within ... F_L (the rows whose ego embeddings are needed); every frontier is
a prefix of the next, or, where F_1 is everything (exact mode), F_0 a choice of its rows. Horner's form (CM3.md section
2.5, DESIGN.md idea 3)::

    y <- E on F_L;   L times, on the next smaller frontier:   y <- E + A y

sums the layers A^l E with two buffers; with weights it is w_L E on F_L, then `y <- w_l E + A y`. The adjoint walks
the same blocks the other way, so nothing is saved for the backward pass (but E, where the weights are learned). Exact
and sampled propagation differ in the blocks only.
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
class LayerWeights:
    """What the layers count in their sum."""

    user_item: Tensor | None = None  # [L_ui + 1], differentiated; None: one each
    item_graph: float = 1.0  # of S^L R, beside R


ONE_EACH = LayerWeights()


@dataclass(frozen=True)
class Propagation:
    """The whole operator, CM3.md sections 2.5 and 2.7: ego rows on F_L -> propagated rows on F_0 and T_0."""

    hops: Sequence[Hop]  # hops[k]: F_k from F_{k+1}
    # Item-item layers: rows of T_k (places only in the first), and T_k from T_{k+1}; T_last = items of F_0.
    similar: Sequence[tuple[Rows, Relation]]

    def __call__(self, users: Tensor, items: Tensor, weights: LayerWeights = ONE_EACH) -> tuple[Tensor, Tensor]:
        """User and item ego rows [n_L, width] -> [users of F_0, width], [items of T_0, width].

        Differentiable, collective.
        """
        return _Propagate.apply(users, items, weights.user_item, weights.item_graph, self)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, users: Tensor, items: Tensor, weights: Tensor | None, item_graph: float, operator: Propagation
    ) -> tuple[Tensor, Tensor]:
        ctx.operator, ctx.shapes, ctx.item_graph = operator, (users.shape, items.shape), item_graph
        learned = ctx.needs_input_grad[2]
        ctx.save_for_backward(weights, *((users, items) if learned else (None, None)))
        u, i = (users, items) if weights is None else (users * weights[-1], items * weights[-1])
        for layer, hop in reversed(list(enumerate(operator.hops))):
            u, i = (
                _add(hop.user_from_item.forward(i), _take(users, hop.users), weights, layer),
                _add(hop.item_from_user.forward(u), _take(items, hop.items), weights, layer),
            )
        s = i
        for rows, relation in reversed(operator.similar):
            s = relation.forward(s)
            i = _take(i, rows)
        # Without any layer the operator is the identity; autograd wants its outputs distinct from its inputs.
        i = (s if item_graph == 1 else s.mul_(item_graph)).add_(i) if operator.similar else i.clone()
        return (u if operator.hops else u.clone()), i

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_i: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        operator: Propagation = ctx.operator
        weights, users, items = ctx.saved_tensors
        grad_i = _through_similar(operator, grad_i, ctx.item_graph)
        wanted_u, wanted_i = (operator.hops[0].users, operator.hops[0].items) if operator.hops else (None, None)
        total_u, total_i = _spread(grad_u, wanted_u, ctx.shapes[0]), _spread(grad_i, wanted_i, ctx.shapes[1])
        along = []  # <A^l gradient, E>: the gradient of weight l, of this rank's rows
        if users is not None:
            along.append(_inner(total_u, users) + _inner(total_i, items))
        if weights is not None:
            total_u, total_i = total_u.mul_(weights[0]), total_i.mul_(weights[0])
        for layer, hop in enumerate(operator.hops, start=1):
            grad_u, grad_i = hop.item_from_user.adjoint(grad_i), hop.user_from_item.adjoint(grad_u)
            _add(total_u[: len(grad_u)], grad_u, weights, layer)
            _add(total_i[: len(grad_i)], grad_i, weights, layer)
            if users is not None:
                along.append(_inner(grad_u, users[: len(grad_u)]) + _inner(grad_i, items[: len(grad_i)]))
        return total_u, total_i, torch.stack(along) if along else None, None, None


def _add(x: Tensor, rows: Tensor, weights: Tensor | None, layer: int) -> Tensor:
    """Adds weighted rows to `x`, in place."""
    return x.add_(rows) if weights is None else x.addcmul_(rows, weights[layer])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.dot(x.reshape(-1), y.reshape(-1))


def _through_similar(operator: Propagation, grad: Tensor, item_graph: float) -> Tensor:
    """The adjoint of the item-item layers. A function of its own, so that nothing of it outlives it."""
    if not operator.similar:
        return grad
    direct, s = grad, grad if item_graph == 1 else grad * item_graph
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
