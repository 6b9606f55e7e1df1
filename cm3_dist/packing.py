"""A plan's tensors in one piece of memory, so that they travel to the device in one copy.

What all plans share is on the device already and stays out. The entries of sparse matrices differ in number from plan
to plan; they stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from cm3_dist.graph.operators import Csr
from cm3_dist.placement import map_tensors

ALIGNMENT = 16  # bytes
T = TypeVar("T")

Place: TypeAlias = tuple[int, torch.Size, torch.dtype]  # first byte, shape, type


class Packed:
    """Where a plan's tensors lie. Not a dataclass: `map_tensors` is not to look into it.

    Attributes:
        fixed: [bytes] uint8: all of them but those in `elastic`.
        places: of the tensors in `fixed`, in the order of `map_tensors`.
        elastic: those that may be shorter than the buffers they are copied to: `Csr.indptr` says where entries end.
    """

    def __init__(self, fixed: Tensor, places: list[Place], elastic: list[Tensor]) -> None:
        self.fixed, self.places, self.elastic = fixed, places, elastic


def pack(plan: T, resident: Collection[int], pin: bool) -> tuple[T, Packed]:
    """The same plan with its tensors packed; `pin`: in memory from which a GPU copies without the host waiting.

    `resident`: ids of what all plans share (`Planner.resident`).
    """
    apart, places, size = _elastic(plan, resident), list[Place](), 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal size
        if id(tensor) not in apart:
            places.append((size, tensor.shape, tensor.dtype))
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return tensor

    map_tensors(plan, note, resident)
    fixed, elastic = torch.empty(size, dtype=torch.uint8, pin_memory=pin), list[Tensor]()
    views = iter(views_of(fixed, places))

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in apart:
            return next(views).copy_(tensor)
        elastic.append(tensor.pin_memory() if pin else tensor)
        return elastic[-1]

    return map_tensors(plan, move, resident), Packed(fixed, places, elastic)


def on_buffers(plan: T, resident: Collection[int], places: list[Place], fixed: Tensor, elastic: list[Tensor]) -> T:
    """The same packed plan on other memory."""
    apart = _elastic(plan, resident)
    views, buffers = iter(views_of(fixed, places)), iter(elastic)
    change: Callable[[Tensor], Tensor] = lambda tensor: next(buffers if id(tensor) in apart else views)  # noqa: E731
    return map_tensors(plan, change, resident)


def views_of(memory: Tensor, places: list[Place]) -> list[Tensor]:
    """Tensors in `memory`."""
    return [
        memory[first : first + shape.numel() * dtype.itemsize].view(dtype).view(shape) for first, shape, dtype in places
    ]


def _elastic(value: object, leave: Collection[int]) -> set[int]:
    """Ids of the entries' tensors of sparse matrices."""
    if id(value) in leave:
        return set()
    if isinstance(value, Csr):
        return {id(value.indices), id(value.values)}
    if is_dataclass(value):
        return set().union(*(_elastic(getattr(value, field.name), leave) for field in fields(value)))
    if isinstance(value, list | tuple):
        return set().union(*(_elastic(part, leave) for part in value))
    return set()
