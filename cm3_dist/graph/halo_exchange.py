"""Exchange of rows between ranks: planned once, then one collective per direction and use.

Planning exchanges node ids (NumPy, gloo); an `Exchange` then moves float rows [n, width] any number of times. All
exchanges use `all_to_all_single`, because gloo has no `all_to_all` (pytorch#88245).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.traffic import Kind, to_others, traffic


def send_to_owners(rows: np.ndarray, rows_per_rank: int, group: dist.ProcessGroup, *payload: np.ndarray) -> Requests:
    """Sends row numbers to the ranks that own the rows. Collective.

    Args:
        rows: [n] int64 global rows, ascending.
        rows_per_rank: local rows of each rank.
        group: a gloo group.
        payload: columns [n] of integers that are sent with the rows.

    Returns:
        What all ranks, including this one, sent to this rank, ordered by sender.
    """
    world_size = dist.get_world_size(group)
    asked = np.diff(np.searchsorted(rows, np.arange(world_size + 1, dtype=np.int64) * rows_per_rank))
    table = torch.from_numpy(np.stack([rows, *payload], axis=1).astype(np.int64, copy=False))
    if world_size == 1:
        return Requests(table.numpy(), asked.tolist(), asked.tolist())
    counts = torch.from_numpy(asked.astype(np.int64))
    incoming = torch.empty_like(counts)
    dist.all_to_all_single(incoming, counts, group=group)
    received = torch.empty(int(incoming.sum()), table.shape[1], dtype=torch.int64)
    rank = dist.get_rank(group)
    traffic.add("ids", to_others([1] * world_size, rank, 8) + to_others(asked.tolist(), rank, 8 * table.shape[1]))
    dist.all_to_all_single(received, table, incoming.tolist(), asked.tolist(), group=group)
    return Requests(received.numpy(), asked.tolist(), incoming.tolist())


@dataclass(frozen=True)
class Requests:
    """Row numbers that this rank received, and the counts of both directions."""

    table: np.ndarray  # [m, 1 + payload columns] int64: global rows of this rank that are requested
    asked: list[int]  # rows that this rank requested, per rank
    received: list[int]  # rows requested from this rank, per rank


@dataclass(frozen=True)
class Exchange:
    """Fetches rows of other ranks."""

    send: Tensor  # [sum(send_counts)] int64: positions in this rank's own rows
    send_counts: list[int]  # rows sent, per rank
    receive_counts: list[int]  # rows received, per rank
    group: dist.ProcessGroup | None  # None: one process, nothing to fetch
    kind: Kind  # kind of traffic that the rows count as

    @property
    def received(self) -> int:
        """Number of rows received."""
        return sum(self.receive_counts)

    def fetch(self, own: Tensor) -> Tensor:
        """Own rows [n, width] -> the fetched rows [received, width]. Collective."""
        if self.group is None:
            return own.new_empty(0, own.shape[1])
        halo = own.new_empty(self.received, own.shape[1])
        self._count(self.send_counts, own)
        dist.all_to_all_single(halo, own[self.send], self.receive_counts, self.send_counts, group=self.group)
        return halo

    def fetch_adjoint(self, halo: Tensor, own: Tensor) -> None:
        """The adjoint of `fetch`: sends `halo` [received, width] back and adds it to `own` [n, width]. Collective."""
        if self.group is None:
            return
        back = halo.new_empty(sum(self.send_counts), halo.shape[1])
        self._count(self.receive_counts, halo)
        dist.all_to_all_single(back, halo.contiguous(), self.send_counts, self.receive_counts, group=self.group)
        own.index_add_(0, self.send, back)

    def _count(self, counts: list[int], rows: Tensor) -> None:
        traffic.add(self.kind, to_others(counts, dist.get_rank(self.group), rows.shape[1] * rows.itemsize))


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, exchange: Exchange) -> Tensor:  # type: ignore[override]
        ctx.exchange, ctx.rows = exchange, own.shape[0]
        return exchange.fetch(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        own = grad.new_zeros(ctx.rows, grad.shape[1])
        ctx.exchange.fetch_adjoint(grad, own)
        return own, None


def fetch(own: Tensor, exchange: Exchange) -> Tensor:
    """Differentiable `Exchange.fetch`: the gradient of a fetched row is added to that of the owner's row."""
    return _Fetch.apply(own, exchange)
