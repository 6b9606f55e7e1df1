"""`kernels.pair_sum.pair_sum` for GPUs: both Gram matrices, the exponential and both gradients in one kernel.

Each program processes a block of own rows against all columns, as flash attention does. The pair matrix stays in
registers, memory is O(rows), and the gradient needs no second pass, because the total only scales it.

Exponents need about float32 accuracy. Every float32 operand is split into two bfloat16 numbers, high + low, and a
product is computed as three on tensor cores: high * high + high * low + low * high, with an error of about 2^-16. This
is as accurate as three tf32 products at twice the rate, and bfloat16 operands need no transposition.

Tests run the kernel on the CPU with Triton's interpreter (TRITON_INTERPRET=1) and compare it with float64.

Shapes: n own rows and N columns of width C * d, fused rows of width d, at most MOST_CHANNELS channels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3_dist.errors import AgreedError
from cm3_dist.kernels.pair_sum import PairSum, Rows

# Rows, columns, warps and stages of a block, fastest on an H200 first; smaller ones for less shared memory or more
# channels. Many rows keep the tensor cores busy with large blocks; few rows must be spread over all multiprocessors.
MANY_BLOCKS = ((128, 32, 8, 3), (128, 32, 8, 2), (64, 32, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2))
FEW_BLOCKS = ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2))
MANY = 96 * 128  # rows
WIDTHS = (16, 32, 64, 128)  # of a channel
MOST_CHANNELS = 4


def channel_width(own: Rows) -> int | None:
    """The channel width d in which the kernel processes these rows; None if it cannot.

    d is a power of two from 16 to 128, and rows have one to four channels. With fused rows d is their width.
    """
    width = own.x.shape[1]
    widths = WIDTHS if own.fused is None else [dim for dim in WIDTHS if dim == own.fused.shape[1]]
    return next((dim for dim in widths if width % dim == 0 and width // dim <= MOST_CHANNELS), None)


def triton_pair_sum(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> PairSum:
    """As `kernels.pair_sum.pair_sum`, for float32 rows.

    Raises:
        InputError: the kernel does not support rows of this width.
    """
    n, width = own.x.shape
    dim = channel_width(own)
    if dim is None:
        raise AgreedError(
            f"model.dim: no Triton kernel for rows of {width} floats; set machine.kernels=torch", "kernels.width"
        )
    split = _split(columns)
    mine = split if own is columns else _split(own)
    sums = own.x.new_empty(n)
    grad_x = own.x.new_empty(n, width)
    grad_fused = None if own.fused is None else torch.empty_like(own.fused)
    block_rows, block_columns, warps, stages = _block(n, split[0].shape[1], own.x.device)
    if n:
        _pairs[(triton.cdiv(n, block_rows),)](
            x=mine[0],
            x_low=mine[1],
            columns_x=split[0],
            columns_low=split[1],
            weight=columns.weight.contiguous(),
            sums=sums,
            grad_x=grad_x,
            grad_fused=grad_x if grad_fused is None else grad_fused,
            n=n,
            m=len(columns.x),
            first=first,
            scale=2 * t / math.log(2),
            low=clamp[0],
            high=clamp[1],
            CHANNELS=width // dim,
            DIM=dim,
            CALIBRATED=own.fused is not None,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
            num_stages=stages,
        )
    factor = 1.0 if own.fused is not None else math.exp(-2 * t)
    weight = own.weight.unsqueeze(1)
    total = torch.dot(own.weight.double(), sums.double()) * factor
    return PairSum(
        total, grad_x * (weight * (2 * t * factor)), None if grad_fused is None else grad_fused * (weight * (-2 * t))
    )


def _block(n: int, width: int, device: torch.device) -> tuple[int, int, int, int]:
    """The fastest block whose operands, high and low, fit into this GPU's shared memory."""
    blocks = MANY_BLOCKS if n >= MANY else FEW_BLOCKS
    if device.type == "cpu":
        return blocks[0]
    room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin - 1024
    fitting = (block for block in blocks if (block[0] + block[3] * block[1]) * width * 4 <= room)
    return next(fitting, blocks[-1])


def _split(rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows [n, width + fused width] as high + low bfloat16."""
    values = rows.x if rows.fused is None else torch.cat([rows.x, rows.fused], dim=1)
    high = values.to(torch.bfloat16).contiguous()
    return high, (values - high).to(torch.bfloat16)


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
def _dot(a, b, sum, interpreted: tl.constexpr):  # type: ignore[no-untyped-def]
    if interpreted:  # the interpreter multiplies the bits of bfloat16 as integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sum)
    return tl.dot(a, b, sum)


@triton.jit
def _product(a, a_low, b, b_low, sum, interpreted: tl.constexpr):  # type: ignore[no-untyped-def]
    """`sum` + (a + a_low) (b + b_low), smallest products first, without the product of both low parts."""
    sum = _dot(a_low, b, sum, interpreted)
    sum = _dot(a, b_low, sum, interpreted)
    return _dot(a, b, sum, interpreted)


@triton.jit
def _transposed_product(a, a_low, b, b_low, sum, interpreted: tl.constexpr):  # type: ignore[no-untyped-def]
    return _product(a, a_low, tl.trans(b), tl.trans(b_low), sum, interpreted)


@triton.jit
def _pairs(  # type: ignore[no-untyped-def]
    x,
    x_low,
    columns_x,
    columns_low,
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
    INTERPRETED: tl.constexpr,  # noqa: N803
):
    out: tl.constexpr = CHANNELS * DIM
    width: tl.constexpr = out + DIM if CALIBRATED else out
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside_rows = rows < n
    wide_rows = rows.to(tl.int64)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    a0 = _channel(x, wide_rows, inside_rows, 0, width, DIM)
    a0_low = _channel(x_low, wide_rows, inside_rows, 0, width, DIM)
    g0 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    if CHANNELS > 1:
        a1 = _channel(x, wide_rows, inside_rows, 1, width, DIM)
        a1_low = _channel(x_low, wide_rows, inside_rows, 1, width, DIM)
        g1 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    if CHANNELS > 2:
        a2 = _channel(x, wide_rows, inside_rows, 2, width, DIM)
        a2_low = _channel(x_low, wide_rows, inside_rows, 2, width, DIM)
        g2 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    if CHANNELS > 3:
        a3 = _channel(x, wide_rows, inside_rows, 3, width, DIM)
        a3_low = _channel(x_low, wide_rows, inside_rows, 3, width, DIM)
        g3 = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    if CALIBRATED:
        f = _channel(x, wide_rows, inside_rows, CHANNELS, width, DIM)
        f_low = _channel(x_low, wide_rows, inside_rows, CHANNELS, width, DIM)
        gf = tl.zeros((BLOCK_ROWS, DIM), tl.float32)
    for begin in range(0, m, BLOCK_COLUMNS):
        columns = begin + tl.arange(0, BLOCK_COLUMNS)
        inside_columns = columns < m
        wide_columns = columns.to(tl.int64)
        exponent = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        if CALIBRATED:
            h = _channel(columns_x, wide_columns, inside_columns, CHANNELS, width, DIM)
            h_low = _channel(columns_low, wide_columns, inside_columns, CHANNELS, width, DIM)
            phi = _transposed_product(f, f_low, h, h_low, exponent, INTERPRETED)
            # Cosines cannot exceed bounds of -1 and 1, except by rounding.
            free = ((phi >= low) | (low <= -1.0)) & ((phi <= high) | (high >= 1.0))
            exponent = -tl.minimum(tl.maximum(phi, low), high)
        b0 = _channel(columns_x, wide_columns, inside_columns, 0, width, DIM)
        b0_low = _channel(columns_low, wide_columns, inside_columns, 0, width, DIM)
        exponent = _transposed_product(a0, a0_low, b0, b0_low, exponent, INTERPRETED)
        if CHANNELS > 1:
            b1 = _channel(columns_x, wide_columns, inside_columns, 1, width, DIM)
            b1_low = _channel(columns_low, wide_columns, inside_columns, 1, width, DIM)
            exponent = _transposed_product(a1, a1_low, b1, b1_low, exponent, INTERPRETED)
        if CHANNELS > 2:
            b2 = _channel(columns_x, wide_columns, inside_columns, 2, width, DIM)
            b2_low = _channel(columns_low, wide_columns, inside_columns, 2, width, DIM)
            exponent = _transposed_product(a2, a2_low, b2, b2_low, exponent, INTERPRETED)
        if CHANNELS > 3:
            b3 = _channel(columns_x, wide_columns, inside_columns, 3, width, DIM)
            b3_low = _channel(columns_low, wide_columns, inside_columns, 3, width, DIM)
            exponent = _transposed_product(a3, a3_low, b3, b3_low, exponent, INTERPRETED)
        w = tl.load(weight + columns, mask=inside_columns, other=0.0)
        value = tl.exp2(exponent * scale) * w[None, :]
        value = tl.where(first + rows[:, None] == columns[None, :], 0.0, value)
        total += tl.sum(value, 1)
        pair = value.to(tl.bfloat16)
        pair_low = (value - pair.to(tl.float32)).to(tl.bfloat16)
        g0 = _product(pair, pair_low, b0, b0_low, g0, INTERPRETED)
        if CHANNELS > 1:
            g1 = _product(pair, pair_low, b1, b1_low, g1, INTERPRETED)
        if CHANNELS > 2:
            g2 = _product(pair, pair_low, b2, b2_low, g2, INTERPRETED)
        if CHANNELS > 3:
            g3 = _product(pair, pair_low, b3, b3_low, g3, INTERPRETED)
        if CALIBRATED:
            pair = tl.where(free, pair, 0.0)  # a clamped phi has no gradient
            pair_low = tl.where(free, pair_low, 0.0)
            gf = _product(pair, pair_low, h, h_low, gf, INTERPRETED)
    tl.store(sums + rows, total, mask=inside_rows)
    _put(grad_x, wide_rows, inside_rows, g0, 0, out, DIM)
    if CHANNELS > 1:
        _put(grad_x, wide_rows, inside_rows, g1, 1, out, DIM)
    if CHANNELS > 2:
        _put(grad_x, wide_rows, inside_rows, g2, 2, out, DIM)
    if CHANNELS > 3:
        _put(grad_x, wide_rows, inside_rows, g3, 3, out, DIM)
    if CALIBRATED:
        _put(grad_fused, wide_rows, inside_rows, gf, 0, DIM, DIM)
