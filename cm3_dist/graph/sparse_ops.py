"""Sparse operators over rows that are spread over ranks: y = A x, and its adjoint, without autograd.

Column space of a block: first this rank's own rows (a prefix of what it holds), then the fetched rows of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3_dist.graph.csr_lists import row_places
from cm3_dist.graph.halo_exchange import Exchange
from cm3_dist.kernels import Kernels


@dataclass(frozen=True)
class Csr:
    """A sparse matrix [len(indptr) - 1, columns]: indptr and indices int64, values float32.

    `kernels` multiply it on a GPU; the CPU has torch's only.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    columns: int
    kernels: Kernels = "torch"

    def times(self, x: Tensor) -> Tensor:
        """[columns, width] -> [rows, width].

        An embedding bag with weights is a CSR product, and FBGEMM's vectorised one is the fastest on the CPU: 10.7 ms
        against 40 (DGL), 59 (torch CSR, int32), 78 (CSR, int64) and 88 (COO) on Baby's graph, width 192, 2 threads.
        """
        if self.indices.numel() == 0:
            return x.new_zeros(len(self.indptr) - 1, x.shape[1])
        if x.is_cuda and self.kernels == "triton":
            from cm3_dist.kernels.spmm_triton import triton_spmm

            return triton_spmm(self.indptr, self.indices, self.values, x)
        values = self.values.to(x.dtype)
        return F.embedding_bag(
            self.indices, x, self.indptr, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def transposed(self) -> Csr:
        """The transpose, rows in ascending order (scipy)."""
        rows = len(self.indptr) - 1
        matrix = sp.csr_array(
            (self.values.numpy(), self.indices.numpy(), self.indptr.numpy()), (rows, self.columns)
        ).tocsc()
        return Csr.from_numpy(matrix.indptr, matrix.indices, matrix.data, rows, self.kernels)

    def rows(self, index: Tensor) -> Csr:
        """The rows at `index` [n] int64, in that order; all columns stay."""
        indptr, place = row_places(self.indptr, index)
        indices, values = self.indices.index_select(0, place), self.values.index_select(0, place)
        return Csr(indptr, indices, values, self.columns, self.kernels)

    @staticmethod
    def from_numpy(
        indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, columns: int, kernels: Kernels = "torch"
    ) -> Csr:
        """Wraps the arrays, as int64 and float32."""
        return Csr(
            torch.from_numpy(indptr.astype(np.int64, copy=False)),
            torch.from_numpy(indices.astype(np.int64, copy=False)),
            torch.from_numpy(values.astype(np.float32, copy=False)),
            columns,
            kernels,
        )


class Operator(Protocol):
    """A linear map from this rank's rows of one kind to its rows of another. Collective."""

    def __call__(self, x: Tensor) -> Tensor:
        """[own source rows, width] -> [own destination rows, width]."""
        ...


@dataclass(frozen=True)
class Pull:
    """y = matrix @ [own rows; fetched rows]."""

    matrix: Csr
    exchange: Exchange

    def __call__(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        halo = self.exchange.fetch(x)
        own = x[: self.matrix.columns - self.exchange.received]
        return self.matrix.times(torch.cat([own, halo]) if self.exchange.received else own)

    def rows(self, index: Tensor) -> Pull:
        """Some of its destination rows only; what is fetched stays the same, so that no rank need be asked."""
        return Pull(self.matrix.rows(index), self.exchange)


@dataclass(frozen=True)
class Push:
    """The adjoint of a Pull: y = own rows of (matrix @ x), after the rows of others are given back to them."""

    matrix: Csr  # the Pull's matrix, transposed
    exchange: Exchange

    def __call__(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        y = self.matrix.times(x)
        own = len(self.matrix.indptr) - 1 - self.exchange.received
        result = y[:own]
        self.exchange.give_back(y[own:], result)
        return result


@dataclass(frozen=True)
class Relation:
    """A linear map and its adjoint."""

    forward: Operator
    adjoint: Operator

    @staticmethod
    def of(pull: Pull) -> Relation:
        """With the adjoint made by transposing; a symmetric operator needs none (see `graph.exact`)."""
        return Relation(pull, Push(pull.matrix.transposed(), pull.exchange))

    @staticmethod
    def forward_only(pull: Pull) -> Relation:
        """For inference: the adjoint raises RuntimeError."""
        return Relation(pull, _no_adjoint)


def _no_adjoint(x: Tensor) -> Tensor:
    raise RuntimeError("this operator was made without its adjoint; no gradient passes through it")
