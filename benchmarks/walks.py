"""Random walks against neighbour trees: two ways to draw the propagation of a batch, at equal numbers of input rows::

    python -m benchmarks.walks prepared/baby --json walks.json --plot docs/images/walks.png
    python -m benchmarks.walks prepared/baby --run runs/baby                 # with a trained run's rows as input

LightGCN's sum of layers is linear, and A^l = D^1/2 (D^-1 A)^l D^-1/2 has the powers of a random walk in the middle. A
walk from node u that stands at v after l steps estimates (A^l E)_u by sqrt(d_u / d_v) E_v, without bias, and one walk
of L steps serves all layers. A tree of sampled neighbours (`graph/neighbor_sampling.py`) is without bias,
too. What differs is their noise, how many rows they read, and their time; both are compared with the exact sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.timing import run_command, write_json
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.graph.full_graph import exact_propagation
from cm3_dist.graph.neighbor_sampling import Fanouts, Sampler
from cm3_dist.graph.shard import Shard, load_shard
from cm3_dist.graph.sparse_ops import Csr
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.batch_sampler import BatchSampler
from partition.errors import InputError
from partition.folder import layout

WALKS = [1, 2, 5, 10, 20, 50, 100]  # a node
FANOUTS = [[1], [2], [4, 2, 1], [4], [10, 4, 2], [10], [20]]
LAYERS, SEED = 3, 1


@dataclass(frozen=True)
class Measured:
    """One way to draw. Errors are relative to the norm of the exact rows, over all nodes of the batch."""

    way: str  # "walks" or "tree"
    size: str
    input_rows: float  # share of all nodes that are read
    noise: float  # root of the variance of a draw
    bias: float  # of the mean of all draws, and
    bias_by_chance: float  # what it would be by noise alone
    cosine: float  # of a drawn row with the exact one, which is what the loss sees of it
    milliseconds: float  # to draw and to apply, forward


class Walks:
    """Random walks over the whole bipartite training graph of one rank: users first, then items.

    Raises:
        InputError: the interactions have weights: walks go to all neighbours alike.
    """

    def __init__(self, shard: Shard) -> None:
        if shard.manifest.weighted:
            message = f"{shard.root}: its interactions are weighted, and walks go to all neighbours alike"
            raise InputError(message, "benchmark.weighted")
        users = shard.user_rows
        to_user, to_item = shard.adjacency(layout.ITEM_TO_USER), shard.adjacency(layout.USER_TO_ITEM)
        self._indptr = np.concatenate([to_user.indptr, to_item.indptr[1:] + to_user.indptr[-1]])
        self._neighbour = np.concatenate([to_user.source + users, to_item.source])
        self._degree = np.diff(self._indptr)
        self._root = np.sqrt(np.maximum(self._degree, 1))

    def draw(self, seeds: np.ndarray, walks: int, layers: int, rng: np.random.Generator) -> tuple[Csr, np.ndarray]:
        """The operator [seeds, nodes read] and these nodes, ascending: `walks` of `layers` steps from each seed [n].

        A walk stays where there is nowhere to go: what it would find there counts nothing.
        """
        at = np.repeat(seeds, walks)
        start, moves = self._root[at], self._degree[at] > 0
        visited, weight = [at], [np.full(len(at), 1 / walks)]
        for _ in range(layers):
            step = (rng.random(len(at)) * self._degree[at]).astype(np.int64)
            at = np.where(moves, self._neighbour[np.where(moves, self._indptr[at] + step, 0)], at)
            visited.append(at)
            weight.append(np.where(moves, start / self._root[at] / walks, 0.0))
        # Layers side by side, so that a seed's entries are consecutive.
        columns, values = np.stack(visited, 1).reshape(-1), np.stack(weight, 1).reshape(-1)
        nodes, place = np.unique(columns, return_inverse=True)
        indptr = np.arange(len(seeds) + 1) * walks * (layers + 1)
        return Csr.from_numpy(indptr, place, values, len(nodes)), nodes


class Comparison:
    """One batch of one graph, its exact rows, and what draws make of them."""

    def __init__(self, shard: Shard, runtime: Runtime, ego: tuple[Tensor, Tensor], batch: int, draws: int) -> None:
        self._shard, self._runtime, self._ego, self._draws = shard, runtime, ego, draws
        first = next(BatchSampler(shard, batch, "in_batch", SEED).epoch(0))
        self._users, self._items = np.unique(first.user), np.unique(first.positive)
        groups = runtime.group, runtime.planning
        rows = exact_propagation(shard, LAYERS, 0, *groups, adjoint=False)(*ego)
        self._exact = torch.cat([rows[0][self._users], rows[1][self._items]]).double()
        self.nodes = shard.manifest.users + shard.manifest.items

    def tree(self, fanouts: list[int]) -> Measured:
        """Neighbour trees of the trainer's sampler."""
        fanout = Fanouts(fanouts * LAYERS if len(fanouts) == 1 else fanouts, [])
        sampler = Sampler(self._shard, fanout, SEED, self._runtime.group, self._runtime.planning)

        def draw(number: int) -> tuple[Tensor, int]:
            sample = sampler.draw(self._users, self._items, 0, number)
            rows = sample.propagation(self._ego[0][sample.users], self._ego[1][sample.items])
            return torch.cat(rows), len(sample.users) + len(sample.items)

        return self._measure("tree", "-".join(map(str, fanouts)), draw)

    def walks(self, walks: Walks, count: int) -> Measured:
        """Walks from every node of the batch."""
        seeds = np.concatenate([self._users, self._items + self._shard.user_rows])
        everything = torch.cat(self._ego)

        def draw(number: int) -> tuple[Tensor, int]:
            operator, nodes = walks.draw(seeds, count, LAYERS, np.random.default_rng([SEED, number]))
            return operator.times(everything[nodes]), len(nodes)

        return self._measure("walks", str(count), draw)

    def _measure(self, way: str, size: str, draw: Callable[[int], tuple[Tensor, int]]) -> Measured:
        draw(self._draws)  # does not count: libraries set themselves up
        total, squares = torch.zeros_like(self._exact), 0.0
        read, cosine, taken = 0, 0.0, []
        there, direction = self._exact.any(1), l2_normalize(self._exact)
        for number in range(self._draws):
            begin = time.perf_counter()
            rows, inputs = draw(number)
            taken.append(time.perf_counter() - begin)
            off = rows.double() - self._exact
            total += off
            squares += float(off.square().sum())
            read += inputs
            cosine += float((l2_normalize(rows.double()) * direction).sum(1)[there].mean())
        size_of_exact, n = float(self._exact.square().sum()), self._draws
        off_mean = float((total / n).square().sum())
        variance = max(squares / n - off_mean, 0) * n / (n - 1)

        def root(value: float) -> float:
            return float(np.sqrt(value / size_of_exact))

        return Measured(
            way,
            size,
            read / n / self.nodes,
            root(variance),
            root(off_mean),
            root(variance / n),
            cosine / n,
            float(np.median(taken)) * 1e3,
        )


def random_rows(shard: Shard, width: int) -> tuple[Tensor, Tensor]:
    """Unit rows in random directions, as untrained ego rows are: the worst case, neighbours have nothing in common."""
    generator = torch.Generator().manual_seed(SEED)
    users, items = (torch.randn(n, width, generator=generator) for n in (shard.user_rows, shard.item_rows))
    return l2_normalize(users), l2_normalize(items)


def trained_rows(folder: Path, prepared: Path, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Ego rows of a run."""
    from cm3_dist.config.command_options import run_settings
    from cm3_dist.inference.trained_model import TrainedModel

    users, items, _ = TrainedModel(run_settings(folder, [f"data.path={prepared}"]), runtime).ego_rows()
    return users, items


def draw_curves(found: list[Measured], path: Path) -> None:
    """Noise against the rows read, both ways."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for panel, (name, title) in zip(
        axes, (("input_rows", "share of all nodes read"), ("milliseconds", "milliseconds")), strict=True
    ):
        for way, colour in (("walks", "tab:orange"), ("tree", "tab:blue")):
            these = sorted((one for one in found if one.way == way), key=lambda one: float(getattr(one, name)))
            x, y = [getattr(one, name) for one in these], [one.noise for one in these]
            panel.plot(x, y, "o-", color=colour, label=way)
            for one, place in zip(these, zip(x, y, strict=True), strict=True):
                panel.annotate(one.size, place, fontsize=7, textcoords="offset points", xytext=(3, 3))
        panel.set(xscale="log", yscale="log", xlabel=title, ylabel="noise, relative")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    prepared: Annotated[Path, typer.Argument(help="prepared folder")],
    run: Annotated[Path | None, typer.Option(help="take the ego rows of this run, not random ones")] = None,
    batch: Annotated[int, typer.Option(min=1, help="positives of the batch")] = 512,
    draws: Annotated[int, typer.Option(min=2, help="draws of each size")] = 30,
    width: Annotated[int, typer.Option(min=1, help="of random rows")] = 64,
    output: Annotated[Path | None, typer.Option("--json", help="write the figures there")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw them there, as PNG")] = None,
) -> None:
    """Compare random walks with neighbour trees: rows read, noise, bias and time."""
    with distributed(Machine(device="cpu", threads=2)) as runtime:
        shard = load_shard(prepared, 0, 1)
        ego = random_rows(shard, width) if run is None else trained_rows(run, prepared, runtime)
        with torch.no_grad():
            comparison, walks = Comparison(shard, runtime, ego, batch, draws), Walks(shard)
            print(" way    size  rows read   noise    bias (by chance)   cosine       ms", flush=True)
            found = []
            for make in (
                *(lambda count=count: comparison.walks(walks, count) for count in WALKS),
                *(lambda fanouts=fanouts: comparison.tree(fanouts) for fanouts in FANOUTS),
            ):
                one = make()
                found.append(one)
                print(
                    f"{one.way:>5} {one.size:>7}   {one.input_rows:8.3f} {one.noise:7.3f} {one.bias:7.4f} "
                    f"({one.bias_by_chance:.4f})   {one.cosine:9.4f} {one.milliseconds:8.1f}",
                    flush=True,
                )
    write_json([asdict(one) for one in found], output)
    if plot is not None:
        draw_curves(found, plot)


if __name__ == "__main__":
    run_command(main)
