"""The item side: one channel per modality and the fused one, from frozen features (CM3.md sections 2.1 and 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3_dist.model.fusion import bezier
from cm3_dist.model.unit import unit


class ItemEncoder(nn.Module):
    """Encodes items of M modalities into C = M + 1 channels of width d.

    Args:
        dims: modality -> feature width, in the order of the curve's control points.
        dim: d.
        seed: of the initial weights, equal on all ranks.
        precision: of the matrix products. With bfloat16 their results are turned back into float32 before anything is
            normalised or fused: the curve needs more digits.
        centre: "middle", "shared" or "item": whether and how the curve's parameter is moved by what is learned.
    """

    def __init__(
        self, dims: Mapping[str, int], dim: int, seed: int, precision: str = "float32", centre: str = "middle"
    ) -> None:
        super().__init__()
        self._low = torch.bfloat16 if precision == "bfloat16" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.ModuleDict({name: nn.Linear(width, 4 * dim) for name, width in dims.items()})
            self.channel = nn.ModuleDict({name: nn.Linear(4 * dim, dim, bias=False) for name in dims})
            self.point = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in dims.items()})
            for layer in self.point.values():
                assert isinstance(layer, nn.Linear)
                nn.init.xavier_normal_(layer.weight)
        # Zero at first: the curve's parameter stays as it is drawn.
        self.centre = nn.Parameter(torch.zeros(())) if centre != "middle" else None
        self.centre_of = nn.ModuleDict()
        if centre == "item":
            self.centre_of = nn.ModuleDict({name: nn.Linear(width, 1, bias=False) for name, width in dims.items()})
            for weight in self.centre_of.parameters():
                nn.init.zeros_(weight)

    def forward(self, features: Mapping[str, Tensor], curve: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features modality -> [n, d_m] of any float dtype, `curve` [n] -> M channels [n, d] and the fused rows [n, d].

        Modality channels are not normalised; fused rows have norm 1.
        """
        inputs = {name: values.to(self._low or curve.dtype) for name, values in features.items()}
        channels = [
            # In place: the backward pass needs the result only, and these are the widest rows of a step.
            self._linear(self.channel[name], F.leaky_relu(self._linear(self.hidden[name], x), inplace=True)).to(
                curve.dtype
            )
            for name, x in inputs.items()
        ]
        return channels, bezier(list(self.points(inputs, curve.dtype).values()), self._moved(curve, inputs))

    def _moved(self, curve: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The curve's parameter with its odds times e^b, b learned: 0 and 1 stay, 1/2 becomes the sigmoid of b."""
        if self.centre is None:
            return curve
        b = self.centre
        for name, layer in self.centre_of.items():
            b = b + self._linear(layer, inputs[name]).to(curve.dtype).squeeze(1)
        # The odds' two sides, both at most 1, whatever b is.
        up, down = curve * torch.sigmoid(b), (1 - curve) * torch.sigmoid(-b)
        return up / (up + down)

    def points(self, features: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Control points of the curve, modality -> [n, d] of norm 1; features as in `forward`, result in `dtype`."""
        return {
            name: unit(self._linear(self.point[name], values.to(self._low or dtype)).to(dtype))
            for name, values in features.items()
        }

    def _linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if self._low is None:
            return layer(x)
        bias = None if layer.bias is None else layer.bias.to(self._low)
        return F.linear(x, layer.weight.to(self._low), bias)
