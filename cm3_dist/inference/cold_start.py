"""Embeddings of items and users that training never saw; nothing is trained.

**A new item** has features and no interactions. Its embedding before propagation is encoded from the features, as that
of any item (without an item-id row); without interactions the user-item layers add nothing. Its row of the item graph
is made by the rule of preparation: per modality the k - 1 nearest items of the catalogue by cosine and the item itself,
each with weight weight / k. The result is the embedding that the item would have had in the prepared folder, except
that it is no other item's neighbour and that other new items are not its neighbours.

**A new user** has a list of items. The alignment loss pulls a user's normalised embedding towards the sum of the items'
normalised final embeddings x_i: that direction, per channel, replaces the trained embedding before propagation. The sum
over layers follows as if the user were a node whose edges change nothing else. With d = length of the list and d_i =
training interactions of item i:

    ego = l2_normalize( sum over the list of x_i ),   per channel
    row = mix( ego + sum over the list of  1 / sqrt(d (d_i + 1))  (E + A E + ... + A^(L-1) E)_i )

With weights of interactions, d_i is the weighted degree of the item divided by the mean weight: every item of the list
weighs as much as the mean training interaction.

The channels are mixed by the softmax of the trained users' mean logits. A list may contain new items. Measured on Baby,
validation, with all users treated as new: Recall@20 0.0979 and NDCG@20 0.0445, with their trained embeddings 0.1033 and
0.0463; without the ego term 0.0390 and 0.0181, with it alone 0.0978 and 0.0424.

Shapes: n new items or users, m items of this rank, C channels of width d.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.errors import InputError
from cm3_dist.graph.sparse_ops import Csr
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.device_transfer import to_device
from cm3_dist.ranking.topk import top_columns
from partition.folder.manifest import Manifest
from partition.item_graph.shares import neighbour_shares
from partition.options import item_graph_weights

BLOCK = 4096  # new items placed at a time
FEATURES = 65_536  # items of the catalogue compared at a time
SCALE = 1 << 20  # cosines that agree to 1 / SCALE are ties, as in preparation


@dataclass(frozen=True)
class NewItems:
    """Items that are not in the catalogue; each rank holds an equal, consecutive share of their embeddings."""

    ids: pa.Array  # [n] external ids, all of them on every rank
    rows: Tensor  # [share, C * d] final embeddings of this rank's share; padding at the end is zero
    ego: Tensor  # [share, C * d] before propagation
    candidates: Tensor  # [share] bool: the items that may be recommended

    def only(self, chosen: np.ndarray, model: TrainedModel) -> NewItems:
        """A copy in which only the items at `chosen` (positions in `ids`) may be recommended."""
        first = model.runtime.rank * len(self.rows)
        mask = torch.zeros(len(self.rows), dtype=torch.bool)
        own = chosen[(chosen >= first) & (chosen < first + len(self.rows))]
        mask[torch.from_numpy(own - first)] = True
        return replace(self, candidates=self.candidates & mask)


@dataclass(frozen=True)
class _ItemGraph:
    """How preparation makes an item's row of the item graph."""

    k: int
    weight: dict[str, float]  # modality -> weight of each of its k neighbours
    own: float  # the co-occurrence weight, which the item itself gets: it has no users in common with others

    @staticmethod
    def of(manifest: Manifest) -> _ItemGraph:
        options = manifest.settings
        missing = {"item_graph_k", "item_graph_weight", "cooccurrence_weight"} - set(options)
        if missing:
            message = f"{manifest.name}: the manifest's settings lack {min(missing)!r}; prepare the data again"
            raise InputError(message, "prepared.no-graph-settings")
        weights = item_graph_weights(options["item_graph_weight"], [m.name for m in manifest.modalities])
        k, shared = min(options["item_graph_k"], manifest.items), options["cooccurrence_weight"]
        total = sum(weights.values()) + shared
        return _ItemGraph(k, {name: weight / total / k for name, weight in weights.items()}, shared / total)


def place_items(
    model: TrainedModel, ids: pa.Array, features: dict[str, np.ndarray], missing: dict[str, np.ndarray] | None = None
) -> NewItems:
    """Computes the embeddings of new items. Collective; all ranks pass the same arguments.

    Args:
        model: the model.
        ids: [n] external ids, none of them in the catalogue.
        features: modality -> [n, d_m], all modalities of the data, in any order; may be memory-mapped.
        missing: modality -> [n] bool: the items that lack it, as after `--missing mask`.

    Raises:
        InputError: the prepared folder does not record how its item graph was made.
    """
    graph, runtime = _ItemGraph.of(model.manifest), model.runtime
    share = -(-len(ids) // runtime.world_size)
    width = model.rows[1].shape[1]
    rows, ego = (torch.zeros(share, width, device=runtime.device) for _ in range(2))
    own = range(runtime.rank * share, min((runtime.rank + 1) * share, len(ids)))
    for begin in range(0, len(ids), BLOCK):
        block = range(begin, min(begin + BLOCK, len(ids)))
        names = [modality.name for modality in model.manifest.modalities]
        some = {name: torch.from_numpy(np.array(features[name][block.start : block.stop])) for name in names}
        lacking = {name: mask[block.start : block.stop] for name, mask in (missing or {}).items()}
        encoded = model.encode(some, {name: torch.from_numpy(mask) for name, mask in lacking.items()})
        placed = _with_neighbours(model, graph, some, lacking, encoded)
        kept = range(max(block.start, own.start), min(block.stop, own.stop))
        if len(kept):
            target = slice(kept.start - own.start, kept.stop - own.start)
            source = slice(kept.start - block.start, kept.stop - block.start)
            rows[target], ego[target] = placed[source], encoded[source]
    there = torch.arange(share) < len(own)
    return NewItems(ids, rows, ego, there)


def _with_neighbours(
    model: TrainedModel,
    graph: _ItemGraph,
    features: dict[str, Tensor],
    missing: dict[str, np.ndarray],
    ego: Tensor,
) -> Tensor:
    """Applies the item graph to new items: embeddings before propagation [n, C * d] -> final ones. Collective."""
    if not model.layers.similar:
        return ego
    count, local = len(ego), model.shard.item_rows
    itself = np.full(count, graph.own)
    row, column, weight = [], [], []
    shares = neighbour_shares(graph.weight, missing, count)
    for name, values in features.items():
        if not graph.weight[name]:
            continue
        found = _nearest(model, name, values, graph.k - 1)
        own_weight = graph.weight[name] * shares[name]  # [n]
        itself += own_weight * (graph.k - (found >= 0).sum(1))  # the item itself instead of missing neighbours
        near = found - model.shard.first_item
        mine = (found >= 0) & (near >= 0) & (near < local)
        row.append(np.nonzero(mine)[0])
        column.append(near[mine])
        weight.append(own_weight[row[-1]])
    matrix = sp.csr_array(
        (np.concatenate(weight), (np.concatenate(row), np.concatenate(column))), shape=(count, local), dtype=np.float64
    )
    state, own = ego, torch.from_numpy(itself).to(ego).unsqueeze(1)
    for layer in model.layers.similar:
        state = _multiply(model, matrix, layer) + own * state
    return ego + state


def _multiply(model: TrainedModel, matrix: sp.csr_array, rows: Tensor) -> Tensor:
    """`matrix` [n, m] times this rank's `rows` [m, width], summed over the ranks: [n, width]. Collective."""
    csr = Csr.from_numpy(matrix.indptr, matrix.indices, matrix.data, matrix.shape[1])
    result = to_device(csr, rows.device).times(rows)
    if model.runtime.rows_group is not None:
        dist.all_reduce(result, group=model.runtime.rows_group)
    return result


def _nearest(model: TrainedModel, name: str, values: Tensor, k: int) -> np.ndarray:
    """Global rows [n, k] of the items nearest by one modality's cosine, ties by row; -1 where there are too few."""
    device, shard = model.runtime.device, model.shard
    queries, known = _unit(values.to(device)), np.flatnonzero(shard.is_item)
    best = torch.full((len(queries), k), -torch.inf, device=device, dtype=torch.float64)
    place = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for begin in range(0, len(known), FEATURES):
        local = known[begin : begin + FEATURES]
        rows = _unit(model.features.gather(local)[name].to(device))
        score = torch.round((queries @ rows.T).double() * SCALE)
        score[:, ~rows.any(1)] = -torch.inf  # a row of zeros is similar to nothing
        found, column = top_columns(score, min(k, len(local)))
        column = torch.from_numpy(local + shard.first_item).to(device)[column]
        best, place = _merged(torch.cat([best, found], 1), torch.cat([place, column], 1), k)
    if model.runtime.world_size > 1:
        parts = [[torch.empty_like(x.cpu()) for _ in range(model.runtime.world_size)] for x in (best, place)]
        for part, own in zip(parts, (best, place), strict=True):
            dist.all_gather(part, own.cpu().contiguous(), group=model.runtime.control)
        best, place = _merged(torch.cat(parts[0], 1), torch.cat(parts[1], 1), k)
    missing = (best == -torch.inf).cpu() | ~queries.any(1, keepdim=True).cpu()
    return torch.where(missing, -1, place.cpu()).numpy()


def _merged(score: Tensor, place: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best; of equal scores the first ones, which have lower rows."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return score.gather(1, order), place.gather(1, order)


def _unit(values: Tensor) -> Tensor:
    rows = values.double()
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    return (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-300)).float()


def place_users(model: TrainedModel, owner: np.ndarray, item: np.ndarray, count: int, new: NewItems | None) -> Tensor:
    """Computes the embeddings of new users. Collective; all ranks pass the same arguments.

    Args:
        model: the model.
        owner: [e] int64 number of the user, below `count`; each pair of user and item occurs once.
        item: [e] int64 global item row; from `manifest.item_rows` on, a position among the new items.
        count: number of users.
        new: the new items, if there are any.

    Returns:
        [count, C * d] final embeddings, on every rank.
    """
    shard, known, lengths = model.shard, model.manifest.item_rows, np.bincount(owner, minlength=count)
    near = item - shard.first_item
    mine = (item < known) & (near >= 0) & (near < shard.item_rows)
    degree = _relative_degree(model)[near[mine]]
    ego, rows = _sums(model, owner[mine], near[mine], lengths, degree, model.rows[1], model.layers.items)
    if new is not None:
        share = len(new.rows)
        near = item - known - model.runtime.rank * share
        mine = (item >= known) & (near >= 0) & (near < share)
        degree = np.zeros(int(mine.sum()))
        # No node propagates into a new item, so of its sum over layers only its own embedding is left.
        inner = None if model.layers.items is None else new.ego
        more = _sums(model, owner[mine], near[mine], lengths, degree, new.rows, inner)
        ego, rows = ego + more[0], rows + more[1]
    rows = rows + l2_normalize(ego, model.settings.model.dim)
    return model.mix(rows, model.layers.mixing.expand(count, -1))


def _relative_degree(model: TrainedModel) -> np.ndarray:
    """[item rows] float64: training interactions of this rank's items, weighted by weight / mean weight. Collective."""
    degree = model.shard.item_weighted_degree
    if not model.manifest.weighted:
        return degree
    total = torch.tensor(degree.sum())
    dist.all_reduce(total, group=model.runtime.control)
    relative: np.ndarray = degree * (model.manifest.train / float(total))
    return relative


def _sums(
    model: TrainedModel,
    owner: np.ndarray,
    item: np.ndarray,
    lengths: np.ndarray,
    degree: np.ndarray,
    final: Tensor,
    inner: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums over pairs of users and local items [e]: of normalised `final` rows, and of weighted `inner` rows."""
    shape = (len(lengths), len(final))
    ego = _multiply(model, sp.csr_array((np.ones(len(item)), (owner, item)), shape=shape), l2_normalize(final))
    if inner is None:
        return ego, torch.zeros_like(ego)
    weight = 1 / np.sqrt(lengths[owner] * (degree + 1.0))
    return ego, _multiply(model, sp.csr_array((weight, (owner, item)), shape=shape), inner)
