"""Makes the plans of an epoch, ahead of the steps that use them, in a thread.

Planning moves node ids only, over a gloo group of its own, so that it overlaps with the computing of earlier steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.distributed.traffic import summed, traffic
from cm3_dist.graph.full_graph import exact_propagation, plan_exchange, restrict
from cm3_dist.graph.halo_exchange import Exchange, send_to_owners
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.graph.neighbor_sampling import Fanouts, Sampler
from cm3_dist.graph.shard import Shard
from cm3_dist.pipeline.batch_sampler import Batch, Batches
from cm3_dist.pipeline.curve_parameter import Curve
from cm3_dist.pipeline.device_transfer import pinned, to_device
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.pipeline.packing import pack
from cm3_dist.pipeline.prefetch import Ahead
from cm3_dist.pipeline.step_plan import Inputs, Pairs, PairWeight, StepPlan
from cm3_dist.training.cuda_graph_step import can_record


@dataclass(frozen=True)
class _Rows:
    """Which rows enter a step's propagation, and where the batch's users and items stand (see `StepPlan`)."""

    inputs: Inputs
    users: Tensor | None
    items: Tensor | None
    encoded: np.ndarray  # [n] int64: places of the batch's items among the encoded ones
    share: float


class Planner:
    """Makes the plans of an epoch. Collective: every rank makes the same plans in the same order."""

    def __init__(
        self, shard: Shard, features: ItemFeatures, batches: Batches, settings: Settings, mode: str, runtime: Runtime
    ) -> None:
        self._shard, self._features, self._batches = shard, features, batches
        self._settings, self._runtime = settings, runtime
        propagation = settings.propagation
        self._curve = Curve(settings.model.alpha)
        # Plans of one shape: rows of weight zero fill the batch's distinct users and items up to their largest number.
        self.padded = can_record(settings, mode, runtime)
        # Ids of what all plans share, on the device since the start.
        self.resident: set[int] = set()
        self.sampler: Sampler | None = None
        if mode == "exact":
            self._whole = self._operator(adjoint=True)  # on the CPU, where steps are planned
            self._exact = to_device(self._whole, runtime.device)
            self._all = self._everything()
            self.resident = {id(part) for part in (self._exact, self._all.users, self._all.items, self._all.features)}
            for hop in self._exact.hops:
                self.resident |= {id(hop), id(hop.user_from_item), id(hop.item_from_user)}
            self.resident |= {id(layer) for layer in self._exact.similar}
        else:
            choice, seed = Fanouts.of(propagation), settings.train.seed
            self.sampler = Sampler(shard, choice, seed, runtime.group, runtime.planning)

    def inference(self) -> Propagation:
        """The exact operator over all local rows, on the device. Collective; in sampled mode made anew each time."""
        if self.sampler is None:
            return self._exact
        return to_device(self._operator(adjoint=False), self._runtime.device)

    def _operator(self, adjoint: bool) -> Propagation:
        propagation, runtime = self._settings.propagation, self._runtime
        layers = propagation.user_item_layers, propagation.item_item_layers
        return exact_propagation(self._shard, *layers, runtime.group, runtime.planning, adjoint=adjoint)

    def epoch(self, epoch: int, first_step: int, last_step: int) -> Ahead[StepPlan]:
        """Plans of the steps [first_step, last_step), made up to `machine.prefetch` steps ahead of their use.

        All ranks take the same number of them; with fewer than there are, each calls `close`.
        """
        return Ahead(self.plans(epoch, first_step, last_step), self._settings.machine.prefetch)

    def plans(self, epoch: int, first_step: int, last_step: int) -> Iterator[StepPlan]:
        """The same, each made when it is asked for."""
        batches = self._batches.epoch(epoch, first_step)
        return (
            self._ready(self._plan(batch, epoch, step))
            for step, batch in zip(range(first_step, last_step), batches, strict=False)
        )

    def _ready(self, plan: StepPlan) -> StepPlan:
        """In memory from which the device copies fast."""
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
            users, user_count = _padded(users, user_count, min(most, shard.user_rows))
            items, item_count = _padded(
                items, item_count, min(most * (2 if len(batch.negative) else 1), shard.item_rows)
            )

        choose = self._exact_rows if self.sampler is None else self._sampled_rows
        rows = choose(users, items, epoch, step)
        positive_item, exchange = self._positives(batch.positive, items)
        size = self._batches.size(step)
        positive_user, weight = np.searchsorted(users, batch.user), np.full(len(batch.user), 1 / size, np.float32)
        if self.padded:
            added = (0, self._batches.largest - len(batch.user))
            positive_user, positive_item, weight = (np.pad(v, added) for v in (positive_user, positive_item, weight))
        kept = np.arange(len(items)) if self.padded else np.flatnonzero(item_count)
        weights, self_weights = self._item_weights(items[kept], item_count[kept], size)
        user_part, item_part = users // shard.manifest.user_stride, items[kept] // shard.manifest.item_stride
        everyone = np.arange(len(users))
        return StepPlan(
            epoch,
            step,
            size,
            rows.inputs,
            rows.users,
            rows.items,
            torch.from_numpy(positive_user),
            torch.from_numpy(positive_item),
            torch.from_numpy(weight),
            torch.tensor(self._gamma_share(epoch, step), dtype=torch.float32),
            exchange,
            self._pairs(everyone, user_part, user_count, _same_row(user_count)),
            self._pairs(kept, item_part, weights, self_weights),
            torch.from_numpy(rows.encoded[kept]),
            rows.share,
        )

    def _gamma_share(self, epoch: int, step: int) -> float:
        steps = self._settings.loss.gamma_warmup * self._batches.steps
        return min(1.0, (epoch * self._batches.steps + step + 1) / steps) if steps else 1.0

    def _positives(self, positive: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, Exchange]:
        """Places of the positives [b] (global rows) in [items; fetched items], and how to fetch the latter.

        `items` [m] are the local rows that any rank asked for, ascending.
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

    def _item_weights(self, items: np.ndarray, count: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the batch's distinct negatives (CM3.md section 3); `items` [n] local rows drawn `count` times."""
        negatives, correction = self._settings.negatives, self._settings.loss.in_batch_correction
        if negatives == "local":
            # Part p draws n_p negatives among its m_p items, so an item stands for m_p / n_p uniform ones.
            parts = [self._shard.manifest.parts[part] for part in self._shard.parts]
            rate = np.array([part.active_items / max(part.train, 1) for part in parts])
            rate = rate[items // self._shard.manifest.item_stride]
            return count * rate, _same_row(count) * rate**2
        if negatives == "uniform" or correction == "none":
            return count, _same_row(count)
        degree = self._shard.item_degree[items]
        if correction == "inverse_degree":
            return count / degree, _same_row(count) / degree.astype(np.float64) ** 2
        # Horvitz-Thompson: an item is in the batch unless all its `degree` interactions, each drawn with probability
        # size/train, stay out.
        included = -np.expm1(degree * np.log1p(-min(size / self._shard.manifest.train, 1 - 1e-9)))
        return np.divide(count > 0, included, where=count > 0, out=np.zeros(len(items))), np.zeros(len(items))

    def _pairs(self, index: np.ndarray, part: np.ndarray, weight: np.ndarray, self_weight: np.ndarray) -> Pairs:
        """Rows that repel each other, [n] each: their places, parts (ascending), w and v. Collective."""
        ranks, own_parts = self._runtime.world_size, len(self._shard.parts)
        cuts = np.searchsorted(part, np.arange(own_parts + 1))
        sums = [_sums(weight[begin:end], self_weight[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)]
        within = [PairWeight.of(*each) for each in sums]
        everywhere = torch.zeros(4 + ranks, dtype=torch.float64)
        everywhere[:3] = torch.tensor(sums, dtype=torch.float64).sum(0)
        everywhere[3] = sum(each.rows for each in within if each.pairs > 0)
        everywhere[4 + self._runtime.rank] = len(index)
        if ranks > 1:
            self._sum(everywhere)
        row, square, copies, share, *lengths = everywhere.tolist()
        weight_of_all = PairWeight.of(row, square, copies)
        return Pairs(
            torch.from_numpy(index),
            torch.from_numpy(weight.astype(np.float32)),
            cuts.tolist(),
            within,
            weight_of_all,
            weight_of_all.scalars(),
            share,
            int(max(lengths)),
        )

    def _everything(self) -> Inputs:
        """All local rows; what a step chooses of them follows step by step."""
        shard, device = self._shard, self._runtime.device
        features = self._features.gather(np.arange(shard.item_rows))
        return Inputs(
            self._exact,
            torch.arange(shard.first_user, shard.first_user + shard.user_rows, device=device),
            torch.empty(0),
            torch.arange(shard.first_item, shard.first_item + shard.item_rows, device=device),
            {name: values.to(device) for name, values in features.items()},
            torch.empty(0),
            whole=True,
        )

    def _exact_rows(self, users: np.ndarray, items: np.ndarray, epoch: int, step: int) -> _Rows:
        """All local rows enter, each in its own place; the batch's come out."""
        shard, chosen = self._shard, (torch.from_numpy(users), torch.from_numpy(items))
        curve = self._curve(self._key(epoch, step), np.arange(shard.first_item, shard.first_item + shard.item_rows))
        inputs = replace(self._all, mixed=chosen[0] + shard.first_user, curve=curve)
        if self.padded:  # whole layers stay on the device, and cost a GPU less than planning others costs the host
            return _Rows(inputs, *chosen, items, 1.0)
        few = restrict(self._whole, *chosen)
        # What stays whole is on the device already.
        hops, similar = list(self._exact.hops), list(self._exact.similar)
        if hops:
            hops[0] = replace(hops[0], users=few.hops[0].users, user_from_item=few.hops[0].user_from_item)
        inputs = replace(inputs, propagation=Propagation(hops, [*few.similar[:1], *similar[1:]]))
        return _Rows(inputs, None if few.hops else chosen[0], None if few.similar else chosen[1], items, 1.0)

    def _sampled_rows(self, users: np.ndarray, items: np.ndarray, epoch: int, step: int) -> _Rows:
        """The batch's neighbourhood enters, the batch's rows first; the batch's come out."""
        assert self.sampler is not None
        shard, sample = self._shard, self.sampler.draw(users, items, epoch, step)
        total = torch.tensor(len(sample.users) + len(sample.items))
        self._sum(total)
        rows = sample.items + shard.first_item
        inputs = Inputs(
            sample.propagation,
            torch.from_numpy(sample.users + shard.first_user),
            torch.from_numpy(users + shard.first_user),
            torch.from_numpy(rows),
            self._features.gather(sample.items),
            self._curve(self._key(epoch, step), rows),
            whole=False,
        )
        share = int(total) / (shard.manifest.users + shard.manifest.items)
        return _Rows(inputs, None, None, np.arange(len(items)), share)

    def _sum(self, values: Tensor) -> None:
        """Over the ranks, in place."""
        traffic.add("planning sums", summed(values.nbytes, self._runtime.world_size))
        dist.all_reduce(values, group=self._runtime.planning)

    def _key(self, epoch: int, step: int) -> int:
        return key(Stream.CURVE, self._settings.train.seed, epoch, step)


def _padded(rows: np.ndarray, count: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows, ascending, and others that are not among them, in all `size`; these count 0."""
    free = np.ones(size, bool)
    free[rows[rows < size]] = False
    added = np.flatnonzero(free)[: size - len(rows)]
    place = np.searchsorted(added, rows) + np.arange(len(rows))
    all_rows, counts = np.empty(size, np.int64), np.zeros(size, count.dtype)
    mask = np.ones(size, bool)
    mask[place] = False
    all_rows[place], all_rows[mask], counts[place] = rows, added, count
    return all_rows, counts


def _same_row(count: np.ndarray) -> np.ndarray:
    """Pairs that `count` draws of one row form with each other."""
    return count * (count - 1) / 2


def _sums(weight: np.ndarray, self_weight: np.ndarray) -> tuple[float, float, float]:
    """Of w, w^2 and v."""
    weight = weight.astype(np.float64)
    return float(weight.sum()), float(np.dot(weight, weight)), float(self_weight.sum())
