"""Sparse operators on rows distributed over ranks: y = A x and its adjoint, without autograd.

Shapes: rows of any width; a block has a row per destination and a column per source: first this rank's own source rows
(a prefix of the rows it holds), then the rows fetched from other ranks.
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
    """A sparse matrix [len(indptr) - 1, columns]."""

    indptr: Tensor  # [rows + 1] int64
    indices: Tensor  # [entries] int64
    values: Tensor  # [entries] float32
    columns: int
    kernels: Kernels = "torch"  # used on a GPU; the CPU has torch's only

    def times(self, x: Tensor) -> Tensor:
        """The product with `x`: [columns, width] -> [rows, width].

        A weighted embedding bag is a CSR product, and FBGEMM's is the fastest on the CPU: on Baby's graph with width
        192 and 2 threads it takes 10.7 ms, DGL 40, torch CSR 59 (int32) and 78 (int64), COO 88.
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
        """The rows at `index` [n] int64, in that order, with all columns."""
        indptr, place = row_places(self.indptr, index)
        indices, values = self.indices.index_select(0, place), self.values.index_select(0, place)
        return Csr(indptr, indices, values, self.columns, self.kernels)

    @staticmethod
    def from_numpy(
        indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, columns: int, kernels: Kernels = "torch"
    ) -> Csr:
        """From CSR arrays, converted to int64 and float32."""
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
class GatherSpMM:
    """y = matrix @ [own rows; fetched rows]."""

    matrix: Csr
    exchange: Exchange

    def __call__(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        halo = self.exchange.fetch(x)
        own = x[: self.matrix.columns - self.exchange.received]
        return self.matrix.times(torch.cat([own, halo]) if self.exchange.received else own)

    def rows(self, index: Tensor) -> GatherSpMM:
        """The operator restricted to the destination rows `index` [n] int64. It fetches the same rows as before."""
        return GatherSpMM(self.matrix.rows(index), self.exchange)


@dataclass(frozen=True)
class ScatterSpMM:
    """The adjoint of a `GatherSpMM`: y = own rows of (matrix @ x), plus the rows that other ranks computed for it."""

    matrix: Csr  # transpose of the Pull's matrix
    exchange: Exchange

    def __call__(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        y = self.matrix.times(x)
        own = len(self.matrix.indptr) - 1 - self.exchange.received
        result = y[:own]
        self.exchange.fetch_adjoint(y[own:], result)
        return result


@dataclass(frozen=True)
class LinearMap:
    """A linear map and its adjoint."""

    forward: Operator
    adjoint: Operator

    @staticmethod
    def of(pull: GatherSpMM) -> LinearMap:
        """With an adjoint built by transposing; symmetric operators need none (see `graph.full_graph`)."""
        return LinearMap(pull, ScatterSpMM(pull.matrix.transposed(), pull.exchange))

    @staticmethod
    def forward_only(pull: GatherSpMM) -> LinearMap:
        """For inference; its adjoint raises RuntimeError."""
        return LinearMap(pull, _no_adjoint)


def _no_adjoint(x: Tensor) -> Tensor:
    raise RuntimeError("this operator has no adjoint, so no gradient can be computed through it")
