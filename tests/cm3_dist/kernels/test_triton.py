"""The GPU kernels compared with float64, in Triton's interpreter if there is no GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3_dist.kernels import check_kernels
from cm3_dist.kernels.pair_sum import Rows, pair_sum
from cm3_dist.kernels.pair_sum_triton import channel_width, triton_pair_sum
from cm3_dist.kernels.spmm_triton import triton_spmm
from partition.errors import InputError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rows(n: int, width: int, dim: int, seed: int, fused: bool = True) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, dim, generator=generator)  # similarities on both sides of the bounds
    s = F.normalize(torch.randn(n, dim, generator=generator) + center, dim=1)
    x = F.normalize(torch.randn(n, width, generator=generator), dim=1)
    weight = torch.rand(n, generator=generator) * 3
    return Rows(x, s if fused else None, weight)


def _to(rows: Rows, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Rows:
    def move(value: Tensor) -> Tensor:
        return value.to(dtype=dtype, device=device)

    return Rows(move(rows.x), None if rows.fused is None else move(rows.fused), move(rows.weight))


def _by_hand(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> tuple[Tensor, ...]:
    """Sum and gradients of half of it by autograd over a dense float64 matrix; columns are constants."""
    own, columns = _to(own, torch.float64), _to(columns, torch.float64)
    x = own.x.clone().requires_grad_()
    exponent = x @ columns.x.T
    fused = None
    if own.fused is None or columns.fused is None:
        exponent = exponent - 1
    else:
        fused = own.fused.clone().requires_grad_()
        exponent = exponent - (fused @ columns.fused.T).clamp(*clamp)
    pair = (2 * t * exponent).exp() * own.weight[:, None] * columns.weight[None, :]
    mask = torch.ones_like(pair)
    mask[torch.arange(len(x)), first + torch.arange(len(x))] = 0
    total = (pair * mask).sum()
    gradients = torch.autograd.grad(total, [x] if fused is None else [x, fused])
    return total.detach(), *gradients


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("channels", "dim"), [(1, 16), (2, 16), (3, 64), (4, 32)])
@pytest.mark.parametrize(("n", "others", "first"), [(5, 0, 0), (70, 0, 0), (33, 64, 20)])
def test_pair_sums(channels: int, dim: int, n: int, others: int, first: int, calibrated: bool) -> None:
    columns = _rows(n + others, channels * dim, dim, seed=n, fused=calibrated)
    own = columns[first : first + n]
    t, clamp = 2.0, (0.1, 0.8)
    expected = _by_hand(own, columns, first, t, clamp)
    found = triton_pair_sum(_to(own, device=DEVICE), _to(columns, device=DEVICE), first, t, clamp)
    blocked = pair_sum(own, columns, first, t, clamp)
    for result in (found, blocked):
        values = [result.total, result.x] + ([result.fused] if calibrated else [])
        for value, right in zip(values, expected, strict=True):
            torch.testing.assert_close(value.double().cpu(), right, rtol=2e-5, atol=2e-5 * float(right.abs().max()))


def test_no_rows_and_shapes_without_a_kernel() -> None:
    nobody = _to(_rows(0, 32, 16, seed=1), device=DEVICE)
    result = triton_pair_sum(nobody, nobody, 0, 2.0, (0, 1))
    assert result.total == 0
    assert result.x.shape == (0, 32)
    assert channel_width(_rows(1, 192, 64, seed=1)) == 64
    assert channel_width(_rows(1, 192, 64, seed=1, fused=False)) == 64
    assert channel_width(_rows(1, 5 * 64, 64, seed=1)) is None
    with pytest.raises(InputError, match=r"machine\.kernels=torch") as error:
        triton_pair_sum(_rows(3, 60, 20, seed=1), _rows(3, 60, 20, seed=1), 0, 2.0, (0, 1))
    assert error.value.code == "kernels.width"


def test_triton_is_refused_without_a_gpu() -> None:
    with pytest.raises(InputError, match=r"machine\.kernels=torch") as error:
        check_kernels("triton", "cpu")
    assert error.value.code == "device.no-gpu"


@pytest.mark.parametrize("width", [16, 24, 64, 192])
def test_spmm(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    dense = torch.rand(37, 23, generator=generator, dtype=torch.float64)
    dense[dense < 0.6] = 0
    dense[5], dense[6] = 0, 1  # an empty row and a full one
    matrix = dense.to_sparse_csr()
    x = torch.randn(23, width, generator=generator)
    arguments = [matrix.crow_indices(), matrix.col_indices(), matrix.values().float(), x]
    y = triton_spmm(*(value.to(DEVICE) for value in arguments))
    torch.testing.assert_close(y.double().cpu(), dense @ x.double(), rtol=1e-5, atol=1e-5)
