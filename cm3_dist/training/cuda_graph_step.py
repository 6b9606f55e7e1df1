"""A training step recorded once as a CUDA graph and replayed with the following plans.

On a small graph a step launches some 370 kernels of a few microseconds each, and launching them takes several times as
long as running them. With exact propagation in one process and padded plans (`Planner.padded`) all steps have the same
shapes: each plan is copied over the recorded one, in one piece, and the same kernels run again.
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

WARM_UP = 3  # steps before recording, in which libraries initialise and kernels are compiled


def can_record(settings: Settings, mode: str, runtime: Runtime) -> bool:
    """Whether steps run as a CUDA graph: a step may not communicate or depend on the batch's shape."""
    device = runtime.device.type
    return device == "cuda" and not _reasons_against(settings, mode, runtime.world_size)


def slow_paths(settings: Settings, mode: str, device: str, world_size: int) -> list[str]:
    """Optimizations that this run does without on a GPU, one line each with the reason; none on a CPU.

    Args:
        settings: of the run.
        mode: "exact" or "sampled".
        device: device type, "cpu" or "cuda".
        world_size: number of ranks.
    """
    if device != "cuda":
        return []
    lines = []
    if reasons := _reasons_against(settings, mode, world_size):
        lines.append(f"CUDA graph off: {', '.join(reasons)}")
    if not can_update(settings.tables):
        lines.append(f"in-place table updates off: {_table_setting(settings)}; rows go through TorchRec's lookup")
    return lines


def _reasons_against(settings: Settings, mode: str, world_size: int) -> list[str]:
    """Why steps cannot be recorded as a CUDA graph; empty if they can."""
    reasons = []
    if not settings.machine.record:
        reasons.append("machine.record=false")
    if world_size > 1:
        reasons.append(f"{world_size} ranks")
    if mode != "exact":
        reasons.append(f"{mode} propagation")
    if settings.loss.scope != "global":
        reasons.append(f"loss.scope={settings.loss.scope}")
    if not can_update(settings.tables):
        reasons.append(_table_setting(settings))
    return reasons


def _table_setting(settings: Settings) -> str:
    """The setting that keeps tables from being updated in place."""
    tables = settings.tables
    return f"tables.weight_decay={tables.weight_decay:g}" if tables.weight_decay else f"tables.name={tables.name}"


class RecordedStep:
    """Runs `compute` on plans: the first few directly, the rest as a recording.

    Args:
        compute: a step, which returns [k] results on the device and must not wait for the device.
        resident: ids of the objects that all plans share (`Planner.resident`).
        device: of the buffers.
        record: turns a function into one that repeats its work; by default a CUDA graph. Tests pass another.
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
        """Whether to run this plan as a recording: after the warm-up, and if both uniformity terms have pairs."""
        self._steps += 1
        return self._steps > WARM_UP and min(plan.user_pairs.everywhere.pairs, plan.item_pairs.everywhere.pairs) > 0

    def __call__(self, plan: StepPlan) -> Tensor:
        """Runs a step; returns a copy of its results, [k]."""
        packed = plan.packed
        assert packed is not None
        if self._replay is None or packed.places != self._buffer.places:
            self._replay = None  # frees the memory of the previous recording
            self._buffer = Packed(packed.memory.to(self._device), packed.places)
            fixed = unpack(plan, self._resident, views_of(self._buffer))
            self._replay = self._record(lambda: self._compute(fixed))
        else:
            self._buffer.memory.copy_(packed.memory, non_blocking=True)
        return self._replay().clone()


def _cuda_graph(action: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # thread_local, because the planner's thread allocates pinned memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = action()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
