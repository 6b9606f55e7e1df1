"""CM3 written the plain way, in one process, as research code does it: what the program's speed is compared with.

The whole graph as a torch COO matrix, propagated with autograd in every batch; the encoder over all items in every
batch; `pdist` and all pair indices for the uniformity terms; dense Adam on every table; negatives in a Python loop;
metrics in a loop over users. It is the model of docs/model.md, trained as its authors do (uniform negatives, Adam),
and reaches the same quality; `tests/benchmarks/test_plain_reference.py` holds it equal to the program, step by step.

    python -m benchmarks.reference prepared/baby --epochs 3
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.plain_data import PlainData, load_plain

KS = (5, 10, 20, 50)


class PlainCM3(nn.Module):
    """The model over all users and items; hyper-parameters as in the paper."""

    def __init__(self, data: PlainData, dim: int = 64, layers: int = 3, alpha: float = 0.5) -> None:
        super().__init__()
        self.data, self.dim, self.layers, self.alpha = data, dim, layers, alpha
        channels = len(data.features) + 1
        self.user_channels = nn.ModuleList([nn.Embedding(data.users, dim) for _ in range(channels)])
        for table in self.user_channels:
            assert isinstance(table, nn.Embedding)
            nn.init.xavier_normal_(table.weight)
        self.mixing = nn.Parameter(torch.zeros(data.users, channels))
        widths = [values.shape[1] for values in data.features]
        self.hidden = nn.ModuleList([nn.Linear(width, 4 * dim) for width in widths])
        self.channel = nn.ModuleList([nn.Linear(4 * dim, dim, bias=False) for _ in widths])
        self.point = nn.ModuleList([nn.Linear(width, dim) for width in widths])
        for layer in self.point:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
        self.register_buffer("adjacency", normalised_adjacency(data.train, data.users, data.items))
        self.register_buffer("similar", data.similar)
        for place, values in enumerate(data.features):
            self.register_buffer(f"features_{place}", values)

    def encode(self, curve: Tensor) -> tuple[Tensor, Tensor]:
        """All items: ego rows [I, C * d] and fused rows [I, d]; `curve` [I]."""
        channels, points = [], []
        for place, (hidden, channel, point) in enumerate(zip(self.hidden, self.channel, self.point, strict=True)):
            values = getattr(self, f"features_{place}")
            channels.append(channel(F.leaky_relu(hidden(values))))
            points.append(F.normalize(point(values), dim=-1))
        while len(points) > 1:
            points = [slerp(a, b, curve) for a, b in zip(points, points[1:], strict=False)]
        fused = points[0]
        return torch.cat([F.normalize(rows, dim=-1) for rows in [*channels, fused]], dim=1), fused

    def forward(self, curve: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Final rows of all users [U, C * d] and items [I, C * d], and the fused rows [I, d]."""
        items, fused = self.encode(curve)
        users = torch.cat([F.normalize(table.weight, dim=-1) for table in self.user_channels], dim=1)
        rows = torch.cat([users, items])
        total = rows
        for _ in range(self.layers):
            rows = torch.sparse.mm(self.adjacency, rows)
            total = total + rows
        users, items = total.split([self.data.users, self.data.items])
        shares = torch.softmax(self.mixing, dim=1).repeat_interleave(self.dim, dim=1)
        return users * shares, items + torch.sparse.mm(self.similar, items), fused

    def draw_curve(self) -> Tensor:
        """[I] curve parameters of a training step."""
        device = self.mixing.device
        return torch.distributions.Beta(
            torch.tensor(self.alpha, device=device), torch.tensor(self.alpha, device=device)
        ).sample((self.data.items,))

    def loss(self, user: Tensor, positive: Tensor, negative: Tensor, curve: Tensor, gamma: float = 0.9) -> Tensor:
        """The loss of a batch of triples, [B] int64 each."""
        users, items, fused = self(curve)
        x_u, x_i, x_n = (F.normalize(rows, dim=-1) for rows in (users[user], items[positive], items[negative]))
        alignment = (x_u - x_i).square().sum(-1).mean()
        return alignment + gamma / 2 * (uniformity(x_u) + calibrated_uniformity(x_n, fused[negative]))


def slerp(a: Tensor, b: Tensor, curve: Tensor) -> Tensor:
    """Spherical interpolation of unit rows [n, d] at `curve` [n]."""
    curve = curve.unsqueeze(-1)
    theta = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6))
    return (torch.sin((1 - curve) * theta) * a + torch.sin(curve * theta) * b) / torch.sin(theta)


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential over all pairs of unit rows [B, w]."""
    return torch.pdist(x).square().mul(-t).exp().mean().log()


def calibrated_uniformity(x: Tensor, fused: Tensor, t: float = 2.0, clamp: tuple[float, float] = (0, 1)) -> Tensor:
    """The same, every pair calibrated by the similarity of its fused rows [B, d]."""
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    phi = (fused.index_select(0, first) * fused.index_select(0, second)).sum(-1).clamp(*clamp)
    return (-t * (torch.pdist(x).square() - 2 + 2 * phi)).exp().mean().log()


def normalised_adjacency(train: np.ndarray, users: int, items: int) -> Tensor:
    """[U + I, U + I] COO of the training interactions [E, 2], symmetrically normalised."""
    user, item = torch.from_numpy(train[:, 0]), torch.from_numpy(train[:, 1]) + users
    index = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
    root = torch.bincount(index[0], minlength=users + items).clamp(min=1).float().rsqrt()
    size = (users + items, users + items)
    return torch.sparse_coo_tensor(index, root[index[0]] * root[index[1]], size, check_invariants=True).coalesce()


def batches(data: PlainData, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """An epoch's triples: user, positive, negative; [B] int64 each."""
    seen: dict[int, set[int]] = {}
    for user, item in data.train.tolist():
        seen.setdefault(user, set()).add(item)
    trained = sorted(set(data.train[:, 1].tolist()))
    order = np.random.permutation(len(data.train))
    for begin in range(0, len(order), size):
        chosen = data.train[order[begin : begin + size]]
        negatives = []
        for user in chosen[:, 0].tolist():
            item = random.choice(trained)
            while item in seen[user]:
                item = random.choice(trained)
            negatives.append(item)
        yield torch.from_numpy(chosen[:, 0]), torch.from_numpy(chosen[:, 1]), torch.tensor(negatives)


def train_epoch(model: PlainCM3, optimizer: torch.optim.Optimizer, size: int = 2048, steps: int | None = None) -> float:
    """Trains an epoch, or its first `steps`. Returns the mean loss."""
    losses = []
    device = model.mixing.device
    for step, (user, positive, negative) in enumerate(batches(model.data, size)):
        if step == steps:
            break
        optimizer.zero_grad()
        loss = model.loss(user.to(device), positive.to(device), negative.to(device), model.draw_curve())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def final_rows(model: PlainCM3) -> tuple[Tensor, Tensor]:
    """Rows to rank with: [U, C * d] and [I, C * d]."""
    users, items, _ = model(torch.full((model.data.items,), 0.5, device=model.mixing.device))
    return users, items


def evaluate(users: Tensor, items: Tensor, data: PlainData, split: str, block: int = 2048) -> dict[str, float]:
    """Mean metrics of the full ranking, user by user, ranked with a heap as in the LATTICE family's `test_one_user`."""
    seen: dict[int, list[int]] = {}
    for user, item in data.train.tolist():
        seen.setdefault(user, []).append(item)
    sums: dict[str, float] = {}
    everyone = sorted(data.held_out[split])
    for begin in range(0, len(everyone), block):
        group = everyone[begin : begin + block]
        for user, scores in zip(group, (users[group] @ items.T).tolist(), strict=True):
            candidates = set(range(data.items)) - set(seen[user])
            ranked = heapq.nlargest(max(KS), candidates, key=scores.__getitem__)
            for name, value in user_metrics(ranked, set(data.held_out[split][user])).items():
                sums[name] = sums.get(name, 0.0) + value
    return {name: value / len(everyone) for name, value in sums.items()}


def user_metrics(ranked: list[int], relevant: set[int]) -> dict[str, float]:
    """One user's metrics at all cut-offs."""
    found = {}
    for k in KS:
        hits, gain, precision = 0, 0.0, 0.0
        for position, item in enumerate(ranked[:k]):
            if item in relevant:
                hits += 1
                gain += 1 / math.log2(position + 2)
                precision += hits / (position + 1)
        best = min(k, len(relevant))
        found[f"recall@{k}"] = hits / len(relevant)
        found[f"ndcg@{k}"] = gain / sum(1 / math.log2(position + 2) for position in range(best))
        found[f"precision@{k}"] = hits / k
        found[f"map@{k}"] = precision / best
    return found


def main(
    prepared: Path,
    epochs: Annotated[int, typer.Option(help="epochs to train")] = 3,
    seed: Annotated[int, typer.Option(help="of everything random")] = 2025,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Train the plain CM3 on a prepared folder and print its validation Recall@20."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = PlainCM3(load_plain(prepared)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(epochs):
        began = time.perf_counter()
        loss = train_epoch(model, optimizer)
        trained = time.perf_counter()
        users, items = final_rows(model)
        metrics = evaluate(users, items, model.data, "validation")
        print(
            f"epoch {epoch}  loss {loss:.4f}  {trained - began:.1f} s  recall@20 {metrics['recall@20']:.4f}  "
            f"{time.perf_counter() - trained:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
