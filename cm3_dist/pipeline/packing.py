"""A plan's tensors in one piece of memory, so that they travel to the device in one copy.

What all plans share is on the device already and stays out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from cm3_dist.pipeline.device_transfer import map_tensors

ALIGNMENT = 16  # bytes
T = TypeVar("T")

Place: TypeAlias = tuple[int, torch.Size, torch.dtype]  # first byte, shape, type


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
