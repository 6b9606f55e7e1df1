"""Product of a CSR matrix and dense rows on a GPU, for LightGCN propagation; rows of up to 1024 floats.

One program per destination row sums the row in registers and writes it once. Source rows are read EDGES at a time, so
that many loads are in flight. The adjoint is the same kernel on the transposed matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

EDGES, WARPS = 8, 1  # edges read at a time; warps per row


def triton_spmm(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Multiplies a CSR matrix [n, m] with rows.

    Args:
        indptr: [n + 1] int64.
        indices: [entries] int64.
        values: [entries] float32.
        x: [m, width] float32.

    Returns:
        [n, width] float32.
    """
    n, width = len(indptr) - 1, x.shape[1]
    y = x.new_empty(n, width)
    if n:
        _spmm[(n,)](
            indptr,
            indices,
            values,
            x.contiguous(),
            y,
            width,
            BLOCK=triton.next_power_of_2(width),
            EDGES=EDGES,
            num_warps=WARPS,
        )
    return y


@triton.jit
def _spmm(  # type: ignore[no-untyped-def]
    indptr,
    indices,
    values,
    x,
    y,
    width,
    BLOCK: tl.constexpr,  # noqa: N803
    EDGES: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(begin, end, EDGES):
        edge = at + tl.arange(0, EDGES)
        there = edge < end
        source = tl.load(indices + edge, mask=there, other=0)
        value = tl.load(values + edge, mask=there, other=0.0)
        rows = tl.load(x + source[:, None] * width + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total += tl.sum(rows * value[:, None], 0)
    tl.store(y + row * width + columns, total, mask=inside)
