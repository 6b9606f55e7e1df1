"""The trainer of one rank: data, model and optimizers, one training step, and the rows for ranking."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.host_memory import release_free_memory
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.traffic import summed as summed_bytes
from cm3_dist.distributed.traffic import traffic
from cm3_dist.errors import InputError
from cm3_dist.graph.propagation_mode import resolve_mode
from cm3_dist.graph.shard import load_shard
from cm3_dist.kernels import Kernels, check_kernels
from cm3_dist.loss.cm3_loss import cm3_loss
from cm3_dist.loss.constants import LossConstants
from cm3_dist.model.cm3 import CM3
from cm3_dist.pipeline.batch_sampler import BatchSampler
from cm3_dist.pipeline.device_transfer import to_device
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.pipeline.planner import Planner
from cm3_dist.pipeline.step_plan import StepPlan
from cm3_dist.ranking.evaluator import Evaluator
from cm3_dist.training.cuda_graph_step import RecordedStep, can_record, slow_paths
from cm3_dist.training.dense_optimizer import DenseOptimizer
from partition.folder.manifest import Manifest

Timer = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepResult:
    """Scalars of a step over all ranks, still on the device, so that nothing waits for them."""

    loss: Tensor
    alignment: Tensor
    user_uniformity: Tensor
    item_uniformity: Tensor
    dense_gradient_norm: Tensor
    table_gradient_norm: Tensor
    origin: Tensor  # first rank whose own gradient is not finite; -1: none, -2: all ranks

    def stacked(self) -> Tensor:
        """All fields as one tensor [7], in the order above."""
        return torch.stack([getattr(self, field.name).reshape(()) for field in fields(self)])


class Trainer:
    """The model, its data and its optimizers on one rank.

    Raises:
        InputError: the prepared folder, a setting or the world size is not usable; the same on every rank.
    """

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self.settings, self.runtime = settings, runtime
        data, rank, world_size = settings.data, runtime.rank, runtime.world_size
        self.shard = agree_on_error(runtime, lambda: load_shard(data.path, rank, world_size, data.check))
        self.manifest: Manifest = self.shard.manifest
        self.mode = resolve_mode(settings, self.manifest)
        self.loss_constants = LossConstants.from_data(settings, self.shard, runtime)
        self._kernels: Kernels = check_kernels(settings.machine.kernels, runtime.device.type)
        self.features = agree_on_error(
            runtime, lambda: ItemFeatures(settings.data.path, self.manifest, self.shard.parts)
        )
        train = settings.train
        self.batches = agree_on_error(
            runtime, lambda: BatchSampler(self.shard, train.batch_size, settings.negatives, train.seed)
        )
        self.model = CM3(self.manifest, self.shard.parts, settings, runtime)
        recordable = can_record(settings, self.mode, runtime)
        self.planner = Planner(self.shard, self.features, self.batches, settings, self.mode, runtime, padded=recordable)
        self.evaluator = Evaluator(self.shard, settings, runtime)
        dense = settings.dense
        skip = train.on_nan == "skip"
        extra = 2 + runtime.world_size  # see `_update`
        self.dense = DenseOptimizer(self.model.dense_parameters(), dense.lr, dense.weight_decay, extra, skip=skip)
        self.recorded: RecordedStep | None = None
        if recordable:
            self.recorded = RecordedStep(self._untimed_step, self.planner.resident, runtime.device)
        first_user, first_item = self.shard.first_user, self.shard.first_item
        self._users = torch.arange(first_user, first_user + self.shard.user_rows, device=runtime.device)
        self._items = torch.arange(first_item, first_item + self.shard.item_rows, device=runtime.device)

    def step(self, plan: StepPlan, timer: Timer = lambda _: nullcontext()) -> StepResult:
        """Forward, backward and update. Collective."""
        if self.recorded is None or not self.recorded.takes(plan):
            return self._step(plan, timer)
        with timer("replay"):
            return StepResult(*self.recorded(plan).unbind())

    def _untimed_step(self, plan: StepPlan) -> Tensor:
        """The function that a CUDA graph records: a step and its results, [7] on the device."""
        return self._step(plan, lambda _: nullcontext()).stacked()

    def _step(self, plan: StepPlan, timer: Timer) -> StepResult:
        """Launches the step kernel by kernel."""
        with timer("fetch"):
            plan = to_device(plan, self.runtime.device)
            ego = self.model.ego(plan.inputs)
            ego.looked_up.retain_grad()
        with timer("forward"):
            users, items = self.model.propagate(ego, plan)
            fused = ego.fused.index_select(0, plan.item_inputs)
            terms = cm3_loss(
                users,
                items,
                fused,
                plan,
                self.settings.loss,
                self.loss_constants,
                self.runtime.rows_group,
                self._kernels,
            )
        with timer("backward"):
            terms.local.backward()  # also updates the tables
        with timer("optimizer"):
            alignment, *gradient = self._update(terms.alignment, ego.looked_up.grad)
        half_gamma = self.loss_constants.gamma / 2
        loss = alignment + half_gamma * (terms.user_uniformity + terms.item_uniformity)
        return StepResult(loss, alignment, terms.user_uniformity, terms.item_uniformity, *gradient)

    def _update(self, alignment: Tensor, table_gradient: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums the dense gradients over the ranks (each has its own items' share of one global loss), then updates.

        Returns:
            Alignment, norms of the dense and the table gradient, and `StepResult.origin`; all over all ranks.
        """
        summed, extra, ranks = self.dense.summed, self.dense.extra, self.runtime.world_size
        extra[0] = alignment
        if table_gradient is not None:
            extra[1] = torch.linalg.vector_norm(table_gradient).square()
        extra[2 + self.runtime.rank] = ~torch.isfinite(self.dense.gradient.sum() + extra[1])
        if self.runtime.rows_group is not None:
            traffic.add("dense gradients", summed_bytes(summed.nbytes, ranks))
            dist.all_reduce(summed, group=self.runtime.rows_group)
        fell = extra[2:]
        origin = torch.where(fell.all(), -2, torch.where(fell.any(), fell.argmax(), -1)).to(summed)
        found = extra[0].clone(), self.dense.gradient.norm(), extra[1].sqrt(), origin
        self.dense.step()
        return found

    def rates(self) -> dict[str, float]:
        """Learning rates by TensorBoard tag."""
        return {"learning_rate/dense": self.settings.dense.lr, "learning_rate/tables": self.settings.tables.lr}

    def describe(self) -> str:
        """Data, ranks and mode in one line; on GPUs followed by a line per optimization that is off (`slow_paths`)."""
        m = self.manifest
        modalities = ", ".join(f"{modality.name} {modality.dim}" for modality in m.modalities)
        device, world_size = self.runtime.device.type, self.runtime.world_size
        kind = "weighted training" if m.weighted else "training"
        line = (
            f"{m.name}: {m.users:,} users, {m.items:,} items ({modalities}), {m.train:,} {kind} interactions; "
            f"{m.num_parts} parts on {world_size} rank(s), {device}; "
            f"{self.mode} propagation, {self.settings.negatives} negatives, {self.batches.steps} steps per epoch"
        )
        if self.settings.loss.gamma == "auto":
            line += f"; gamma {self.loss_constants.gamma:.3f}"
        return "\n".join([line, *slow_paths(self.settings, self.mode, device, world_size)])

    def final_rows(self) -> tuple[Tensor, Tensor]:
        """Rows for ranking: exact propagation of all local users and items, not normalised. Collective.

        Returns:
            Users [local users, C * d] and items [local items, C * d], whose inner product is the score.
        """
        release_free_memory()  # left by the training steps
        operator = self.planner.inference()
        release_free_memory()  # left by building the operator
        return self.model.final_rows(self.features, self._users, self._items, operator)


def check_splits(manifest: Manifest, settings: Settings) -> None:
    """Checks that the data have a validation split, if the settings need one.

    Raises:
        InputError: `split.no-validation`, they stop early, but have none.
    """
    if manifest.validation == 0 and settings.train.patience > 0:
        raise InputError(
            f"{manifest.name}: no validation interactions to stop by; set train.patience=0 and train.epochs to train "
            "on everything for a fixed number of epochs, or prepare with a --split that has validation",
            "split.no-validation",
        )
