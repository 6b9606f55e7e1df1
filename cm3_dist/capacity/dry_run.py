"""One training step and one propagation of all rows, by the real model on tensors that have a shape but no memory.

The trainer's model, propagation and loss run on the `meta` device, and their collectives in a process group of backend
"fake", which moves nothing. Counted are the bytes of the tensors that are alive together, the floating-point operations
of the matrix products, and the bytes that rank 0 would send. Nothing of the model is repeated here, so a change of the
trainer changes the counts.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cm3_dist.capacity.dry_plan import META, ids, make_features, make_missing, step_plan, whole_propagation
from cm3_dist.capacity.scenario import RankLoad, RankStep, Scenario
from cm3_dist.distributed.traffic import traffic
from cm3_dist.loss.cm3_loss import cm3_loss
from cm3_dist.loss.constants import LossConstants
from cm3_dist.model.cm3 import CM3
from cm3_dist.model.dimensions import ITEM_IDS, tables
from cm3_dist.model.embedding_tables import EmbeddingTables
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.model.local_table import LocalTable, can_update
from cm3_dist.pipeline.device_transfer import map_tensors

SMALL = 32 << 20  # glibc keeps freed blocks up to this size (`cm3_dist.distributed.allocator`)


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that are made while it is active, by the phase in which each was made."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "all"
        self.peak: Counter[str] = Counter()  # phase -> bytes alive when the sum of all phases was highest
        self.peak_small = 0  # of these, bytes in blocks of at most SMALL
        self.flops: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._small = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts what it made."""
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flops[self.phase] += count(*args, **(kwargs or {}), out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self._known:
                storage = value.untyped_storage()
                self._known.add(storage._cdata)
                self._add(self.phase, storage.nbytes())
                weakref.finalize(storage, self._freed, storage._cdata, self.phase, storage.nbytes())
        return result

    def _freed(self, key: int, phase: str, size: int) -> None:
        self._known.discard(key)
        self._add(phase, -size)

    def _add(self, phase: str, size: int) -> None:
        self._live[phase] += size
        self._small += size if abs(size) <= SMALL else 0
        if self._live.total() > self.peak.total():
            self.peak, self.peak_small = self._live.copy(), self._small


@dataclass(frozen=True)
class Usage:
    """What a step or an evaluation takes of one rank."""

    live: dict[str, float]  # phase -> bytes of activations at the peak
    small: float  # of them, in blocks that glibc keeps when they are freed
    flops: dict[str, float]  # phase -> floating-point operations of matrix products
    sent: dict[str, float]  # kind -> bytes to other ranks
    operator: float  # bytes of the whole graph's operator
    plan: float = 0.0  # bytes of the step's plan without what all plans share


def dry_step(scenario: Scenario, load: RankLoad, step: RankStep) -> Usage:
    """A training step of one rank, without the sum of the dense gradients."""
    with _fake_ranks(scenario.ranks) as group:
        whole = whole_propagation(scenario, load)
        plan, model = step_plan(scenario, load, step, whole), _Model(scenario, load)
        operator, shared = (
            _storages(whole),
            _storages([whole, plan.inputs.features, plan.inputs.missing] if plan.inputs.whole else whole),
        )
        with LiveTensors() as live:
            live.phase = "encoder and lookup"
            ego = model.ego(plan.inputs)
            ego.looked_up.retain_grad()
            live.phase = "propagation"
            users, items = model.propagate(ego, plan)
            live.phase = "loss"
            fused = ego.fused.index_select(0, plan.item_inputs)
            terms = cm3_loss(users, items, fused, plan, scenario.settings.loss, LossConstants(gamma=1.0), group)
            live.phase = "backward pass"
            terms.local.backward()
        own = sum(size for key, size in _storages(plan).items() if key not in shared)
        return _usage(live, sum(operator.values()), own)


def dry_final_rows(scenario: Scenario, load: RankLoad) -> Usage:
    """The final rows of all of a rank's users and items, as an evaluation computes them."""
    with _fake_ranks(scenario.ranks):
        whole = whole_propagation(scenario, load, adjoint=scenario.mode == "exact")
        model, features = _Model(scenario, load), _Features(scenario, load.item_rows)
        with LiveTensors() as live:
            live.phase = "final rows"
            model.final_rows(features, ids(load.user_rows), ids(load.item_rows), whole)  # type: ignore[arg-type]
        return _usage(live, sum(_storages(whole).values()))


@contextmanager
def _fake_ranks(ranks: int) -> Iterator[dist.ProcessGroup | None]:
    traffic.take()
    if ranks == 1:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=ranks)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _usage(live: LiveTensors, operator: float, plan: float = 0.0) -> Usage:
    sent = {str(kind): float(count) for kind, count in traffic.take().items() if count}
    return Usage(dict(live.peak), live.peak_small, dict(live.flops), sent, operator, plan)


def _storages(value: object) -> dict[int, int]:
    """Storage -> bytes of all tensors in nested dataclasses and lists."""
    found: dict[int, int] = {}

    def visit(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    map_tensors(value, visit)
    return found


class _Tables(EmbeddingTables):
    """This rank's rows without TorchRec."""

    def __init__(self, scenario: Scenario, load: RankLoad) -> None:
        nn.Module.__init__(self)
        settings = scenario.settings
        self._skip, self._channels = settings.train.on_nan == "skip", scenario.widths.channels
        self._local, self._weights = {}, {}
        for name, (_, width) in tables(scenario.manifest, settings).items():
            rows = load.item_rows if name == ITEM_IDS else load.user_rows
            weight = self._weights[name] = torch.empty(rows, width, device=META)
            state = {"rowwise_adagrad": weight[:, 0], "adagrad": weight}.get(settings.tables.name)
            if can_update(settings.tables):
                self._local[name] = LocalTable(weight, state, settings.tables, 0)

    def model(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """TorchRec's lookup: the rows, and their copy on the way to the rank that requested them, here the same."""
        found = {name: weight[rows[name]].requires_grad_() for name, weight in self._weights.items()}
        return {name: values.clone() for name, values in found.items()}


class _Model(CM3):
    """The model with weights that have shapes only."""

    def __init__(self, scenario: Scenario, load: RankLoad) -> None:
        nn.Module.__init__(self)
        self.dim = scenario.settings.model.dim
        self.tables = _Tables(scenario, load)
        dims = {modality.name: modality.dim for modality in scenario.manifest.modalities}
        with META:
            self.encoder = ItemEncoder.of(dims, scenario.settings.model, seed=0)
        for weight in self.encoder.parameters():
            weight.grad = torch.empty_like(weight)  # the optimizer's, there from the start


@dataclass(frozen=True)
class _Features:
    """Stands in for `ItemFeatures`."""

    scenario: Scenario
    rows: int

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Modality -> [n, dim]."""
        return make_features(self.scenario, len(rows))

    def missing(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Masked modality -> [n] bool."""
        return make_missing(self.scenario, len(rows))
