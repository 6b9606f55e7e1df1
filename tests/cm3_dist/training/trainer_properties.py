"""What training does on every backend: one process, ranks, sampled propagation, a GPU.

The data set is planted: two groups of users and two of items, and users only like items of their own group. A backend
is a class of three lines in test_trainer.py; it is started once, and every property is a test of what it returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch

from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.model.final_rows import encode_all_items
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.training.progress import Progress
from cm3_dist.training.trainer import Trainer
from cm3_dist.training.trainer_state import resume_from, save
from partition.folder import layout
from partition.folder.arrays import read_similar
from partition.folder.manifest import read_manifest
from partition.transform.dataset import TRAIN, Dataset, Features
from tests.support import reference as ref
from tests.support.ranks import run_ranks
from tests.support.shared import shared_folder
from tests.support.small import prepare_small, small_settings, weighted_dataset

STEPS, SAVED_AT = 20, 10
USERS, ITEMS = 48, 32
NEAREST = 5


def planted_dataset() -> Dataset:
    """User u is in group u % 2, item i in group i % 2; a user has about half of its group's items."""
    rng = np.random.default_rng(0)
    user, item = np.nonzero(
        (np.arange(USERS)[:, None] % 2 == np.arange(ITEMS) % 2) & (rng.random((USERS, ITEMS)) < 0.6)
    )
    centre = rng.standard_normal((2, 2, 6))
    features = {
        name: (centre[number, np.arange(ITEMS) % 2] + rng.standard_normal((ITEMS, 6))).astype(np.float32)
        for number, name in enumerate(["image", "text"])
    }
    return Dataset(
        name="planted",
        user_ids=pa.array(np.arange(USERS)),
        item_ids=pa.array(np.arange(ITEMS)),
        user=user,
        item=item,
        split=rng.choice(3, len(user), p=[0.8, 0.1, 0.1]).astype(np.int8),
        split_method="column",
        features={name: Features(values, values.shape[1]) for name, values in features.items()},
    )


def weighted_planted_dataset() -> Dataset:
    """The planted data set, with weights between 0.1 and 10 of its interactions."""
    return weighted_dataset(planted_dataset())


@dataclass(frozen=True)
class Observed:
    """What one rank saw; rows are those of its own users and items, in the order of the prepared folder."""

    losses: list[list[float]]  # [STEPS][loss terms and gradient norms]
    resumed: list[list[float]]  # the same from SAVED_AT on, by a new trainer that loaded this one's checkpoint
    resumed_from_one_process: list[list[float]]  # the same, from a checkpoint that one process saved
    ego: tuple[np.ndarray, np.ndarray, np.ndarray]  # of users and items before propagation, and mixing logits
    final: tuple[np.ndarray, np.ndarray]
    metrics: dict[str, float]


def observe(settings: Settings, checkpoints: Path, of_one_process: Path | None) -> Observed:
    """Trains on this rank."""
    with distributed(settings.machine) as runtime:
        trainer = Trainer(settings, runtime)
        losses = _train(trainer, 0, SAVED_AT)
        save(trainer, CheckpointManager(checkpoints, 1, runtime), Progress(step=SAVED_AT), best=True)
        losses += _train(trainer, SAVED_AT, STEPS)
        final = trainer.final_rows()
        metrics = trainer.evaluator.rank(final, "test")
        users, items = (torch.arange(count) + first for first, count in _own_rows(trainer))
        ego = _ego_rows(trainer, users.to(runtime.device), items.to(runtime.device))
        resumed: list[list[list[float]]] = []
        for folder in (checkpoints, of_one_process or checkpoints):
            again = Trainer(settings, runtime)
            assert resume_from(again, CheckpointManager(folder, 1, runtime), whole=False).step == SAVED_AT
            resumed.append(_train(again, SAVED_AT, STEPS))
        return Observed(
            losses=losses,
            resumed=resumed[0],
            resumed_from_one_process=resumed[1],
            ego=(_numpy(ego[0]), _numpy(ego[1]), _numpy(ego[2])),
            final=(_numpy(final[0]), _numpy(final[1])),
            metrics=metrics,
        )


def _own_rows(trainer: Trainer) -> list[tuple[int, int]]:
    shard = trainer.shard
    return [(shard.first_user, shard.user_rows), (shard.first_item, shard.item_rows)]


@torch.no_grad()
def _ego_rows(trainer: Trainer, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Unit rows of all local users and items before propagation, and the users' mixing logits."""
    looked_up, mixing, item_ids = trainer.model.tables(users, users, items, True)
    encoded = looked_up.new_empty(len(items), looked_up.shape[1])
    encode_all_items(trainer.model.encoder, trainer.features, item_ids, out=encoded)
    return l2_normalize(looked_up, trainer.model.dim), encoded, mixing


def _numpy(rows: torch.Tensor) -> np.ndarray:
    return rows.detach().cpu().double().numpy()


def _train(trainer: Trainer, first: int, last: int) -> list[list[float]]:
    found = []
    for step in range(first, last):
        epoch, number = divmod(step, trainer.batches.steps)
        for plan in trainer.planner.plans(epoch, number, number + 1):
            found.append(trainer.step(plan).stacked().tolist())
    return found


class Planted:
    """The planted data set in rows of the prepared folder."""

    def __init__(self, prepared: Path) -> None:
        manifest = read_manifest(prepared)
        dataset = weighted_planted_dataset() if manifest.weighted else planted_dataset()
        self.users = _rows(prepared, manifest.user_stride, layout.USERS)
        self.items = _rows(prepared, manifest.item_stride, layout.ITEMS)
        rows = manifest.num_parts * manifest.user_stride, manifest.num_parts * manifest.item_stride
        self.adjacency = torch.zeros(rows, dtype=torch.float64)
        user, item = dataset.train()
        weight = np.ones(len(dataset.user)) if dataset.weight is None else dataset.weight.astype(np.float64)
        self.adjacency[self.users[user], self.items[item]] = torch.from_numpy(weight[dataset.split == TRAIN])
        self.similar = torch.zeros(rows[1], rows[1], dtype=torch.float64)
        for part in range(manifest.num_parts):
            graph = read_similar(layout.part_dir(prepared, part) / layout.ITEM_GRAPH)
            own = part * manifest.item_stride + np.repeat(np.arange(len(graph.indptr) - 1), np.diff(graph.indptr))
            self.similar[own, graph.neighbour.astype(np.int64)] = torch.from_numpy(graph.weight.astype(np.float64))


def _rows(prepared: Path, stride: int, table: str) -> np.ndarray:
    """[N] the row of every user or item, whose ids are 0 .. N - 1."""
    row: dict[int, int] = {}
    for part in range(read_manifest(prepared).num_parts):
        with pa.memory_map(str(layout.part_dir(prepared, part) / table)) as source:
            ids = pa.ipc.open_file(source).read_all().column("id").to_pylist()
        row |= {number: part * stride + offset for offset, number in enumerate(ids)}
    return np.array([row[number] for number in range(len(row))])


class TrainerProperties:
    """The properties; a backend sets what differs."""

    world_size: ClassVar[int] = 1
    sections: ClassVar[dict[str, Any]] = {}
    weighted: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5  # of losses, relative to those of one process

    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        def make(folder: Path) -> None:
            prepare_small(folder, dataset=weighted_planted_dataset() if self.weighted else planted_dataset())

        return shared_folder(tmp_path_factory, "weighted" if self.weighted else "planted", make) / "prepared"

    @pytest.fixture(scope="class")
    def one_process(self, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Observed, Path]:
        """Exact propagation in one process on the CPU, and its checkpoints."""
        folder = tmp_path_factory.mktemp("one")
        return observe(_settings(prepared, folder, {}), folder / "checkpoints", None), folder / "checkpoints"

    @pytest.fixture(scope="class")
    def observed(
        self, prepared: Path, one_process: tuple[Observed, Path], tmp_path_factory: pytest.TempPathFactory
    ) -> list[Observed]:
        """By rank."""
        folder = tmp_path_factory.mktemp("backend")
        settings = _settings(prepared, folder, self.sections)
        compatible = "propagation" not in self.sections  # otherwise the checkpoint is refused
        given = settings, folder / "checkpoints", one_process[1] if compatible else None
        return run_ranks(observe, self.world_size, *given) if self.world_size > 1 else [observe(*given)]

    def test_the_loss_falls(self, observed: list[Observed]) -> None:
        losses = [row[0] for row in observed[0].losses]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2

    def test_losses_and_gradients_are_finite_and_the_same_on_all_ranks(self, observed: list[Observed]) -> None:
        assert np.isfinite(observed[0].losses).all()
        for other in observed[1:]:
            assert (other.losses, other.metrics) == (observed[0].losses, observed[0].metrics)

    def test_losses_and_metrics_are_those_of_one_process(
        self, observed: list[Observed], one_process: tuple[Observed, Path]
    ) -> None:
        expected = one_process[0]
        np.testing.assert_allclose(observed[0].losses, expected.losses, rtol=self.tolerance, atol=self.tolerance / 10)
        assert observed[0].metrics == pytest.approx(expected.metrics, abs=1e-9)

    def test_a_resumed_run_is_the_same_run(self, observed: list[Observed]) -> None:
        assert observed[0].resumed == observed[0].losses[SAVED_AT:]

    def test_a_run_of_one_process_is_resumed(
        self, observed: list[Observed], one_process: tuple[Observed, Path]
    ) -> None:
        expected = one_process[0].losses[SAVED_AT:]
        found = observed[0].resumed_from_one_process
        np.testing.assert_allclose(found, expected, rtol=self.tolerance, atol=self.tolerance / 10)

    def test_final_rows_are_those_of_the_formulas(self, observed: list[Observed], prepared: Path) -> None:
        planted = Planted(prepared)
        ego_u, ego_i, mixing = (torch.from_numpy(np.concatenate(rows)) for rows in zip(*_all(observed, "ego")))
        propagated_u, propagated_i = ref.propagate(planted.adjacency, ego_u, ego_i, layers=3)
        users, items = ref.user_rows(propagated_u, mixing), ref.item_rows(propagated_i, planted.similar, layers=1)
        found_u, found_i = (np.concatenate(rows) for rows in zip(*_all(observed, "final")))
        np.testing.assert_allclose(found_u[planted.users], users[planted.users], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found_i[planted.items], items[planted.items], rtol=1e-4, atol=1e-5)

    def test_the_planted_groups_are_found(self, observed: list[Observed], prepared: Path) -> None:
        """The best items that a user does not have, and an item's nearest items, are of its own group."""
        planted = Planted(prepared)
        users, items = (np.concatenate(rows) for rows in zip(*_all(observed, "final")))
        users, items = users[planted.users], items[planted.items]
        has = planted.adjacency[planted.users][:, planted.items].numpy() > 0
        best = np.argsort(np.where(has, -np.inf, users @ items.T), axis=1)[:, -NEAREST:]
        assert np.mean(best % 2 == np.arange(USERS)[:, None] % 2) > 0.95
        items /= np.linalg.norm(items, axis=1, keepdims=True)
        nearest = np.argsort(items @ items.T - 2 * np.eye(ITEMS), axis=1)[:, -NEAREST:]
        assert np.mean(nearest % 2 == np.arange(ITEMS)[:, None] % 2) > 0.95


def _settings(prepared: Path, folder: Path, sections: dict[str, Any]) -> Settings:
    exact = {"propagation": {"mode": "exact"}, "train": {"batch_size": 64}}
    rates = {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}}
    return small_settings(prepared, folder / "run", **{**exact, **rates, **sections})


def _all(observed: list[Observed], name: str) -> list[tuple[np.ndarray, ...]]:
    return [getattr(rank, name) for rank in observed]
