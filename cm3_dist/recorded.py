"""A training step recorded once as a CUDA graph, and replayed with the plans that follow.

A step of a small graph is some 370 kernels of a few microseconds each: launching them takes the host several times as
long as they run. Exact propagation in one process has steps of one shape once its plans are padded (`Planner.padded`)
but for the entries of two sparse matrices, which may be fewer than their buffers hold. So a plan is copied into fixed
buffers and the recorded kernels run on these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from cm3_dist.config import Settings
from cm3_dist.graph.operators import Csr
from cm3_dist.model.local_rows import can_update
from cm3_dist.placement import map_tensors
from cm3_dist.plan import StepPlan
from cm3_dist.runtime import Runtime

WARM_UP = 3  # steps before the recording: libraries set themselves up, kernels are compiled
ROOM = 1.25  # of a sparse matrix's buffers over the entries of the plan they are made for


def can_record(settings: Settings, mode: str, runtime: Runtime) -> bool:
    """Whether a step can be recorded: nothing in it may ask another rank, or depend on the batch's shape."""
    return (
        settings.machine.record
        and runtime.device.type == "cuda"
        and runtime.world_size == 1
        and mode == "exact"
        and settings.loss.scope == "global"
        and can_update(settings.tables)
    )


class RecordedStep:
    """Runs `compute` on plans: the first few directly, then recorded.

    Args:
        compute: a step, [k] results on the device. It must not wait for the device.
        resident: ids of what all plans share (`Planner.resident`): it needs no buffers.
        record: makes, of a function, one that does the same work again; a CUDA graph unless a test has another.
    """

    def __init__(
        self,
        compute: Callable[[StepPlan], Tensor],
        resident: Collection[int] = (),
        record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._compute, self._resident, self._record = compute, resident, record or _cuda_graph
        self._steps = 0
        self._buffers: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None

    def takes(self, plan: StepPlan) -> bool:
        """Whether this plan is to be run here: after the first few, and if there are pairs to repel."""
        self._steps += 1
        return self._steps > WARM_UP and min(plan.user_pairs.everywhere.pairs, plan.item_pairs.everywhere.pairs) > 0

    def __call__(self, plan: StepPlan, device: torch.device) -> Tensor:
        """The step's results, in memory of their own. `plan` as the planner made it, not yet on the device."""
        tensors, elastic = _tensors(plan, self._resident), _elastic(plan, self._resident)
        if self._replay is None or not self._fits(tensors, elastic):
            self._buffers = [_buffer(tensor, id(tensor) in elastic, device) for tensor in tensors]
            self._fill(tensors)
            waiting = iter(self._buffers)
            fixed = map_tensors(plan, lambda _: next(waiting), self._resident)
            self._replay = None  # frees the memory of the former recording
            self._replay = self._record(lambda: self._compute(fixed))
        else:
            self._fill(tensors)
        return self._replay().clone()

    def _fits(self, tensors: list[Tensor], elastic: set[int]) -> bool:
        """Whether the plan's tensors can lie in the buffers; those on the device have to be the recorded ones."""

        def fits(tensor: Tensor, buffer: Tensor) -> bool:
            if tensor.is_cuda:
                return tensor.data_ptr() == buffer.data_ptr()
            return len(tensor) <= len(buffer) if id(tensor) in elastic else tensor.shape == buffer.shape

        return all(map(fits, tensors, self._buffers))

    def _fill(self, tensors: list[Tensor]) -> None:
        for tensor, buffer in zip(tensors, self._buffers, strict=True):
            if tensor is buffer:
                continue
            buffer[: len(tensor)].copy_(tensor, non_blocking=True)
            if len(tensor) < len(buffer) and tensor.is_floating_point():
                buffer[len(tensor) :].zero_()  # embedding_bag's last bag ends where its entries do


def _cuda_graph(action: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: the planner's thread goes on making pinned memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = action()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _tensors(plan: object, leave: Collection[int]) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(plan, note, leave)
    return found


def _elastic(value: object, leave: Collection[int]) -> set[int]:
    """Ids of the tensors that may be shorter than their buffers: `indptr` says where a sparse matrix's entries end."""
    if id(value) in leave:
        return set()
    if isinstance(value, Csr):
        return {id(value.indices), id(value.values)}
    if is_dataclass(value):
        return set().union(*(_elastic(getattr(value, field.name), leave) for field in fields(value)))
    if isinstance(value, list | tuple):
        return set().union(*(_elastic(part, leave) for part in value))
    return set()


def _buffer(tensor: Tensor, elastic: bool, device: torch.device) -> Tensor:
    """Room on the device for such a tensor; one that is there already stays where it is."""
    if tensor.is_cuda:
        return tensor
    shape = (int(len(tensor) * ROOM), *tensor.shape[1:]) if elastic else tensor.shape
    return torch.zeros(shape, dtype=tensor.dtype, device=device)
