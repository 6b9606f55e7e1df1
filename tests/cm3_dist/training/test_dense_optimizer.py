"""Adam on flat buffers equals torch.optim.Adam, and its state can be restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cm3_dist.training.dense_optimizer import DenseOptimizer


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LeakyReLU(), nn.Linear(7, 3, bias=False))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_equals_torch_optim(weight_decay: float) -> None:
    ours, theirs = _model(), _model()
    flat = DenseOptimizer(ours.named_parameters(), 0.05, weight_decay, extra=2)
    plain = torch.optim.Adam(theirs.parameters(), 0.05, weight_decay=weight_decay)
    for step in range(12):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            model(x).square().sum().backward()
        torch.testing.assert_close(flat.gradient, torch.cat([p.grad.reshape(-1) for p in theirs.parameters()]))
        flat.step()
        plain.step()
        plain.zero_grad()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not flat.summed.any()


def test_state_filled_in_place_restores() -> None:
    model = _model()
    flat = DenseOptimizer(model.named_parameters(), 0.05, 0.0, extra=0)
    x = torch.ones(4, 5)

    def advance() -> list[torch.Tensor]:
        model(x).square().sum().backward()
        flat.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    advance()
    saved = {name: value.clone() for name, value in flat.state().items()}
    first = advance()
    assert not torch.equal(first[0], saved["encoder/0.weight"])
    for name, value in flat.state().items():
        value.copy_(saved[name])
    assert all(torch.equal(one, other) for one, other in zip(advance(), first, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_skipped(bad: float) -> None:
    ours, theirs = _model(), _model()
    skipping = DenseOptimizer(ours.named_parameters(), 0.05, 0.1, extra=2, skip=True)
    plain = DenseOptimizer(theirs.named_parameters(), 0.05, 0.1, extra=2)
    for step in range(6):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for model, adam in ((ours, skipping), (theirs, plain)):
            model(x).square().sum().backward()
            if step != 3 or adam is skipping:
                adam.gradient[2] += bad if step == 3 else 0
                adam.step()
            adam.summed.zero_()
    for name, value in skipping.state().items():
        assert torch.equal(value, plain.state()[name]), name
