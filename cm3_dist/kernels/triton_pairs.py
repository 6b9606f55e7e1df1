"""`kernels.pairs.pair_sum` for GPUs: both Gram matrices, the exponential and both gradients in one kernel.

One program takes ROWS own rows past all columns, as flash attention does: the pair matrix lives in registers, memory is
O(rows), and the gradient needs no second sweep, because the total only scales it. It runs on the CPU under Triton's
interpreter (TRITON_INTERPRET=1), where `tests/test_triton.py` compares it with float64.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3_dist.kernels.pairs import PairSum, Rows
from partition.errors import InputError

ROWS, COLUMNS = 64, 64
WIDTHS = (16, 32, 64, 128)  # of a channel
MOST_CHANNELS = 4


def channel_width(own: Rows) -> int | None:
    """The width in which the kernel takes these rows apart, None if it cannot.

    A power of two from 16 to 128 of which the rows are one to four times as wide; that of the fused rows if there are.
    """
    width = own.x.shape[1]
    widths = WIDTHS if own.fused is None else [dim for dim in WIDTHS if dim == own.fused.shape[1]]
    return next((dim for dim in widths if width % dim == 0 and width // dim <= MOST_CHANNELS), None)


def triton_pair_sum(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> PairSum:
    """See `kernels.pairs.pair_sum`; float32 rows.

    Raises:
        InputError: rows whose width the kernel does not take.
    """
    n, width = own.x.shape
    dim = channel_width(own)
    if dim is None:
        raise InputError(f"model.dim: no Triton kernel for rows of {width} floats; set machine.kernels=torch")
    x, columns_x = own.x.contiguous(), columns.x.contiguous()
    fused = x if own.fused is None else own.fused.contiguous()
    columns_fused = columns_x if columns.fused is None else columns.fused.contiguous()
    sums = x.new_empty(n)
    grad_x, grad_fused = torch.empty_like(x), torch.empty_like(fused)
    if n:
        _pairs[(triton.cdiv(n, ROWS),)](
            x,
            fused,
            columns_x,
            columns_fused,
            columns.weight.contiguous(),
            sums,
            grad_x,
            grad_fused,
            n,
            len(columns_x),
            first,
            2 * t,
            *clamp,
            CHANNELS=width // dim,
            DIM=dim,
            CALIBRATED=own.fused is not None,
            BLOCK_ROWS=ROWS,
            BLOCK_COLUMNS=COLUMNS,
        )
    factor = 1.0 if own.fused is not None else math.exp(-2 * t)
    weight = own.weight.unsqueeze(1)
    total = torch.dot(own.weight.double(), sums.double()) * factor
    scaled_fused: Tensor | None = None if own.fused is None else grad_fused * (weight * (-2 * t))
    return PairSum(total, grad_x * (weight * (2 * t * factor)), scaled_fused)


@triton.jit
def _channel(pointer, rows, mask, channel: tl.constexpr, width: tl.constexpr, dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows [R, dim] of one channel; zeros where masked."""
    columns = channel * dim + tl.arange(0, dim)
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask[:, None], other=0.0)


@triton.jit
def _put(pointer, rows, mask, values, channel: tl.constexpr, width: tl.constexpr, dim: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = channel * dim + tl.arange(0, dim)
    tl.store(pointer + rows[:, None] * width + columns[None, :], values, mask=mask[:, None])


@triton.jit
def _dot(a, b):  # type: ignore[no-untyped-def]
    # Three products of tf32 instead of one: exponents need float32's accuracy, tensor cores give it this way.
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _pairs(  # type: ignore[no-untyped-def]
    x,
    fused,
    columns_x,
    columns_fused,
    weight,
    sums,
    grad_x,
    grad_fused,
    n,
    m,
    first,
    scale,
    low,
    high,
    CHANNELS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    CALIBRATED: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_COLUMNS: tl.constexpr,  # noqa: N803
):
    width: tl.constexpr = CHANNELS * DIM
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_rows = rows < n
    wide_rows = rows.to(tl.int64)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    g0 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    a0 = _channel(x, wide_rows, inside_rows, 0, width, DIM)
    if CHANNELS > 1:
        g1 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
        a1 = _channel(x, wide_rows, inside_rows, 1, width, DIM)
    if CHANNELS > 2:
        g2 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
        a2 = _channel(x, wide_rows, inside_rows, 2, width, DIM)
    if CHANNELS > 3:
        g3 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
        a3 = _channel(x, wide_rows, inside_rows, 3, width, DIM)
    if CALIBRATED:
        gf = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
        f = _channel(fused, wide_rows, inside_rows, 0, DIM, DIM)
    for begin in range(0, m, BLOCK_COLUMNS):
        columns = begin + tl.arange(0, BLOCK_COLUMNS)
        inside_columns = columns < m
        wide_columns = columns.to(tl.int64)
        b0 = _channel(columns_x, wide_columns, inside_columns, 0, width, DIM)
        exponent = _dot(a0, tl.trans(b0))
        if CHANNELS > 1:
            b1 = _channel(columns_x, wide_columns, inside_columns, 1, width, DIM)
            exponent += _dot(a1, tl.trans(b1))
        if CHANNELS > 2:
            b2 = _channel(columns_x, wide_columns, inside_columns, 2, width, DIM)
            exponent += _dot(a2, tl.trans(b2))
        if CHANNELS > 3:
            b3 = _channel(columns_x, wide_columns, inside_columns, 3, width, DIM)
            exponent += _dot(a3, tl.trans(b3))
        if CALIBRATED:
            h = _channel(columns_fused, wide_columns, inside_columns, 0, DIM, DIM)
            phi = _dot(f, tl.trans(h))
            # Cosines: bounds of -1 and 1 are none, whatever rounding says.
            free = ((phi >= low) | (low <= -1.0)) & ((phi <= high) | (high >= 1.0))
            exponent -= tl.minimum(tl.maximum(phi, low), high)
        w = tl.load(weight + columns, mask=inside_columns, other=0.0)
        pair = tl.exp(exponent * scale) * w[None, :]
        pair = tl.where(first + rows[:, None] == columns[None, :], 0.0, pair)
        total += tl.sum(pair, 1)
        g0 += _dot(pair, b0)
        if CHANNELS > 1:
            g1 += _dot(pair, b1)
        if CHANNELS > 2:
            g2 += _dot(pair, b2)
        if CHANNELS > 3:
            g3 += _dot(pair, b3)
        if CALIBRATED:
            gf += _dot(tl.where(free, pair, 0.0), h)
    tl.store(sums + rows, total, mask=inside_rows)
    _put(grad_x, wide_rows, inside_rows, g0, 0, width, DIM)
    if CHANNELS > 1:
        _put(grad_x, wide_rows, inside_rows, g1, 1, width, DIM)
    if CHANNELS > 2:
        _put(grad_x, wide_rows, inside_rows, g2, 2, width, DIM)
    if CHANNELS > 3:
        _put(grad_x, wide_rows, inside_rows, g3, 3, width, DIM)
    if CALIBRATED:
        _put(grad_fused, wide_rows, inside_rows, gf, 0, DIM, DIM)
