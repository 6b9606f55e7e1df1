"""The item side: one channel per modality and the fused one, from frozen features (docs/model.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3_dist.config.settings import Model
from cm3_dist.errors import InputError
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.model.spherical_fusion import bezier, mean, pairwise

FUSIONS = {"bezier": bezier, "slerp": pairwise, "mean": mean}


class ItemEncoder(nn.Module):
    """Encodes items of M modalities into C = M + 1 channels of width d.

    Args:
        dims: modality -> feature width, in the order of the curve's control points.
        dim: d.
        seed: of the initial weights, equal on all ranks.
        precision: of the matrix products. With bfloat16 their results are turned back into float32 before anything is
            normalised or fused: the curve needs more digits.
        fusion: "bezier", "slerp", "mean" or "concat": how the points become one.
        order: the modalities in the order of the curve's control points, if not that of `dims`.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        dim: int,
        seed: int,
        precision: str = "float32",
        fusion: str = "bezier",
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self._fusion, self._order = FUSIONS.get(fusion), list(order or dims)
        self._low = torch.bfloat16 if precision == "bfloat16" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.ModuleDict({name: nn.Linear(width, 4 * dim) for name, width in dims.items()})
            self.channel = nn.ModuleDict({name: nn.Linear(4 * dim, dim, bias=False) for name in dims})
            self.point = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in dims.items()})
            for layer in self.point.values():
                assert isinstance(layer, nn.Linear)
                nn.init.xavier_normal_(layer.weight)
            self.projection = nn.Linear(len(dims) * dim, dim) if fusion == "concat" else None

    @staticmethod
    def of(dims: Mapping[str, int], model: Model, seed: int) -> ItemEncoder:
        """As the settings say.

        Raises:
            InputError: `model.curve_order` is not an order of the modalities.
        """
        if model.curve_order is not None and sorted(model.curve_order) != sorted(dims):
            given = ", ".join(model.curve_order)
            raise InputError(f"model.curve_order = [{given}]: name every modality of the data once: {', '.join(dims)}")
        return ItemEncoder(dims, model.dim, seed, model.encoder_precision, model.fusion, model.curve_order)

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
        return channels, self.fuse(self.points(inputs, curve.dtype), curve)

    def fuse(self, points: Mapping[str, Tensor], curve: Tensor) -> Tensor:
        """Control points modality -> [n, d] and `curve` [n] -> fused rows [n, d] of norm 1."""
        ordered = [points[name] for name in self._order]
        if self._fusion is not None:
            return self._fusion(ordered, curve)
        assert self.projection is not None
        together = torch.cat(ordered, dim=1)
        return l2_normalize(self._linear(self.projection, together.to(self._low or curve.dtype)).to(curve.dtype))

    def points(self, features: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Control points of the curve, modality -> [n, d] of norm 1; features as in `forward`, result in `dtype`."""
        return {
            name: l2_normalize(self._linear(self.point[name], values.to(self._low or dtype)).to(dtype))
            for name, values in features.items()
        }

    def _linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if self._low is None:
            return layer(x)
        bias = None if layer.bias is None else layer.bias.to(self._low)
        return F.linear(x, layer.weight.to(self._low), bias)
