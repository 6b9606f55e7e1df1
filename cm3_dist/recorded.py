"""A training step recorded once as a CUDA graph, and replayed with the plans that follow.

A step of a small graph is some 370 kernels of a few microseconds each: launching them takes the host several times as
long as they run. Exact propagation in one process has steps of one shape once its plans are padded (`Planner.padded`)
but for the entries of a few sparse matrices, which may be fewer than their buffers hold. So a plan is copied into fixed
buffers and the recorded kernels run on these; what has one shape travels in one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from cm3_dist.config import Settings
from cm3_dist.model.local_rows import can_update
from cm3_dist.packing import Packed, Place, on_buffers
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
        resident: ids of what all plans share (`Planner.resident`).
        device: of the buffers.
        record: makes, of a function, one that does the same work again; a CUDA graph unless a test has another.
    """

    def __init__(
        self,
        compute: Callable[[StepPlan], Tensor],
        resident: Collection[int],
        device: torch.device,
        record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._compute, self._resident, self._device, self._record = compute, resident, device, record or _cuda_graph
        self._steps = 0
        self._places: list[Place] = []
        self._fixed = torch.empty(0)
        self._elastic: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None

    def takes(self, plan: StepPlan) -> bool:
        """Whether this plan is to be run here: after the first few, and if there are pairs to repel."""
        self._steps += 1
        return self._steps > WARM_UP and min(plan.user_pairs.everywhere.pairs, plan.item_pairs.everywhere.pairs) > 0

    def __call__(self, plan: StepPlan) -> Tensor:
        """The step's results, in memory of their own."""
        packed = plan.packed
        assert packed is not None
        if self._replay is None or not self._fits(packed):
            self._replay = None  # frees the memory of the former recording
            self._places, self._fixed = packed.places, torch.empty_like(packed.fixed, device=self._device)
            self._elastic = [
                torch.zeros(int(len(tensor) * ROOM), dtype=tensor.dtype, device=self._device)
                for tensor in packed.elastic
            ]
            self._fill(packed)
            fixed = on_buffers(plan, self._resident, self._places, self._fixed, self._elastic)
            self._replay = self._record(lambda: self._compute(fixed))
        else:
            self._fill(packed)
        return self._replay().clone()

    def _fits(self, packed: Packed) -> bool:
        """Whether the plan's tensors can lie in the buffers."""
        lengths = zip(packed.elastic, self._elastic, strict=True)
        return packed.places == self._places and all(len(tensor) <= len(buffer) for tensor, buffer in lengths)

    def _fill(self, packed: Packed) -> None:
        self._fixed.copy_(packed.fixed, non_blocking=True)
        for tensor, buffer in zip(packed.elastic, self._elastic, strict=True):
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
