"""The item encoder: one channel per modality and the fused channel, from frozen features (docs/model.md).

Shapes: n items, M modalities of d_m features, C = M + 1 channels of width d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3_dist.config.settings import Model
from cm3_dist.errors import AgreedError
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.model.presence import Presence, presence
from cm3_dist.model.spherical_fusion import bezier, mean, pairwise, without_absent

FUSIONS = {"bezier": bezier, "slerp": pairwise, "mean": mean}


class ItemEncoder(nn.Module):
    """Encodes items of M modalities into C = M + 1 channels of width d.

    Args:
        dims: modality -> feature width, in the order of the curve's control points.
        dim: d.
        seed: of the initial weights, equal on all ranks.
        precision: of the matrix products, "float32" or "bfloat16". Their results are converted to float32 before
            normalisation and fusion, which need more precision than bfloat16 has.
        fusion: how points are fused: "bezier", "slerp", "mean" or "concat".
        order: modalities in the order of the curve's control points; by default that of `dims`.
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
        """The encoder for these settings; `dims` and `seed` as in the class.

        Raises:
            InputError: `model.curve_order` is not a permutation of the modalities.
        """
        if model.curve_order is not None and sorted(model.curve_order) != sorted(dims):
            given = ", ".join(model.curve_order)
            raise AgreedError(
                f"model.curve_order = [{given}]: name every modality of the data once: {', '.join(dims)}",
                "settings.modalities",
            )
        return ItemEncoder(dims, model.dim, seed, model.encoder_precision, model.fusion, model.curve_order)

    def forward(
        self, features: Mapping[str, Tensor], curve: Tensor, missing: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Encodes items.

        Args:
            features: modality -> [n, d_m], any float dtype.
            curve: [n] curve parameters; their dtype is that of the result.
            missing: modality -> [n] bool: the items that lack it; modalities that no item lacks may be left out.

        Returns:
            M modality channels [n, d], not normalised, zeros where the item lacks the modality; and the fused rows
            [n, d] of norm 1.
        """
        present = presence(features, missing or {})
        inputs = {name: values.to(self._low or curve.dtype) for name, values in features.items()}
        channels = [
            # In place, because these are the widest rows of a step and the backward pass needs only the result.
            self._linear(self.channel[name], F.leaky_relu(self._linear(self.hidden[name], x), inplace=True)).to(
                curve.dtype
            )
            for name, x in inputs.items()
        ]
        if present is not None:
            channels = [
                rows.masked_fill(~present[name].unsqueeze(1), 0) for name, rows in zip(inputs, channels, strict=True)
            ]
        return channels, self.fuse(self.points(inputs, curve.dtype), curve, present)

    def fuse(self, points: Mapping[str, Tensor], curve: Tensor, present: Presence | None = None) -> Tensor:
        """Fuses control points, modality -> [n, d], at `curve` [n] into rows [n, d] of norm 1.

        Args:
            points: of all modalities.
            curve: curve parameters.
            present: the modalities that count, from `presence`; None for all.
        """
        ordered = [points[name] for name in self._order]
        masks = None if present is None else [present[name] for name in self._order]
        if self._fusion is not None:
            return self._fusion(ordered, curve, masks)
        assert self.projection is not None
        together = torch.cat(without_absent(ordered, masks), dim=1)
        return l2_normalize(self._linear(self.projection, together.to(self._low or curve.dtype)).to(curve.dtype))

    def points(self, features: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Control points of the curve, modality -> [n, d] of norm 1 and `dtype`, from features as in `forward`."""
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
