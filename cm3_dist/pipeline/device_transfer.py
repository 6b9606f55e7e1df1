"""Moves nested dataclasses of tensors: to pinned memory while a step is planned, to the device before it runs.

`pack` stores the tensors of a plan in one buffer, so that they are copied at once and a CUDA graph can be replayed on
them.
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
    """Applies `change` to every tensor in nested dataclasses, lists, tuples and dicts; other values are kept.

    An object that occurs several times is changed once, because the layers of exact propagation share operators.

    Args:
        value: nested containers of tensors.
        change: applied to each distinct tensor.
        leave: ids of objects to keep unchanged, such as operators that all plans share.
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
    """Copies to pinned memory, from which transfers to a GPU are asynchronous; unchanged for the CPU."""
    if device.type == "cpu":
        return value
    return map_tensors(value, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory(), leave)


def to_device(value: T, device: torch.device) -> T:
    """Copies to the device asynchronously; unchanged for the CPU."""
    if device.type == "cpu":
        return value
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


class Packed:
    """The buffer of a packed plan. Not a dataclass, so that `map_tensors` does not change it.

    Attributes:
        memory: [bytes] uint8.
        places: of the tensors in the buffer, in the order of `map_tensors`.
    """

    def __init__(self, memory: Tensor, places: list[Place]) -> None:
        self.memory, self.places = memory, places


def pack(plan: T, resident: Collection[int], pin: bool) -> tuple[T, Packed]:
    """Packs the tensors of a plan into one buffer.

    Args:
        plan: nested dataclasses of tensors.
        resident: ids of the objects that all plans share (`Planner.resident`), which are not packed.
        pin: allocate the buffer in pinned memory.

    Returns:
        The plan with tensors that are views of the buffer, and the buffer.
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
    """The plan with its tensors replaced by `views`, in the order of `Packed.places`."""
    waiting = iter(views)
    return map_tensors(plan, lambda _: next(waiting), resident)


def views_of(packed: Packed) -> list[Tensor]:
    """The tensors stored in the buffer, as views."""
    return [
        packed.memory[first : first + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for first, shape, dtype in packed.places
    ]
