"""Adam on the replicated weights, which lie in one flat buffer: one collective and one kernel a step.

`torch.optim` imports torch's compiler at its first step, 4 s of start-up, and keeps gradients apart that one collective
could take together. The arithmetic is torch's own fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.999), 1e-8


class DenseAdam:
    """Moves the parameters and their gradients into flat buffers, of which they are views from then on.

    Args:
        named: (name, parameter) pairs, all of one dtype and device.
        lr: learning rate.
        weight_decay: added to the gradient (not decoupled), as in CM3.
        extra: floats that are added up over the ranks along with the gradients.
        skip: leave everything as it is when the gradient is not finite; known on the device alone.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float,
        extra: int,
        *,
        skip: bool = False,
    ) -> None:
        self._named = dict(named)
        self._lr, self._weight_decay, self._skip = lr, weight_decay, skip
        parameters = list(self._named.values())
        self._sizes = [parameter.numel() for parameter in parameters]
        self._weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.summed = self._weights.new_zeros(sum(self._sizes) + extra)  # the gradients, then the extra floats
        self.gradient, self.extra = self.summed.split([sum(self._sizes), extra])
        self._moments = {name: torch.zeros_like(self._weights) for name in ("exp_avg", "exp_avg_sq")}
        self._step = torch.zeros((), device=self._weights.device)
        pieces = zip(parameters, self._split(self._weights), self._split(self.gradient), strict=True)
        for parameter, weight, gradient in pieces:
            parameter.data, parameter.grad = weight.view_as(parameter), gradient.view_as(parameter)

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters with what their gradients hold, then empties these."""
        skipped = (~torch.isfinite(self.gradient.norm())).float() if self._skip else None
        self._step += 1 if skipped is None else 1 - skipped
        torch._fused_adam_(
            [self._weights],
            [self.gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._step],
            lr=self._lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPS,
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )
        self.summed.zero_()

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name, shared memory: filling them in place restores an earlier state."""
        state = {f"encoder/{name}": parameter.detach() for name, parameter in self._named.items()}
        for moment, values in self._moments.items():
            for (name, parameter), piece in zip(self._named.items(), self._split(values), strict=True):
                state[f"adam/{name}/{moment}"] = piece.view_as(parameter)
        return {**state, "adam/step": self._step}

    def _split(self, flat: Tensor) -> Iterable[Tensor]:
        return flat.split(self._sizes)
