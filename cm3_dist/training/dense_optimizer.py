"""Adam on the replicated weights, stored in one flat parameter: one collective and one fused kernel per step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class DenseOptimizer:
    """Moves the parameters and their gradients into flat buffers and makes them views of these.

    Args:
        named: (name, parameter) pairs, all of one dtype and device.
        lr: learning rate.
        weight_decay: L2 penalty added to the gradient (not decoupled), as in CM3.
        extra: number of floats that are summed over the ranks together with the gradients.
        skip: leave weights and moments unchanged if the gradient is not finite; decided on the device.
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
        self._named, self._skip = dict(named), skip
        parameters = list(self._named.values())
        self._sizes = [parameter.numel() for parameter in parameters]
        flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
        self.summed = torch.zeros(sum(self._sizes) + extra, dtype=flat.dtype, device=flat.device)
        self.gradient, self.extra = self.summed.split([sum(self._sizes), extra])
        flat.grad = self.gradient
        pieces = zip(parameters, self._split(flat.detach()), self._split(self.gradient), strict=True)
        for parameter, weight, gradient in pieces:
            parameter.data, parameter.grad = weight.view_as(parameter), gradient.view_as(parameter)
        # A CUDA graph (training.cuda_graph_step) needs `capturable`, which exists on GPUs only.
        self._adam = torch.optim.Adam(
            [flat], lr=lr, weight_decay=weight_decay, fused=True, capturable=flat.device.type == "cuda"
        )
        # The state is created before the first step so that a checkpoint can be loaded into it in place.
        self._state = {
            "step": torch.zeros((), device=flat.device),
            "exp_avg": torch.zeros_like(flat, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
        }
        self._adam.state[flat] = self._state

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters with their gradients, then sets the gradients to zero."""
        if self._skip:
            # The fused kernel treats this as GradScaler's flag and changes nothing if it is 1.
            self._adam.found_inf = (~torch.isfinite(self.gradient.norm())).float()  # type: ignore[attr-defined]
        self._adam.step()
        self.summed.zero_()

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name. They share memory, so filling them in place restores an earlier state."""
        state = {f"encoder/{name}": parameter.detach() for name, parameter in self._named.items()}
        for moment in ("exp_avg", "exp_avg_sq"):
            for (name, parameter), piece in zip(self._named.items(), self._split(self._state[moment]), strict=True):
                state[f"adam/{name}/{moment}"] = piece.view_as(parameter)
        return {**state, "adam/step": self._state["step"]}

    def _split(self, flat: Tensor) -> Iterable[Tensor]:
        return flat.split(self._sizes)
