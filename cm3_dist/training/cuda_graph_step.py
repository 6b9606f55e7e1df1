"""A training step recorded once as a CUDA graph, and replayed with the plans that follow.

A step of a small graph is some 370 kernels of a few microseconds each: launching them takes the host several times as
long as they run. Exact propagation in one process has steps of one shape once its plans are padded (`Planner.padded`),
so every plan is copied to the place of the recorded one, in one piece, and the same kernels run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.model.local_table import can_update
from cm3_dist.pipeline.device_transfer import Packed, unpack, views_of
from cm3_dist.pipeline.step_plan import StepPlan

WARM_UP = 3  # steps before the recording: libraries set themselves up, kernels are compiled


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
        self._buffer = Packed(torch.empty(0), [])
        self._replay: Callable[[], Tensor] | None = None

    def takes(self, plan: StepPlan) -> bool:
        """Whether this plan is to be run here: after the first few, and if there are pairs to repel."""
        self._steps += 1
        return self._steps > WARM_UP and min(plan.user_pairs.everywhere.pairs, plan.item_pairs.everywhere.pairs) > 0

    def __call__(self, plan: StepPlan) -> Tensor:
        """The step's results, in memory of their own."""
        packed = plan.packed
        assert packed is not None
        if self._replay is None or packed.places != self._buffer.places:
            self._replay = None  # frees the memory of the former recording
            self._buffer = Packed(packed.memory.to(self._device), packed.places)
            fixed = unpack(plan, self._resident, views_of(self._buffer))
            self._replay = self._record(lambda: self._compute(fixed))
        else:
            self._buffer.memory.copy_(packed.memory, non_blocking=True)
        return self._replay().clone()


def _cuda_graph(action: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: the planner's thread goes on making pinned memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = action()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
