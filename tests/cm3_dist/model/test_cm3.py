"""A whole training step, forward and backward, metrics and ranking, compared with the formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError
from partition.folder import layout
from partition.folder.manifest import Manifest
from partition.options import default_weights
from partition.transform.dataset import TRAIN, Dataset
from tests.support import reference as ref
from tests.support.small import mask_features, prepare_small, small_dataset, small_settings, weighted_dataset

K = 4


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with distributed(Machine(device="cpu", threads=1)) as found:
        yield found


def _rows_of(prepared: Path, manifest: Manifest, name: str, ids: pa.Array) -> np.ndarray:
    """Global row of every user or item index, by its external id."""
    stride = manifest.user_stride if name == layout.USERS else manifest.item_stride
    row = {}
    for part in range(manifest.num_parts):
        with pa.memory_map(str(layout.part_dir(prepared, part) / name)) as source:
            for offset, external in enumerate(pa.ipc.open_file(source).read_all().column("id").to_pylist()):
                row[external] = part * stride + offset
    return np.array([row[external] for external in ids.to_pylist()])


class Dense:
    """The trainer's state and one of its plans as dense float64 tensors over user and item indices."""

    def __init__(self, trainer: Trainer, dataset: Dataset, prepared: Path) -> None:
        self.users = _rows_of(prepared, trainer.manifest, layout.USERS, dataset.user_ids)
        self.items = _rows_of(prepared, trainer.manifest, layout.ITEMS, dataset.item_ids)
        user, item = dataset.train()
        self.interactions = torch.zeros(len(self.users), len(self.items), dtype=torch.float64)
        self.interactions[user, item] = 1
        self.weight = self.interactions.clone()
        if dataset.weight is not None:
            self.weight[user, item] = torch.from_numpy(dataset.weight[dataset.split == TRAIN].astype(np.float64))
        values = [features.values for features in dataset.features.values()]
        weights = default_weights(list(dataset.features))
        self.names = list(dataset.features)
        self.features = [torch.from_numpy(v.astype(np.float64)) for v in values]
        self.present = torch.ones(len(values), len(self.items), dtype=torch.bool)
        for number, name in enumerate(dataset.features):
            if name in dataset.missing:
                self.present[number] = torch.from_numpy(~dataset.missing[name])
        shares = [weights[name] for name in dataset.features]
        self.similar = ref.masked_item_graph(self.features, self.present, shares, K)
        if self.present.all():
            torch.testing.assert_close(self.similar, ref.item_graph(self.features, shares, K))
        self.present[:, ~self.present.any(0)] = True  # an item that lacks all is one with rows of zeros
        state = trainer.model.tables.local_state()
        channels = 1 + len(values)
        self.table = state["user_channels"][self.users].double().requires_grad_()
        self.mixing = state["user_mixing"][self.users, :channels].double().requires_grad_()
        encoder = trainer.model.encoder
        self.weights = []
        for name in dataset.features:
            layers = (encoder.hidden[name], encoder.channel[name], encoder.point[name])
            parameters = [p for layer in layers for p in layer.parameters()]
            self.weights.append(ref.Modality(*(p.detach().double().requires_grad_() for p in parameters)))
        # Parameters that optional settings add, by name; without them the model is the paper's.
        self.added = {
            name: p.detach().double().requires_grad_()
            for name, p in trainer.model.dense_parameters()
            if name.startswith("projection")
        }
        self.model = trainer.settings.model
        self.batch: Any = None

    def fuse(self, points: Tensor, curve: Tensor) -> Tensor:
        order = [self.names.index(name) for name in self.model.curve_order or self.names]
        points, present = points[order], self.present[order]
        if self.model.fusion == "concat":
            weight, bias = self.added["projection.weight"], self.added["projection.bias"]
            return ref.unit(torch.cat(list(points * present.unsqueeze(2)), 1) @ weight.T + bias)
        rows = [self._fuse_one(points[present[:, n], n], curve[n]) for n in range(len(curve))]
        return torch.stack(rows)

    def _fuse_one(self, points: Tensor, curve: Tensor) -> Tensor:
        """The points [M, d] that an item has -> [d]."""
        if self.model.fusion == "mean":
            return ref.unit(points.sum(0))
        if len(points) == 1:
            return points[0]
        fuse = ref.pairwise if self.model.fusion == "slerp" else ref.bezier
        return fuse(points.unsqueeze(1), curve.reshape(1))[0]

    def rows(self, curve: Tensor, layers: int, item_layers: int) -> tuple[Tensor, Tensor, Tensor]:
        users = ref.ego(self.table.view(len(self.table), self.mixing.shape[1], -1))
        channels, fused = ref.encode(self.features, self.weights, curve, self.fuse)
        blocks = torch.cat([ref.unit(channels), fused.unsqueeze(1)], 1)
        there = torch.cat([self.present, self.present.any(0, keepdim=True)]).T
        items = (blocks * there.unsqueeze(2)).reshape(len(blocks), -1)
        users, items = ref.propagate(self.weight, users, items, layers)
        items = ref.item_rows(items, self.similar, item_layers)
        return ref.user_rows(users, self.mixing), items, fused

    def loss(self, plan: Any, trainer: Trainer) -> Tensor:
        settings = trainer.settings
        propagation = settings.propagation
        index_of_user = {row: index for index, row in enumerate(self.users.tolist())}
        index_of_item = {row: index for index, row in enumerate(self.items.tolist())}
        curve_of = dict(zip(plan.inputs.items.tolist(), plan.inputs.curve.tolist(), strict=True))
        curve = torch.tensor([curve_of.get(row, 0.5) for row in self.items.tolist()], dtype=torch.float64)
        users, items, fused = self.rows(curve, propagation.user_item_layers, propagation.item_item_layers)
        users, items = ref.unit(users), ref.unit(items)
        batch = self.batch
        u = torch.tensor([index_of_user[row] for row in batch.user.tolist()])
        i = torch.tensor([index_of_item[row] for row in batch.positive.tolist()])
        entries, weight = i, None
        if len(batch.negative):
            entries = torch.tensor([index_of_item[row] for row in batch.negative.tolist()])
            assert not self.interactions[u, entries].any()  # a negative is never a training item of its user
        elif settings.loss.in_batch_correction == "horvitz_thompson":
            entries = torch.unique(i)
            train = int(self.interactions.sum())
            weight = 1 / ref.inclusion_probability(self.interactions.sum(0)[entries], len(u), train)
        elif settings.loss.in_batch_correction == "inverse_degree":
            weight = 1 / self.interactions.sum(0)[entries]
        t, low, high = settings.loss.t, settings.loss.min_sim, settings.loss.max_sim
        calibrated = settings.loss.item_uniformity == "calibrated"
        x, s = items[entries], fused[entries]
        if weight is None:
            repelled = ref.item_uniformity(x, s, t, low, high, calibrated)
        else:
            repelled = ref.weighted_item_uniformity(x, s, weight, t, low, high, calibrated)
        aligned = ref.weighted_alignment(users[u], items[i], self.weight[u, i])
        if trainer.manifest.weighted:
            assert not torch.isclose(aligned, ref.alignment(users[u], items[i]), rtol=1e-3)
        self.terms = [aligned, ref.user_uniformity(users[u], t), repelled]
        aligned, user_part, item_part = self.terms
        return ref.total(aligned, user_part, item_part, trainer.loss_constants.gamma)


CASES: dict[str, tuple[int, float, dict[str, Any]]] = {
    "uniform": (2, 1e-4, {"negatives": "uniform"}),
    "one modality, plain": (1, 1e-4, {"negatives": "uniform", "loss": {"item_uniformity": "plain"}}),
    "three modalities, two item layers": (3, 1e-4, {"negatives": "uniform", "propagation": {"item_item_layers": 2}}),
    "four modalities, four layers, no item graph": (
        4,
        1e-4,
        {"negatives": "uniform", "propagation": {"user_item_layers": 4, "item_item_layers": 0}},
    ),
    "in_batch as it is": (2, 1e-4, {"loss": {"in_batch_correction": "none", "max_sim": 0.8}}),
    "in_batch, 1/degree": (2, 1e-4, {"loss": {"in_batch_correction": "inverse_degree", "t": 3.0}}),
    "in_batch, Horvitz-Thompson": (2, 1e-4, {}),
    "sampled, all neighbours": (2, 1e-4, {"negatives": "uniform", "propagation": {"mode": "sampled", "fanouts": [-1]}}),
    "curve in another order": (3, 1e-4, {"model": {"curve_order": ["text", "audio", "image"]}}),
    "mean of the modalities": (3, 1e-4, {"model": {"fusion": "mean"}}),
    "five modalities, curve in another order": (
        5,
        1e-4,
        {"model": {"curve_order": ["touch", "image", "video", "text", "audio"]}},
    ),
    "slerps of all pairs": (3, 1e-4, {"model": {"fusion": "slerp"}}),
    "modalities side by side and projected": (
        2,
        1e-4,
        {"model": {"fusion": "concat", "curve_order": ["text", "image"]}},
    ),
    "some missing": (2, 1e-4, {}),
    "some missing, curve in another order": (
        4,
        1e-4,
        {"negatives": "uniform", "model": {"curve_order": ["video", "audio", "image", "text"]}},
    ),
    "some missing, slerps of all pairs": (4, 1e-4, {"model": {"fusion": "slerp"}}),
    "some missing, mean": (3, 1e-4, {"model": {"fusion": "mean"}, "propagation": {"item_item_layers": 2}}),
    "some missing, projected": (3, 1e-4, {"model": {"fusion": "concat"}}),
    "some missing, sampled": (
        3,
        1e-4,
        {"negatives": "uniform", "propagation": {"mode": "sampled", "fanouts": [-1]}},
    ),
}


WEIGHTED = ["uniform", "in_batch, 1/degree", "in_batch, Horvitz-Thompson", "sampled, all neighbours"]


@pytest.mark.parametrize(
    ("case", "weighted"), [*((case, False) for case in CASES), *((case, True) for case in WEIGHTED)]
)
def test_a_step_equals_the_formulas(case: str, weighted: bool, runtime: Runtime, tmp_path: Path) -> None:
    modalities, tolerance, sections = CASES[case]
    dataset = small_dataset(users=40, items=30, degree=8, modalities=modalities)
    if case.startswith("some missing"):
        dataset = mask_features(dataset)
    dataset = weighted_dataset(dataset) if weighted else dataset
    prepared = prepare_small(tmp_path, dataset=dataset, k=K)
    trainer = Trainer(small_settings(prepared, tmp_path / "run", train={"batch_size": 64}, **sections), runtime)
    for _, parameter in trainer.model.dense_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    trainer.model.tables.local_state()["user_mixing"].normal_()
    dense = Dense(trainer, dataset, prepared)
    dense.batch = next(trainer.batches.epoch(0))
    plan = next(iter(list(trainer.planner.epoch(0, 0, 1))))

    ego = trainer.model.ego(plan.inputs)
    for rows in (ego.looked_up, ego.mixing):
        rows.retain_grad()
    users, items = trainer.model.propagate(ego, plan)
    terms = _loss(trainer, users, items, ego, plan)
    gradients = torch.autograd.grad(
        terms.local, [ego.looked_up, ego.mixing, *(p for _, p in trainer.model.dense_parameters())], retain_graph=True
    )
    expected = dense.loss(plan, trainer)
    expected.backward()

    found = torch.stack([terms.alignment, terms.user_uniformity, terms.item_uniformity])
    torch.testing.assert_close(found.double(), torch.stack(dense.terms).detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(terms.local.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    place = {row: n for n, row in enumerate(plan.inputs.users.tolist())}
    taken = [n for n, row in enumerate(dense.users.tolist()) if row in place]
    order = [place[int(dense.users[n])] for n in taken]
    mixed = [dense.users.tolist().index(row) for row in plan.inputs.mixed.tolist()]
    pairs = [(gradients[0][order], dense.table.grad[taken]), (gradients[1], dense.mixing.grad[mixed])]
    assert dense.mixing.grad.abs().sum() == pytest.approx(dense.mixing.grad[mixed].abs().sum().item())
    names = {"hidden.weight": "w1", "hidden.bias": "b1", "channel.weight": "w2"}
    names |= {"point.weight": "point", "point.bias": "point_bias"}
    for (name, _), gradient in zip(trainer.model.dense_parameters(), gradients[2:], strict=True):
        if name in dense.added:
            pairs.append((gradient, dense.added[name].grad))
            continue
        layer, modality, kind = name.split(".")
        weights = dense.weights[list(dataset.features).index(modality)]
        pairs.append((gradient, getattr(weights, names[f"{layer}.{kind}"]).grad))
    for ours, theirs in pairs:
        scale = theirs.abs().max().clamp(min=1e-3)
        assert (ours.double() - theirs).abs().max() <= 10 * tolerance * scale
    untouched = sorted(set(range(len(dense.users))) - set(taken))
    assert not dense.table.grad[untouched].any()


def _loss(trainer: Trainer, users: Tensor, items: Tensor, ego: Any, plan: Any) -> Any:
    from cm3_dist.loss.cm3_loss import cm3_loss

    return cm3_loss(
        users, items, ego.fused[plan.item_inputs], plan, trainer.settings.loss, trainer.loss_constants, None
    )


@pytest.mark.parametrize("kind", ["plain", "weighted", "some missing"])
def test_final_rows_and_metrics_equal_the_formulas(kind: str, runtime: Runtime, tmp_path: Path) -> None:
    dataset = weighted_dataset() if kind == "weighted" else small_dataset()
    dataset = mask_features(dataset) if kind == "some missing" else dataset
    prepared = prepare_small(tmp_path, dataset=dataset, k=K)
    trainer = Trainer(small_settings(prepared, tmp_path / "run"), runtime)
    for plan in trainer.planner.epoch(0, 0, trainer.batches.steps):
        trainer.step(plan)
    dense = Dense(trainer, dataset, prepared)
    users, items, _ = dense.rows(torch.full((len(dense.items),), 0.5, dtype=torch.float64), 3, 1)
    ours = trainer.final_rows()
    torch.testing.assert_close(ours[0][dense.users].double(), users.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1][dense.items].double(), items.detach(), rtol=1e-4, atol=1e-5)
    scores = (users @ items.T).detach()
    scores[dense.interactions > 0] = -torch.inf
    for split, code in (("validation", 1), ("test", 2)):
        held_out = dataset.split == code
        totals: dict[str, list[float]] = {}
        for user in np.unique(dataset.user[held_out]):
            relevant = set(dataset.item[held_out & (dataset.user == user)].tolist())
            ranked = ref.ranking(scores[user].tolist(), (scores[user] > -torch.inf).nonzero().ravel().tolist(), 20)
            for k in (5, 20):
                for name, value in ref.metrics(ranked, relevant, k).items():
                    totals.setdefault(name, []).append(value)
        found = trainer.evaluator.rank(ours, split)
        assert set(found) == set(totals)
        for name, values in totals.items():
            assert found[name] == pytest.approx(np.mean(values), abs=1e-9), name


def test_bfloat16_encodes_nearly_the_same() -> None:
    from cm3_dist.model.item_encoder import ItemEncoder

    features = {"image": torch.randn(50, 24), "text": torch.randn(50, 16).half()}
    curve = torch.rand(50)
    dims = {"image": 24, "text": 16}
    channels, fused = ItemEncoder(dims, 8, seed=1)(features, curve)
    low_channels, low_fused = ItemEncoder(dims, 8, seed=1, precision="bfloat16")(features, curve)
    torch.testing.assert_close(low_fused.norm(dim=1), torch.ones(50), rtol=1e-5, atol=1e-5)
    for value, low in zip([*channels, fused], [*low_channels, low_fused], strict=True):
        assert low.dtype == torch.float32
        assert not torch.equal(value, low)
        assert (value - low).norm() < 0.02 * value.norm()


def test_an_order_that_lacks_a_modality_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    settings = small_settings(prepare_small(tmp_path), tmp_path / "run", model={"curve_order": ["text", "sound"]})
    with pytest.raises(InputError, match=r"model.curve_order") as error:
        Trainer(settings, runtime)
    assert error.value.code == "settings.modalities"
