"""Items and users that training never saw: their rows by definition, their lists, and that they land rightly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cm3_dist.config.command_options import run_settings
from cm3_dist.inference.cold_start import place_items, place_users
from cm3_dist.inference.recommend_lists import write_lists
from cm3_dist.inference.trained_model import TrainedModel, open_model
from cm3_dist.recommend import main
from partition.transform.dataset import TRAIN, Dataset
from tests.support.refusals import refusal
from tests.support.small import finish_small, mask_features, small_dataset, untrained_item, weighted_dataset

NEW = 59  # item 1059 of untrained_item() has no training interaction


def _some_missing() -> Dataset:
    """The small data set in which items lack modalities; the untrained one lacks its image."""
    dataset = mask_features(untrained_item())
    missing = {"image": True, "text": False}
    features = {}
    for name, whole in untrained_item().features.items():
        mask = dataset.missing[name].copy()
        mask[NEW] = missing[name]
        features[name] = replace(whole, values=np.where(mask[:, None], 0, whole.values), missing=mask)
    return replace(dataset, features=features)


@pytest.fixture(
    scope="module",
    params=[(0, None), (1, None), (2, None), (1, "weighted"), (1, "some missing")],
    ids=["0 item layers", "1 item layer", "2 item layers", "weighted", "some missing"],
)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    layers, kind = request.param
    datasets = {"weighted": lambda: weighted_dataset(untrained_item()), "some missing": _some_missing}
    folder = finish_small(
        tmp_path_factory.mktemp("run"),
        datasets[kind]() if kind else None,
        train={"epochs": 1},
        propagation={"item_item_layers": layers},
    )
    with open_model(run_settings(folder, [])) as model:
        yield model


def _features(run: TrainedModel, row: int) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in run.features.gather(np.array([row])).items()}


def test_an_untrained_item_gets_the_row_it_has_in_the_catalogue(opened: TrainedModel) -> None:
    """Place an untrained item of the catalogue as if it were new: the same row, but for its being its own neighbour."""
    row = int(opened.item_ids.find(pa.array([1000 + NEW]))[0])
    assert opened.shard.item_degree[row] == 0
    opened.shard.is_item[row] = False  # the search is not to find the item itself
    missing = {name: mask.numpy() for name, mask in opened.features.missing(np.array([row])).items()}
    assert [name for name, mask in missing.items() if mask.any()] == (["image"] if missing else [])
    placed = place_items(opened, pa.array([1000 + NEW]), _features(opened, row), missing)
    opened.shard.is_item[row] = True
    np.testing.assert_allclose(placed.rows[0].numpy(), opened.rows[1][row].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(placed.ego[0].numpy(), opened.item_ego[row].numpy(), rtol=1e-4, atol=1e-6)


def test_a_new_user_by_its_formula(opened: TrainedModel) -> None:
    """Against dense matrices: two users, one of whom also likes a new item."""
    run, dim = opened, opened.settings.model.dim
    edges = run.shard.user_from_item
    a = np.zeros((run.shard.user_rows, run.shard.item_rows))
    a[np.repeat(np.arange(len(a)), np.diff(edges.indptr)), edges.source] = edges.value
    users, items, mixing = (part.double().numpy() for part in run.ego_rows())
    u, i = users, items
    for _ in range(2):
        u, i = users + a @ i, items + a.T @ u
    new = place_items(run, pa.array([9000]), _features(run, 3))
    liked = {0: [1, 4, 17], 1: [4, run.manifest.item_rows]}
    owner = np.array([o for o, rows in liked.items() for _ in rows])
    found = place_users(run, owner, np.concatenate(list(liked.values())), 2, new)
    final = np.concatenate([run.rows[1].double().numpy(), new.rows.double().numpy()])
    inner = np.concatenate([i, new.ego.double().numpy()])
    degree = np.append(_relative_degree(run) if run.manifest.weighted else run.shard.item_degree, 0)
    trained = run.shard.user_degree > 0
    share = np.exp(mixing[trained].mean(0))
    for user, rows in liked.items():
        total = sum(final[row] / np.linalg.norm(final[row]) for row in rows).reshape(-1, dim)
        expected = (total / np.linalg.norm(total, axis=1, keepdims=True)).reshape(-1)
        expected = expected + sum(inner[row] / np.sqrt(len(rows) * (degree[row] + 1)) for row in rows)
        expected = (expected.reshape(-1, dim) * (share / share.sum())[:, None]).reshape(-1)
        np.testing.assert_allclose(found[user].numpy(), expected, rtol=1e-4, atol=1e-5)


def _relative_degree(run: TrainedModel) -> np.ndarray:
    """[item rows]: the weights of an item's training interactions, in units of the mean weight."""
    dataset = weighted_dataset(untrained_item())
    assert dataset.weight is not None
    train = dataset.split == TRAIN
    weight = dataset.weight[train].astype(np.float64)
    degree = np.zeros(run.shard.item_rows)
    rows = run.item_ids.rows(dataset.item_ids)
    degree[rows] = np.bincount(dataset.item[train], weight, len(rows)) / weight.mean()
    assert np.abs(degree - run.shard.item_degree).max() > 1
    return degree


def test_zero_features_have_no_neighbours(opened: TrainedModel) -> None:
    zeros = {m.name: np.zeros((1, m.dim), m.dtype) for m in opened.manifest.modalities}
    placed = place_items(opened, pa.array([9000]), zeros)
    layers = opened.settings.propagation.item_item_layers
    expected = (1 if layers == 0 else 2) * placed.ego.numpy()
    np.testing.assert_allclose(placed.rows.numpy(), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A run on the small data without every sixth item; the table of these; and the whole data set."""
    folder = tmp_path_factory.mktemp("held-out")
    whole = small_dataset(spread=1 / 20)
    out = np.arange(len(whole.item_ids)) % 6 == 3
    number = np.cumsum(~out) - 1
    kept = ~out[whole.item]
    features = {name: replace(f, values=f.values[~out]) for name, f in whole.features.items()}
    trained = np.zeros(len(whole.user_ids), bool)
    trained[whole.user[kept & (whole.split == 0)]] = True
    kept &= trained[whole.user]
    part = replace(
        whole,
        item_ids=whole.item_ids.filter(pa.array(~out)),
        user=whole.user[kept],
        item=number[whole.item[kept]],
        split=whole.split[kept],
        features=features,
    )
    run = finish_small(folder, part, train={"epochs": 6, "batch_size": 64})
    lists = {}
    for name, feature in whole.features.items():
        values = feature.values[out]
        flat = pa.array(values.reshape(-1).astype(np.float64))
        lists[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    pq.write_table(pa.table({"item": whole.item_ids.filter(pa.array(out)), **lists}), folder / "new.parquet")
    return run, folder / "new.parquet", whole


def _lists(path: Path) -> dict[str, list[int]]:
    return {line["user"]: line["items"] for line in map(json.loads, path.read_text().splitlines())}


def test_new_items_reach_the_users_who_want_them(held_out: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """Cold start: the users' own interactions with the held-out items, which no training saw, against chance."""
    run, table, whole = held_out
    new = pq.read_table(table)["item"].to_pylist()
    (tmp_path / "new.csv").write_text("item\n" + "\n".join(map(str, new)) + "\n")
    with open_model(run_settings(run, [])) as model:
        write_lists(model, tmp_path / "all.jsonl", k=1000, exclude_seen=False, new_items=table).finish()
        write_lists(model, tmp_path / "new.jsonl", k=2, new_items=table, items=tmp_path / "new.csv").finish()
    everything, two = _lists(tmp_path / "all.jsonl"), _lists(tmp_path / "new.jsonl")
    for user, items in everything.items():
        assert sorted(items) == whole.item_ids.to_pylist()
        assert two[user] == [item for item in items if item in new][:2]
    wanted: dict[Any, set[int]] = {user: set() for user in two}
    for user, item in zip(whole.user, whole.item, strict=True):
        if 1000 + item in new and f"u{user}" in wanted:
            wanted[f"u{user}"].add(1000 + item)
    recall = np.mean([len(items & set(two[user])) / len(items) for user, items in wanted.items() if items])
    assert recall > 2 * 2 / len(new)


def test_a_new_item_lands_near_its_category(held_out: tuple[Path, Path, Any]) -> None:
    """Items near in number are alike, in features and in who likes them: a category is a tenth of the circle."""
    run, table, _ = held_out
    rows = pq.read_table(table)
    features = {name: np.array(rows[name].to_pylist()) for name in ("image", "text")}
    with open_model(run_settings(run, [])) as finished:
        dtypes = {m.name: m.dtype for m in finished.manifest.modalities}
        new = place_items(
            finished,
            rows["item"].combine_chunks(),
            {name: values.astype(dtypes[name]) for name, values in features.items()},
        )
        known = np.flatnonzero(finished.shard.is_item)
        number = finished.item_ids.take(known).to_numpy() - 1000
        unit = torch.nn.functional.normalize
        cosine = unit(new.rows) @ unit(finished.rows[1][torch.from_numpy(known)]).T
    own = new.ids.to_numpy() - 1000
    apart = np.abs(own[:, None] - number[None])
    near = np.minimum(apart, 60 - apart) <= 3
    nearest = cosine.numpy().argsort(axis=1)[:, -5:]
    share = np.take_along_axis(near, nearest, 1).mean()
    assert share > 2.5 * near.mean()


def test_a_trained_user_taken_for_a_new_one_gets_a_similar_list(
    held_out: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    run, table, whole = held_out
    train = (whole.split == 0) & (whole.item % 6 != 3)
    lines = [f"newu{u},{1000 + i}" for u, i in zip(whole.user[train], whole.item[train], strict=True)]
    (tmp_path / "new.csv").write_text("user,item\n" + "\n".join([*lines, lines[0]]) + "\nx,1003\nx,1004\n")
    with open_model(run_settings(run, [])) as model:
        write_lists(model, tmp_path / "own.jsonl", k=10).finish()
        lists = write_lists(model, tmp_path / "new.jsonl", k=10, new_users=tmp_path / "new.csv", new_items=table)
        lists.finish()
    own, new = _lists(tmp_path / "own.jsonl"), _lists(tmp_path / "new.jsonl")
    assert lists.users == len(new) == len(own) + 1
    assert 1003 not in new["x"]  # a new item, and on the list
    assert 1004 not in new["x"]
    overlap = np.mean([len(set(own[user]) & set(new[f"new{user}"])) / 10 for user in own])
    assert overlap > 2 * 10 / 60


def test_refusals(held_out: tuple[Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, table, _ = held_out
    new = pq.read_table(table)
    pq.write_table(new.drop_columns(["text"]), tmp_path / "no-text.parquet")
    pq.write_table(pa.concat_tables([new, new.slice(0, 1)]), tmp_path / "twice.parquet")
    known = new.set_column(0, "item", pa.array([1000, *new["item"].to_pylist()[1:]]))
    pq.write_table(known, tmp_path / "known.parquet")
    narrow = pa.array([[0.5]] * len(new), pa.list_(pa.float32()))
    pq.write_table(new.set_column(2, "text", narrow), tmp_path / "narrow.parquet")
    (tmp_path / "trained.csv").write_text("user,item\nx,1001\nu7,1002\n")
    (tmp_path / "unknown.csv").write_text("user,item\nx,1001\nx,5\n")
    cases = {
        "no-text.parquet": ("--new-items", "new_items.features", ""),
        "twice.parquet": ("--new-items", "ids.duplicate", f"row {len(new)}"),
        "known.parquet": ("--new-items", "new_items.known", "row 0"),
        "narrow.parquet": ("--new-items", "new_items.width", ""),
        "trained.csv": ("--new-users", "new_users.trained", "row 1 (line 3)"),
        "unknown.csv": ("--new-users", "ids.unknown", "row 1 (line 3)"),
    }
    for name, (option, code, place) in cases.items():
        out = ["--out", str(tmp_path / "lists.jsonl")]
        line = refusal(main, [str(run), option, str(tmp_path / name), *out], capsys)
        assert line.startswith(f"error[{code}]: {tmp_path / name}"), line
        assert place in line
    both = ["--users", "all", "--new-users", "x.csv", "--out", str(tmp_path / "lists.jsonl")]
    assert refusal(main, [str(run), *both], capsys).startswith("error[options.conflict]")
    assert not (tmp_path / "lists.jsonl").exists()


def test_new_items_as_a_folder_with_arrays(held_out: tuple[Path, Path, Any], tmp_path: Path) -> None:
    run, table, _ = held_out
    rows = pq.read_table(table)
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "items.csv").write_text("item_id\n" + "\n".join(map(str, rows["item"].to_pylist())) + "\n")
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", np.array(rows[name].to_pylist()))
    with open_model(run_settings(run, [])) as model:
        write_lists(model, tmp_path / "a.jsonl", new_items=folder).finish()
        write_lists(model, tmp_path / "b.jsonl", new_items=table).finish()
    assert _lists(tmp_path / "a.jsonl") == _lists(tmp_path / "b.jsonl")


def test_new_items_are_reduced_as_the_data_was(tmp_path: Path) -> None:
    """Placed with the features as they came, an item gets what it gets with the prepared folder's reduced ones."""
    from cm3_dist import fit, load_run, prepare
    from cm3_dist.inference.cold_start_inputs import read_new_items
    from partition.synthetic.options import SyntheticOptions
    from partition.synthetic.planted import synthesise

    synthesise(SyntheticOptions(output=tmp_path / "data", users=120, items=60, interactions=1500, clusters=5))
    prepared = prepare(tmp_path / "data", tmp_path / "prepared", parts=2, pca=["image=8"], quiet=True)
    catalogue = pq.read_table(tmp_path / "data/items.parquet").slice(5, 3)
    names = pa.array(["new-1", "new-2", "new-3"])
    pq.write_table(catalogue.set_column(0, "item", names), tmp_path / "new.parquet")
    fit(prepared, tmp_path / "run", train={"epochs": 1}, model={"dim": 8}, machine={"device": "cpu"}).close()
    with load_run(tmp_path / "run") as run:
        model = run._open()
        new = read_new_items(tmp_path / "new.parquet", model, tmp_path)
        assert new.ids.to_pylist() == names.to_pylist()
        rows = model.item_ids.rows(catalogue["item"].combine_chunks())
        for name, values in model.features.gather(rows).items():
            np.testing.assert_allclose(new.features[name], values.numpy(), rtol=1e-5, atol=1e-6)
