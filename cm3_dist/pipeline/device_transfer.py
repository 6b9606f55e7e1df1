"""Moves nested dataclasses of tensors: into pinned memory while a step is planned, to the device before it runs.

`pack` lays a plan's tensors in one buffer, so that they travel in one copy and a captured step can be replayed on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from operator import is_
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")

ALIGNMENT = 16  # bytes
Place: TypeAlias = tuple[int, torch.Size, torch.dtype]  # first byte, shape, type


def map_tensors(value: T, change: Callable[[Tensor], Tensor], leave: Collection[int] = ()) -> T:
    """Applies `change` to every tensor in nested dataclasses, lists, tuples and dicts; all else stays as it is.

    An object that occurs several times is changed once: the layers of exact propagation share their operators.

    Args:
        value: what to map.
        change: applied to each distinct tensor.
        leave: ids of objects to leave as they are, such as the operators that all plans share.
    """
    return _mapped(value, change, leave, {})


def _mapped(value: Any, change: Callable[[Tensor], Tensor], leave: Collection[int], done: dict[int, Any]) -> Any:
    if id(value) in leave:
        return value
    if id(value) not in done:
        done[id(value)] = _changed(value, change, leave, done)
    return done[id(value)]


def _changed(value: Any, change: Callable[[Tensor], Tensor], leave: Collection[int], done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        parts = [_mapped(part, change, leave, done) for part in value]
        return value if all(map(is_, parts, value)) else type(value)(parts)
    if isinstance(value, dict):
        return {name: _mapped(part, change, leave, done) for name, part in value.items()}
    changed = {}
    for name in _field_names(cast(Hashable, type(value))):
        before = getattr(value, name)
        after = _mapped(before, change, leave, done)
        if after is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value


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


class Packed:
    """Where a plan's tensors lie. Not a dataclass: `map_tensors` is not to look into it.

    Attributes:
        memory: [bytes] uint8.
        places: of the tensors in it, in the order of `map_tensors`.
    """

    def __init__(self, memory: Tensor, places: list[Place]) -> None:
        self.memory, self.places = memory, places


def pack(plan: T, resident: Collection[int], pin: bool) -> tuple[T, Packed]:
    """The same plan with its tensors packed; `pin`: in memory from which a GPU copies without the host waiting.

    `resident`: ids of what all plans share (`Planner.resident`).
    """
    tensors, places, size = list[Tensor](), list[Place](), 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal size
        tensors.append(tensor)
        places.append((size, tensor.shape, tensor.dtype))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return tensor

    map_tensors(plan, note, resident)
    packed = Packed(torch.empty(size, dtype=torch.uint8, pin_memory=pin), places)
    views = [view.copy_(tensor) for view, tensor in zip(views_of(packed), tensors, strict=True)]
    return unpack(plan, resident, views), packed


def unpack(plan: T, resident: Collection[int], views: list[Tensor]) -> T:
    """The same plan with other tensors, in the order of `Packed.places`."""
    waiting = iter(views)
    return map_tensors(plan, lambda _: next(waiting), resident)


def views_of(packed: Packed) -> list[Tensor]:
    """The tensors in its memory."""
    return [
        packed.memory[first : first + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for first, shape, dtype in packed.places
    ]
