"""The baseline of the benchmarks is the same model: one step of it equals one of the program's, and so do metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.plain_data import load_plain
from benchmarks.walks import Walks
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError
from tests.support.small import prepare_small, small_dataset, small_settings


def _copy_state(model: reference.PlainCM3, trainer: Trainer) -> None:
    """Gives the plain model the program's weights."""
    rows = torch.from_numpy(model.data.user_rows)
    state = trainer.model.tables.local_state()
    channels = state["user_channels"][rows].view(len(rows), -1, model.dim)
    for place, table in enumerate(model.user_channels):
        table.weight.data.copy_(channels[:, place])
    model.mixing.data.copy_(state["user_mixing"][rows, : channels.shape[1]])
    for kind in ("hidden", "channel", "point"):
        for plain, ours in zip(getattr(model, kind), getattr(trainer.model.encoder, kind).values(), strict=True):
            plain.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_a_step_and_an_evaluation_equal_the_programs(modalities: int, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, dataset=small_dataset(modalities=modalities))
    settings = small_settings(
        prepared,
        tmp_path / "run",
        negatives="uniform",
        propagation={"mode": "exact"},
        tables={"name": "sgd", "lr": 1.0},  # then the change of a table's row is its gradient
        evaluate={"ks": list(reference.KS)},
    )
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        trainer = Trainer(settings, runtime)
        trainer.model.tables.local_state()["user_mixing"].normal_()
        model = reference.PlainCM3(load_plain(prepared), dim=8)
        _copy_state(model, trainer)
        batch, plan = next(trainer.batches.epoch(0)), next(iter(trainer.planner.epoch(0, 0, 1)))
        curve = plan.inputs.curve[model.data.item_rows]
        user, positive, negative = _places(model, batch)
        loss = model.loss(user, positive, negative, curve)
        loss.backward()
        before = trainer.model.tables.local_state()["user_channels"].clone()
        result = trainer.step(plan)
        after = trainer.model.tables.local_state()["user_channels"]
        torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-5, atol=1e-6)
        gradient = torch.cat([table.weight.grad for table in model.user_channels], dim=1)
        torch.testing.assert_close((before - after)[model.data.user_rows], gradient, rtol=1e-3, atol=1e-6)

        users, items = trainer.final_rows()
        _copy_state(model, trainer)
        plain = reference.final_rows(model)
        torch.testing.assert_close(users[model.data.user_rows], plain[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(items[model.data.item_rows], plain[1], rtol=1e-4, atol=1e-5)
        ours, theirs = (
            trainer.evaluator.rank((users, items), "test"),
            reference.evaluate(plain[0], plain[1], model.data, "test"),
        )
        assert theirs == pytest.approx(ours, abs=1e-9)


def test_weighted_interactions_are_refused(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, weighted=True)
    for read in (load_plain, lambda path: Walks(load_shard(path, 0, 1))):
        with pytest.raises(InputError) as error:
            read(prepared)
        assert error.value.code == "benchmark.weighted"


def _places(model: reference.PlainCM3, batch: object) -> list[Tensor]:
    users = {row: place for place, row in enumerate(model.data.user_rows.tolist())}
    items = {row: place for place, row in enumerate(model.data.item_rows.tolist())}
    places = (users, batch.user), (items, batch.positive), (items, batch.negative)  # type: ignore[attr-defined]
    return [torch.tensor([of[row] for row in rows.tolist()]) for of, rows in places]


def test_negatives_are_drawn_among_what_the_user_lacks(tmp_path: Path) -> None:
    data = load_plain(prepare_small(tmp_path))
    seen = set(map(tuple, data.train.tolist()))
    drawn = 0
    for user, positive, negative in reference.batches(data, 100):
        assert not seen & set(zip(user.tolist(), negative.tolist(), strict=True))
        assert seen >= set(zip(user.tolist(), positive.tolist(), strict=True))
        drawn += len(user)
    assert drawn == len(data.train)
