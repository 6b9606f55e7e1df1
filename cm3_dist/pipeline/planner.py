"""Plans the steps of an epoch in a thread, ahead of their execution.

Planning exchanges only node ids, on its own gloo group, so it overlaps with the computation of earlier steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.graph.full_graph import exact_propagation, plan_exchange, restrict
from cm3_dist.graph.halo_exchange import Exchange, send_to_owners
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.graph.neighbor_sampling import Fanouts, Sampler
from cm3_dist.graph.shard import Shard
from cm3_dist.pipeline.batch_sampler import Batch, BatchSampler
from cm3_dist.pipeline.curve_parameter import CurveParameter
from cm3_dist.pipeline.device_transfer import pack, pinned, to_device
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.pipeline.negative_weights import negative_weights
from cm3_dist.pipeline.padding import pad_rows
from cm3_dist.pipeline.pair_weights import copies_of_one_row, sum_while_planning, weigh_pairs
from cm3_dist.pipeline.positive_weights import positive_weights
from cm3_dist.pipeline.prefetch import Prefetcher
from cm3_dist.pipeline.step_plan import Inputs, StepPlan


@dataclass(frozen=True)
class _Rows:
    """The rows that enter a step's propagation, and the indices of the batch's users and items."""

    inputs: Inputs
    users: Tensor | None  # see `StepPlan`
    items: Tensor | None  # see `StepPlan`
    encoded: np.ndarray  # [n] int64: indices of the batch's items among the encoded items
    share: float  # see `StepPlan.input_share`


class Planner:
    """Plans the steps of an epoch. Collective: every rank plans the same steps in the same order.

    Args:
        shard: this rank's.
        features: of this rank's items.
        batches: positives and negatives.
        settings: of the run.
        mode: "exact" or "sampled".
        runtime: this rank.
        padded: make all plans of one shape, for a CUDA graph.
    """

    def __init__(
        self,
        shard: Shard,
        features: ItemFeatures,
        batches: BatchSampler,
        settings: Settings,
        mode: str,
        runtime: Runtime,
        *,
        padded: bool = False,
    ) -> None:
        self._shard, self._features, self._batches = shard, features, batches
        self._settings, self._runtime = settings, runtime
        propagation = settings.propagation
        self._curve = CurveParameter(settings.model.alpha)
        # Padded: rows of weight 0 extend the batch's distinct users and items to their largest possible number.
        self.padded = padded
        # Ids of the objects that all plans share, which are on the device from the start.
        self.resident: set[int] = set()
        self.sampler: Sampler | None = None
        if mode == "exact":
            self._whole = self._operator(adjoint=True)  # on the CPU, for planning
            self._exact = to_device(self._whole, runtime.device)
            self._all = self._everything()
            everything = self._all
            shared = (self._exact, everything.users, everything.items, everything.features, everything.missing)
            self.resident = {id(part) for part in shared}
            for hop in self._exact.hops:
                self.resident |= {id(hop), id(hop.user_from_item), id(hop.item_from_user)}
            self.resident |= {id(layer) for layer in self._exact.similar}
        else:
            choice, seed = Fanouts.of(propagation), settings.train.seed
            self.sampler = Sampler(shard, choice, seed, runtime.group, runtime.planning, settings.machine.kernels)

    def inference(self) -> Propagation:
        """The exact operator over all local rows, on the device. Collective. Built at each call in sampled mode."""
        if self.sampler is None:
            return self._exact
        return to_device(self._operator(adjoint=False), self._runtime.device)

    def _operator(self, adjoint: bool) -> Propagation:
        propagation, runtime = self._settings.propagation, self._runtime
        layers = propagation.user_item_layers, propagation.item_item_layers
        kernels = self._settings.machine.kernels
        return exact_propagation(self._shard, *layers, runtime.group, runtime.control, adjoint=adjoint, kernels=kernels)

    def epoch(self, epoch: int, first_step: int, last_step: int) -> Prefetcher[StepPlan]:
        """Plans the steps [first_step, last_step), up to `machine.prefetch` ahead of their use.

        All ranks must take the same number of plans, and call `close` if they take fewer than all.
        """
        return Prefetcher(self.plans(epoch, first_step, last_step), self._settings.machine.prefetch)

    def plans(self, epoch: int, first_step: int, last_step: int) -> Iterator[StepPlan]:
        """As `epoch`, but each step is planned when its plan is requested."""
        batches = self._batches.epoch(epoch, first_step)
        return (
            self._ready(self._plan(batch, epoch, step))
            for step, batch in zip(range(first_step, last_step), batches, strict=False)
        )

    def _ready(self, plan: StepPlan) -> StepPlan:
        """The plan in pinned memory, packed if plans are padded."""
        device = self._runtime.device
        if not self.padded:
            return pinned(plan, device, self.resident)
        moved, packed = pack(plan, self.resident, pin=device.type == "cuda")
        return replace(moved, packed=packed)

    def _plan(self, batch: Batch, epoch: int, step: int) -> StepPlan:
        shard, planning = self._shard, self._runtime.planning
        users, user_count = np.unique(batch.user, return_counts=True)
        counted = batch.negative if len(batch.negative) else batch.positive
        asked = np.unique(np.concatenate([batch.positive, batch.negative]))
        count = np.bincount(np.searchsorted(asked, counted), minlength=len(asked))
        requests = send_to_owners(asked, shard.item_rows, planning, count)
        items, place = np.unique(requests.table[:, 0] - shard.first_item, return_inverse=True)
        item_count = np.bincount(place, requests.table[:, 1], minlength=len(items)).astype(np.int64)
        if self.padded:
            most = self._batches.largest
            users, user_count = pad_rows(users, user_count, min(most, shard.user_rows))
            items, item_count = pad_rows(
                items, item_count, min(most * (2 if len(batch.negative) else 1), shard.item_rows)
            )

        choose = self._exact_rows if self.sampler is None else self._sampled_rows
        rows = choose(users, items, epoch, step)
        positive_item, exchange = self._positives(batch.positive, items)
        size = self._batches.size(step)
        positive_user, weight = np.searchsorted(users, batch.user), positive_weights(batch, shard, size, self._runtime)
        if self.padded:
            added = (0, self._batches.largest - len(batch.user))
            positive_user, positive_item, weight = (np.pad(v, added) for v in (positive_user, positive_item, weight))
        kept = np.arange(len(items)) if self.padded else np.flatnonzero(item_count)
        weights, copies = negative_weights(self._settings, shard, items[kept], item_count[kept], size)
        user_part, item_part = users // shard.manifest.user_stride, items[kept] // shard.manifest.item_stride
        everyone = np.arange(len(users))
        weigh = partial(weigh_pairs, own_parts=len(shard.parts), runtime=self._runtime)
        return StepPlan(
            epoch=epoch,
            step=step,
            size=size,
            inputs=rows.inputs,
            users=rows.users,
            items=rows.items,
            positive_user=torch.from_numpy(positive_user),
            positive_item=torch.from_numpy(positive_item),
            positive_weight=torch.from_numpy(weight),
            exchange=exchange,
            user_pairs=weigh(everyone, user_part, user_count, copies_of_one_row(user_count)),
            item_pairs=weigh(kept, item_part, weights, copies),
            item_inputs=torch.from_numpy(rows.encoded[kept]),
            input_share=rows.share,
        )

    def _positives(self, positive: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, Exchange]:
        """Locates the positives of the batch.

        Args:
            positive: [b] int64 global rows.
            items: [m] int64 local rows that any rank requested, ascending.

        Returns:
            Indices of the positives in [items; fetched items], [b] int64, and the exchange that fetches the latter.
        """
        shard = self._shard
        remote = (positive < shard.first_item) | (positive >= shard.first_item + shard.item_rows)
        halo = np.unique(positive[remote])
        place = np.empty_like(positive)
        place[~remote] = np.searchsorted(items, positive[~remote] - shard.first_item)
        place[remote] = len(items) + np.searchsorted(halo, positive[remote])
        groups = self._runtime.group, self._runtime.planning
        exchange = plan_exchange(halo, shard.first_item, shard.item_rows, "positive rows", *groups)
        return place, replace(exchange, send=torch.from_numpy(np.searchsorted(items, exchange.send.numpy())))

    def _everything(self) -> Inputs:
        """Inputs with all local rows, shared by all plans; each plan replaces `mixed`, `curve` and the operator."""
        shard, device = self._shard, self._runtime.device
        rows = np.arange(shard.item_rows)
        features, missing = self._features.gather(rows), self._features.missing(rows)
        return Inputs(
            self._exact,
            torch.arange(shard.first_user, shard.first_user + shard.user_rows, device=device),
            torch.empty(0),
            torch.arange(shard.first_item, shard.first_item + shard.item_rows, device=device),
            {name: values.to(device) for name, values in features.items()},
            torch.empty(0),
            whole=True,
            missing={name: mask.to(device) for name, mask in missing.items()},
        )

    def _exact_rows(self, users: np.ndarray, items: np.ndarray, epoch: int, step: int) -> _Rows:
        """Exact propagation: all local rows are inputs, the batch's rows are the result."""
        shard, chosen = self._shard, (torch.from_numpy(users), torch.from_numpy(items))
        curve = self._curve(self._key(epoch, step), np.arange(shard.first_item, shard.first_item + shard.item_rows))
        inputs = replace(self._all, mixed=chosen[0] + shard.first_user, curve=curve)
        if self.padded:  # on a GPU full layers take less time than restricting them takes on the host
            return _Rows(inputs, *chosen, items, 1.0)
        few = restrict(self._whole, *chosen)
        # Layers that are not restricted are on the device already.
        hops, similar = list(self._exact.hops), list(self._exact.similar)
        if hops:
            hops[0] = replace(hops[0], users=few.hops[0].users, user_from_item=few.hops[0].user_from_item)
        inputs = replace(inputs, propagation=Propagation(hops, [*few.similar[:1], *similar[1:]]))
        return _Rows(inputs, None if few.hops else chosen[0], None if few.similar else chosen[1], items, 1.0)

    def _sampled_rows(self, users: np.ndarray, items: np.ndarray, epoch: int, step: int) -> _Rows:
        """Sampled propagation: the batch's neighbourhood is the input, batch rows first; the result is the batch."""
        assert self.sampler is not None
        shard, sample = self._shard, self.sampler.draw(users, items, epoch, step)
        total = torch.tensor(len(sample.users) + len(sample.items))
        sum_while_planning(total, self._runtime)
        rows = sample.items + shard.first_item
        inputs = Inputs(
            sample.propagation,
            torch.from_numpy(sample.users + shard.first_user),
            torch.from_numpy(users + shard.first_user),
            torch.from_numpy(rows),
            self._features.gather(sample.items),
            self._curve(self._key(epoch, step), rows),
            whole=False,
            missing=self._features.missing(sample.items),
        )
        share = int(total) / (shard.manifest.users + shard.manifest.items)
        return _Rows(inputs, None, None, np.arange(len(items)), share)

    def _key(self, epoch: int, step: int) -> int:
        return key(Stream.CURVE, self._settings.train.seed, epoch, step)
