"""Rows of items and users that training never saw, from what is known of them; nothing is trained.

**A new item** has features and no interactions. Its ego row is encoded from the features, as any item's (without an
item-id row); without interactions the user-item layers leave it as it is. Its row of the item graph is made at that
moment by the rule of preparation: of every modality the k - 1 nearest items of the catalogue by cosine and itself, each
weighted weight/k. So its row is the one that the item would have had in the prepared folder, but that it is nobody
else's neighbour and that other new items are not its.

**A new user** has a list of items. The alignment loss puts a user's normalised row where the sum of the items'
normalised final rows x_i points: that direction, channel by channel, stands in for the trained ego row. LightGCN's sum
follows as if the user were a node whose edges change nothing else; with d = length of the list and d_i = training
interactions of item i:

    ego = l2_normalize( sum over the list of x_i ),   per channel
    row = mix( ego + sum over the list of  1 / sqrt(d (d_i + 1))  (E + A E + ... + A^(L-1) E)_i )

The channels are mixed by the softmax of the trained users' mean logits. A list may hold new items. Measured on Baby,
validation, every user taken for a new one: Recall@20 .0979 and NDCG@20 .0445, with their trained rows .1033 and .0463;
without the ego term .0390 and .0181, with it alone .0978 and .0424.
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
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.device_transfer import to_device
from cm3_dist.ranking.topk import top_columns
from partition.folder.manifest import Manifest
from partition.options import item_graph_weights

BLOCK = 4096  # new items or users placed at a time
FEATURES = 65_536  # rows of the catalogue compared at a time
SCALE = 1 << 20  # cosines that agree to 1 / SCALE are ties, as in preparation


@dataclass(frozen=True)
class NewItems:
    """Items that are not in the catalogue; ranks hold equal, consecutive shares of their rows."""

    ids: pa.Array  # [n] own ids, all of them on every rank
    rows: Tensor  # [share, C * d] this rank's final rows; padding at the end is zero
    ego: Tensor  # [share, C * d]
    candidates: Tensor  # [share] bool: those that may be recommended

    def only(self, chosen: np.ndarray, run: FinishedRun) -> NewItems:
        """The same, of which only those at `chosen` (positions in `ids`) may be recommended."""
        first = run.runtime.rank * len(self.rows)
        mask = torch.zeros(len(self.rows), dtype=torch.bool)
        own = chosen[(chosen >= first) & (chosen < first + len(self.rows))]
        mask[torch.from_numpy(own - first)] = True
        return replace(self, candidates=self.candidates & mask)


@dataclass(frozen=True)
class _Graph:
    """How preparation makes an item's row of the item graph."""

    k: int
    weight: dict[str, float]  # modality -> weight of one of its k neighbours
    rest: float  # weight that stays with the item itself: it has no users to share

    @staticmethod
    def of(manifest: Manifest) -> _Graph:
        options = manifest.settings
        missing = {"item_graph_k", "item_graph_weight", "cooccurrence_weight"} - set(options)
        if missing:
            raise InputError(f"{manifest.name}: the manifest's settings lack {min(missing)!r}; prepare the data again")
        weights = item_graph_weights(options["item_graph_weight"], [m.name for m in manifest.modalities])
        k, shared = min(options["item_graph_k"], manifest.items), options["cooccurrence_weight"]
        total = sum(weights.values()) + shared
        return _Graph(k, {name: weight / total / k for name, weight in weights.items()}, shared / total)


def place_items(run: FinishedRun, ids: pa.Array, features: dict[str, np.ndarray]) -> NewItems:
    """Makes the rows of new items. Collective; all ranks give the same.

    Args:
        run: the model.
        ids: [n] own ids, none of them in the catalogue.
        features: modality -> [n, d_m], all of the data's modalities, in any order; may be memory-mapped.

    Raises:
        InputError: the prepared folder does not say how its item graph was made.
    """
    graph, runtime = _Graph.of(run.manifest), run.runtime
    share = -(-len(ids) // runtime.world_size)
    width = run.rows[1].shape[1]
    rows, ego = (torch.zeros(share, width, device=runtime.device) for _ in range(2))
    own = range(runtime.rank * share, min((runtime.rank + 1) * share, len(ids)))
    for begin in range(0, len(ids), BLOCK):
        block = range(begin, min(begin + BLOCK, len(ids)))
        names = [modality.name for modality in run.manifest.modalities]
        some = {name: torch.from_numpy(np.array(features[name][block.start : block.stop])) for name in names}
        encoded = run.trainer.model.encode(some, runtime.device)
        placed = _with_neighbours(run, graph, some, encoded)
        kept = range(max(block.start, own.start), min(block.stop, own.stop))
        if len(kept):
            target = slice(kept.start - own.start, kept.stop - own.start)
            source = slice(kept.start - block.start, kept.stop - block.start)
            rows[target], ego[target] = placed[source], encoded[source]
    there = torch.arange(share) < len(own)
    return NewItems(ids, rows, ego, there)


def _with_neighbours(run: FinishedRun, graph: _Graph, features: dict[str, Tensor], ego: Tensor) -> Tensor:
    """Applies the item graph to new items: ego rows [n, width] -> final rows."""
    if not run.layers.similar:
        return ego
    count, local = len(ego), run.shard.item_rows
    itself = np.full(count, graph.rest)
    row, column, weight = [], [], []
    for name, values in features.items():
        if not graph.weight[name]:
            continue
        found = _nearest(run, name, values, graph.k - 1)
        itself += graph.weight[name] * (graph.k - (found >= 0).sum(1))  # where neighbours are too few, the item itself
        near = found - run.shard.first_item
        mine = (found >= 0) & (near >= 0) & (near < local)
        row.append(np.nonzero(mine)[0])
        column.append(near[mine])
        weight.append(np.full(int(mine.sum()), graph.weight[name]))
    matrix = sp.csr_array(
        (np.concatenate(weight), (np.concatenate(row), np.concatenate(column))), shape=(count, local), dtype=np.float64
    )
    state, own = ego, torch.from_numpy(itself).to(ego).unsqueeze(1)
    for layer in run.layers.similar:
        state = _gathered(run, matrix, layer) + own * state
    return ego + state


def _gathered(run: FinishedRun, matrix: sp.csr_array, rows: Tensor) -> Tensor:
    """[n, local items] times this rank's rows [local items, width], summed over the ranks."""
    csr = Csr.from_numpy(matrix.indptr, matrix.indices, matrix.data, matrix.shape[1])
    result = to_device(csr, rows.device).times(rows)
    if run.runtime.rows_group is not None:
        dist.all_reduce(result, group=run.runtime.rows_group)
    return result


def _nearest(run: FinishedRun, name: str, values: Tensor, k: int) -> np.ndarray:
    """[n, k] global rows of the catalogue's items nearest by cosine of one modality, ties by row; -1: too few."""
    device, shard = run.runtime.device, run.shard
    queries, known = _unit(values.to(device)), np.flatnonzero(shard.is_item)
    best = torch.full((len(queries), k), -torch.inf, device=device, dtype=torch.float64)
    place = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for begin in range(0, len(known), FEATURES):
        local = known[begin : begin + FEATURES]
        rows = _unit(run.trainer.features.gather(local)[name].to(device))
        score = torch.round((queries @ rows.T).double() * SCALE)
        score[:, ~rows.any(1)] = -torch.inf  # a row of zeros is similar to nothing
        found, column = top_columns(score, min(k, len(local)))
        column = torch.from_numpy(local + shard.first_item).to(device)[column]
        best, place = _merged(torch.cat([best, found], 1), torch.cat([place, column], 1), k)
    if run.runtime.world_size > 1:
        parts = [[torch.empty_like(x.cpu()) for _ in range(run.runtime.world_size)] for x in (best, place)]
        for part, own in zip(parts, (best, place), strict=True):
            dist.all_gather(part, own.cpu().contiguous(), group=run.runtime.control)
        best, place = _merged(torch.cat(parts[0], 1), torch.cat(parts[1], 1), k)
    missing = (best == -torch.inf).cpu() | ~queries.any(1, keepdim=True).cpu()
    return torch.where(missing, -1, place.cpu()).numpy()


def _merged(score: Tensor, place: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best; of equal scores those that stand first, which have lower rows."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return score.gather(1, order), place.gather(1, order)


def _unit(values: Tensor) -> Tensor:
    rows = values.double()
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    return (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-300)).float()


def place_users(run: FinishedRun, owner: np.ndarray, item: np.ndarray, count: int, new: NewItems | None) -> Tensor:
    """Makes the rows of new users. Collective; all ranks give the same.

    Args:
        run: the model.
        owner: [e] int64 which user, below `count`; a pair occurs once.
        item: [e] int64 global item row, or from `manifest.item_rows` on a position among the new items.
        count: users.
        new: the new items, if there are any.

    Returns:
        [count, C * d] rows to rank with, on every rank.
    """
    shard, known, lengths = run.shard, run.manifest.item_rows, np.bincount(owner, minlength=count)
    near = item - shard.first_item
    mine = (item < known) & (near >= 0) & (near < shard.item_rows)
    degree = shard.item_degree[near[mine]]
    ego, rows = _sums(run, owner[mine], near[mine], lengths, degree, run.rows[1], run.layers.items)
    if new is not None:
        share = len(new.rows)
        near = item - known - run.runtime.rank * share
        mine = (item >= known) & (near >= 0) & (near < share)
        degree = np.zeros(int(mine.sum()), np.int64)
        # Nobody else propagates into a new item: of the sum over its layers only what it gives to users is left.
        inner = None if run.layers.items is None else new.ego
        more = _sums(run, owner[mine], near[mine], lengths, degree, new.rows, inner)
        ego, rows = ego + more[0], rows + more[1]
    rows = rows + l2_normalize(ego, run.settings.model.dim)
    return run.trainer.model.mix(rows, run.layers.mixing.expand(count, -1))


def _sums(
    run: FinishedRun,
    owner: np.ndarray,
    item: np.ndarray,
    lengths: np.ndarray,
    degree: np.ndarray,
    final: Tensor,
    inner: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Over pairs of users and local items [e]: the sums of normalised `final` rows, and of weighted `inner` rows."""
    shape = (len(lengths), len(final))
    ego = _gathered(run, sp.csr_array((np.ones(len(item)), (owner, item)), shape=shape), l2_normalize(final))
    if inner is None:
        return ego, torch.zeros_like(ego)
    weight = 1 / np.sqrt(lengths[owner] * (degree + 1.0))
    return ego, _gathered(run, sp.csr_array((weight, (owner, item)), shape=shape), inner)
