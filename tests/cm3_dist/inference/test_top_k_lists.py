"""Lists are evaluation's ranking, with own ids, for all users or some, on any number of ranks; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cm3_dist.config.command_options import run_settings
from cm3_dist.inference import top_k_lists
from cm3_dist.inference.id_map import IdMap
from cm3_dist.inference.recommend_lists import ListFile, write_lists
from cm3_dist.inference.trained_model import open_model
from cm3_dist.ranking.metrics import ranking_metrics
from cm3_dist.recommend import main
from tests.support.refusals import refusal


def _recommend(run: Path, calls: list[tuple[Path, dict[str, Any]]]) -> list[ListFile]:
    with open_model(run_settings(run, [])) as model:
        written = [write_lists(model, out, **options) for out, options in calls]
    for lists in written:
        lists.finish()
    return written


def _lists(path: Path) -> dict[str, list[int]]:
    if path.suffix == ".jsonl":
        return {line["user"]: line["items"] for line in map(json.loads, path.read_text().splitlines())}
    found: dict[str, list[int]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(found[row["user"]])
    return found


@pytest.fixture(scope="module")
def everyone(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lists") / "all.parquet"
    lists = _recommend(finished_run, [(out, {})])[0]
    assert lists.entries == pq.read_metadata(out).num_rows
    assert lists.untrained == 1  # u5 has no interaction at all
    return out


def test_lists_are_the_ranking_of_evaluation(finished_run: Path, everyone: Path) -> None:
    """The metrics of the lists in the file are those of metrics.json, every one of them."""
    found = _lists(everyone)
    with open_model(run_settings(finished_run, [])) as model:
        held_out = model.shard.held_out["test"]
        users = model.user_ids.take(held_out.users).to_pylist()
        ranked = torch.from_numpy(np.stack([model.item_ids.rows(found[user]) for user in users]))
    metrics = ranking_metrics(ranked, held_out.relevant, [5, 20])
    expected = json.loads((finished_run / "metrics.json").read_text())["test"]
    assert {name: float(values.mean()) for name, values in metrics.items()} == pytest.approx(expected, abs=1e-12)


def test_small_blocks_write_the_same(
    finished_run: Path, everyone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_k_lists, "USERS_PER_BLOCK", 7)
    _recommend(finished_run, [(tmp_path / "blocks.parquet", {}), (tmp_path / "blocks.jsonl", {})])
    expected = _lists(everyone)
    for path in tmp_path.iterdir():
        found = _lists(path)
        assert found == expected, path
        assert list(found) == list(expected)


def test_some_users_and_items(finished_run: Path, everyone: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user,note\nu7,x\nu100,y\nu7,again\nu5,untrained\n")
    (tmp_path / "items.csv").write_text("sku\n" + "\n".join(str(1000 + n) for n in range(12)) + "\n")
    files = {"users": tmp_path / "users.csv", "items": tmp_path / "items.csv"}
    plain, whole, none = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    written = _recommend(
        finished_run,
        [
            (plain, {"users": files["users"], "k": 20}),
            (whole, {**files, "exclude_seen": False}),
            (none, {**files, "exclude_held_out": True}),
        ],
    )
    assert [(lists.users, lists.untrained) for lists in written] == [(2, 1)] * 3
    expected = _lists(everyone)
    assert _lists(plain) == {user: expected[user] for user in _lists(plain)}
    assert {len(items) for items in _lists(whole).values()} == {12}
    data = run_settings(finished_run, []).data.path
    for user, items in _lists(none).items():
        known = _known(data, user)
        assert set(items) == set(range(1000, 1012)) - known
        assert items == [item for item in _lists(whole)[user] if item not in known]


def _known(data: Path, user: str) -> set[int]:
    """All items of a user in any split."""
    from cm3_dist.graph.shard import load_shard

    shard = load_shard(data, 0, 1)
    ids = [IdMap(data, shard.manifest, kind) for kind in ("user", "item")]  # type: ignore[arg-type]
    row = ids[0].find(pa.array([user]))
    rows = [shard.seen(row).values.numpy()]
    for split in shard.held_out.values():
        place = np.flatnonzero(split.users == row[0])
        rows.append(split.relevant.rows(place).values.numpy())
    return set(ids[1].take(np.concatenate(rows)).to_pylist())


def test_refusals(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "users.csv").write_text("user\nu7\nu999\n")
    (tmp_path / "items.csv").write_text("item\n1003\nabc\n")
    (tmp_path / "beyond.csv").write_text("item\n1003\n99999999999999999999\n")
    (tmp_path / "two.csv").write_text("item,item_id\ni1,7\n")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    pq.write_table(pa.table({"item": [1.5]}), tmp_path / "floats.parquet")
    out = ["--out", str(tmp_path / "lists.parquet")]
    cases = {
        "[ids.unknown]: {}: column 'user', row 1 (line 3): ": ["--users", str(tmp_path / "users.csv"), *out],
        "[ids.type]: {}: column 'item', row 1 (line 3): ": ["--items", str(tmp_path / "items.csv"), *out],
        "[ids.no-column]: {}: ": ["--items", str(tmp_path / "odd.csv"), *out],
        "[ids.ambiguous-column]: {}: ": ["--items", str(tmp_path / "two.csv"), *out],
        "[ids.type]: {}: column 'item', row 0: 1.5 ": ["--items", str(tmp_path / "floats.parquet"), *out],
        "[ids.type]: {}: column 'item', row 1 (line 3): '99": ["--items", str(tmp_path / "beyond.csv"), *out],
        "[output.format]: {}: ": ["--out", str(tmp_path / "lists.csv")],
        "[output.exists]: {}: ": ["--out", str(tmp_path / "taken.parquet")],
        "[output.not-ours]: {}: ": ["--out", str(tmp_path / "folder.parquet")],
    }
    (tmp_path / "taken.parquet").touch()
    (tmp_path / "folder.parquet").mkdir()
    before = sorted(tmp_path.iterdir())
    for expected, arguments in cases.items():
        line = refusal(main, [str(finished_run), *arguments], capsys)
        assert line.startswith("error" + expected.format(arguments[1])), line
    assert sorted(tmp_path.iterdir()) == before
