"""Nested dataclasses of tensors, moved whole: to pinned memory while a step is planned, to the device before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from operator import is_
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def map_tensors(value: T, change: Callable[[Tensor], Tensor], leave: Collection[int] = ()) -> T:
    """The same dataclasses, lists, tuples and dicts with every tensor changed; all else stays as it is.

    `leave`: ids of objects not to look into: a step's plan shares most of its operators with every other plan.
    """
    if id(value) in leave:
        return value
    if isinstance(value, Tensor):
        return cast(T, change(value))
    if isinstance(value, list | tuple):
        parts = [map_tensors(part, change, leave) for part in value]
        return value if all(map(is_, parts, value)) else cast(T, type(value)(parts))
    if isinstance(value, dict):
        return cast(T, {name: map_tensors(part, change, leave) for name, part in value.items()})
    changed = {}
    for name in _field_names(cast(Hashable, type(value))):
        before = getattr(value, name)
        after = map_tensors(before, change, leave)
        if after is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value  # type: ignore[type-var]


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def pinned(value: T, device: torch.device, leave: Collection[int] = ()) -> T:
    """In memory from which a GPU copies without the host waiting; as it is for the CPU."""
    if device.type == "cpu":
        return value
    return map_tensors(value, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory(), leave)


def to_device(value: T, device: torch.device) -> T:
    """On the device; nothing waits for the copies."""
    if device.type == "cpu":
        return value
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))
