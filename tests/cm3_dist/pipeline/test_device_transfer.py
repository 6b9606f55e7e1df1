"""Moving nested dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cm3_dist.pipeline.device_transfer import map_tensors, pinned, to_device


@dataclass(frozen=True)
class Inner:
    values: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    inner: Inner
    parts: list[Inner | int]
    named: dict[str, Tensor]
    nothing: Tensor | None


def test_every_tensor_is_changed_and_nothing_else() -> None:
    one = Inner(torch.ones(2), "one")
    outer = Outer(one, [one, 3], {"a": torch.zeros(1)}, None)
    changed = map_tensors(outer, lambda tensor: tensor + 1)
    assert changed.inner.values.tolist() == [2, 2]
    assert isinstance(changed.parts[0], Inner)
    assert changed.parts[0].values.tolist() == [2, 2]
    assert (changed.parts[1], changed.inner.name, changed.nothing) == (3, "one", None)
    assert changed.named["a"].item() == 1
    assert outer.inner.values.tolist() == [1, 1]


def test_what_is_shared_is_changed_once_and_stays_shared() -> None:
    one, copies = Inner(torch.ones(2), "one"), []

    def copy(tensor: Tensor) -> Tensor:
        copies.append(tensor)
        return tensor.clone()

    changed = map_tensors(Outer(one, [one, one], {"a": one.values}, one.values), copy)
    assert len(copies) == 1
    assert changed.inner is changed.parts[0] is changed.parts[1]
    assert changed.named["a"] is changed.nothing is changed.inner.values


def test_the_cpu_moves_nothing() -> None:
    inner = Inner(torch.ones(2), "one")
    assert to_device(inner, torch.device("cpu")) is inner
    assert pinned(inner, torch.device("cpu")) is inner
