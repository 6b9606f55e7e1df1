"""The operators and the plan of a step on one rank, made from sizes: tensors of the right shapes on `meta`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.capacity.scenario import Halo, RankLoad, RankStep, Relation, Scenario
from cm3_dist.distributed.traffic import Kind
from cm3_dist.graph.halo_exchange import Exchange
from cm3_dist.graph.lightgcn import Hop, Propagation
from cm3_dist.graph.sparse_ops import Csr, GatherSpMM, ScatterSpMM
from cm3_dist.graph.sparse_ops import LinearMap as Operator
from cm3_dist.pipeline.pair_weights import Pairs, PairWeight
from cm3_dist.pipeline.step_plan import Inputs, StepPlan

META = torch.device("meta")
USER_ITEM: Kind = "user-item rows"
ITEM_GRAPH: Kind = "item-graph rows"


def ids(count: float) -> Tensor:
    """[count] int64."""
    return torch.empty(math.ceil(count), dtype=torch.int64, device=META)


def _floats(count: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(math.ceil(count), dtype=dtype, device=META)


def make_features(scenario: Scenario, rows: float) -> dict[str, Tensor]:
    """Modality -> [rows, dim] as stored."""
    return {
        modality.name: torch.empty(math.ceil(rows), modality.dim, dtype=getattr(torch, modality.dtype), device=META)
        for modality in scenario.manifest.modalities
    }


def make_missing(scenario: Scenario, rows: float) -> dict[str, Tensor]:
    """Masked modality -> [rows] bool."""
    masked = [modality.name for modality in scenario.manifest.modalities if modality.masked]
    return {name: torch.empty(math.ceil(rows), dtype=torch.bool, device=META) for name in masked}


def step_plan(scenario: Scenario, load: RankLoad, step: RankStep, whole: Propagation) -> StepPlan:
    """A step's plan; in exact mode it shares the layers of `whole` that are not restricted to the batch."""
    exact, repelled = scenario.mode == "exact", min(step.items, step.most_items)
    propagation = _restricted(whole, load, step) if exact else _sampled(step)
    features, curve = make_features(scenario, step.input_items), _floats(step.input_items)
    users, mixed, items = ids(step.input_users), ids(step.users), ids(step.input_items)
    missing = make_missing(scenario, step.input_items)
    return StepPlan(
        epoch=0,
        step=0,
        size=1,
        inputs=Inputs(propagation, users, mixed, items, features, curve, whole=exact, missing=missing),
        users=ids(step.users) if exact and not propagation.hops else None,
        items=ids(step.items) if exact and not propagation.similar else None,
        positive_user=ids(step.positives),
        positive_item=ids(step.positives),
        positive_weight=_floats(step.positives),
        exchange=_exchange(step.positive_halo, "positive rows"),
        user_pairs=_pairs(step.users, step.most_users, load.parts),
        item_pairs=_pairs(repelled, step.most_items, load.parts),
        item_inputs=ids(repelled),
        input_share=1.0,
    )


def whole_propagation(scenario: Scenario, load: RankLoad, adjoint: bool = True) -> Propagation:
    """Over all rows of a rank, as `graph.full_graph.exact_propagation` makes it."""
    options = scenario.settings.propagation
    to_user = _pull(load.user_from_item, load.item_rows, USER_ITEM)
    to_item = _pull(load.item_from_user, load.user_rows, USER_ITEM)
    hop = Hop(load.user_rows, load.item_rows, Operator(to_user, to_item), Operator(to_item, to_user))
    pull = _pull(load.similar, load.item_rows, ITEM_GRAPH)
    similar = load.item_rows, _both_ways(pull) if adjoint else Operator.forward_only(pull)
    return Propagation([hop] * options.user_item_layers, [similar] * options.item_item_layers)


def _restricted(whole: Propagation, load: RankLoad, step: RankStep) -> Propagation:
    """The nearest layers of the batch's rows only, as `graph.full_graph.restrict` makes it."""
    hops, similar = list(whole.hops), list(whole.similar)
    if hops:
        few = step.user_from_item[0]
        to_user = _both_ways(_pull(few, load.item_rows, USER_ITEM))
        hops[0] = replace(hops[0], users=ids(few.rows), user_from_item=to_user)
    if similar:
        few = step.similar[0]
        similar[0] = ids(few.rows), _both_ways(_pull(few, load.item_rows, ITEM_GRAPH))
    return Propagation(hops, similar)


def _sampled(step: RankStep) -> Propagation:
    """Layers over the frontiers F_0, F_1, ... that were drawn."""
    users = [*(layer.rows for layer in step.user_from_item), step.input_users]
    items = [*(layer.rows for layer in step.item_from_user), step.input_items]
    hops = []
    for k, (to_user, to_item) in enumerate(zip(step.user_from_item, step.item_from_user, strict=True)):
        user_pull, item_pull = _pull(to_user, items[k + 1], USER_ITEM), _pull(to_item, users[k + 1], USER_ITEM)
        hops.append(Hop(math.ceil(users[k]), math.ceil(items[k]), _both_ways(user_pull), _both_ways(item_pull)))
    sources = [*(layer.rows for layer in step.similar[1:]), items[0]]
    similar = [
        (math.ceil(layer.rows), _both_ways(_pull(layer, own, ITEM_GRAPH)))
        for layer, own in zip(step.similar, sources, strict=False)
    ]
    return Propagation(hops, similar)


def _both_ways(pull: GatherSpMM) -> Operator:
    matrix = pull.matrix
    transposed = Csr(ids(matrix.columns + 1), ids(len(matrix.indices)), _floats(len(matrix.indices)), 0)
    return Operator(pull, ScatterSpMM(replace(transposed, columns=len(matrix.indptr) - 1), pull.exchange))


def _pull(relation: Relation, own: float, kind: Kind) -> GatherSpMM:
    """`own`: rows of the sources' kind on this rank, to which the halo is appended."""
    exchange = _exchange(relation.halo, kind)
    columns = math.ceil(own) + exchange.received
    return GatherSpMM(Csr(ids(relation.rows + 1), ids(relation.edges), _floats(relation.edges), columns), exchange)


def _exchange(halo: Halo, kind: Kind) -> Exchange:
    """The last rank stands for all others."""
    group = dist.group.WORLD if dist.is_initialized() else None
    own = [0] * (dist.get_world_size() - 1 if group else 0)
    return Exchange(ids(halo.sent), [*own, math.ceil(halo.sent)], [*own, math.ceil(halo.received)], group, kind)


def _pairs(rows: float, most: float, parts: int) -> Pairs:
    index, weight = ids(rows), PairWeight(1.0, 1.0, 1.0)
    cuts = np.linspace(0, len(index), parts + 1).astype(int).tolist()
    scalars, longest = _floats(2, torch.float64), max(math.ceil(most), len(index))
    return Pairs(index, _floats(len(index)), cuts, [weight] * parts, weight, scalars, 1.0, longest)
