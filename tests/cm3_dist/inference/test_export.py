"""Exports: own ids, rows that rank as evaluation does, any number of ranks, both precisions, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cm3_dist.config.command_options import run_settings
from cm3_dist.export import main
from cm3_dist.inference.export_rows import read_batches, read_manifest, write_rows
from cm3_dist.inference.trained_model import open_model
from partition.errors import InputError
from partition.folder.manifest import read_manifest as read_prepared
from tests.support.refusals import refusal


def _export(run: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    with open_model(run_settings(run, [])) as model:
        export = write_rows(model, out, **options)
    return export.finish()


def _table(out: Path, kind: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((out / kind).glob("*.parquet")))


def _rows(table: pa.Table, column: str = "embedding") -> np.ndarray:
    return np.array(table[column].to_pylist(), np.float64)


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    _export(finished_run, out, {"modality_rows": True})
    return out


def test_every_id_once_with_its_row(finished_run: Path, exported: Path) -> None:
    manifest = read_prepared(run_settings(finished_run, []).data.path)
    users, items = _table(exported, "users"), _table(exported, "items")
    assert sorted(users["id"].to_pylist()) == sorted(f"u{n}" for n in range(manifest.users))
    assert sorted(items["id"].to_pylist()) == list(range(1000, 1000 + manifest.items))
    assert sum(items["train_degree"].to_pylist()) == manifest.train
    content = read_manifest(exported)
    assert content["width"] == 24
    assert content["channels"] == ["image", "text", "fused"]
    assert _rows(users).shape == (manifest.users, 24)
    for name, entry in content["files"].items():
        assert pq.read_metadata(exported / name).num_rows == entry["rows"]
    for name in ("modality_image", "modality_text", "fused"):
        np.testing.assert_allclose(np.linalg.norm(_rows(items, name), axis=1), 1, atol=1e-5)
    streamed = [row for batch in read_batches(exported, "items", ["id"], 7) for row in batch["id"].to_pylist()]
    assert streamed == items["id"].to_pylist()


def test_exported_rows_rank_as_evaluation(finished_run: Path, exported: Path) -> None:
    """Recall@20 of the test split, by hand from the files, is the run's."""
    root = run_settings(finished_run, []).data.path
    manifest = read_prepared(root)
    users, items = _table(exported, "users"), _table(exported, "items")
    score = _rows(users) @ _rows(items).T
    user_rows = np.concatenate([p * manifest.user_stride + np.arange(s.users) for p, s in enumerate(manifest.parts)])
    item_rows = np.concatenate([p * manifest.item_stride + np.arange(s.items) for p, s in enumerate(manifest.parts)])
    from cm3_dist.graph.shard import load_shard

    shard = load_shard(root, 0, 1)
    recalls = []
    for user, relevant in zip(shard.held_out["test"].users, _lists(shard.held_out["test"].relevant), strict=True):
        own = score[int(np.flatnonzero(user_rows == user)[0])].copy()
        own[np.isin(item_rows, _lists(shard.seen(np.array([user])))[0])] = -np.inf
        best = item_rows[np.argsort(-own)[:20]]
        recalls.append(len(set(best) & set(relevant)) / len(relevant))
    expected = json.loads((finished_run / "metrics.json").read_text())["test"]["recall@20"]
    assert np.mean(recalls) == pytest.approx(expected, abs=1e-12)


def _lists(ragged: Any) -> list[list[int]]:
    ends = ragged.indptr.tolist()
    return [ragged.values[a:b].tolist() for a, b in zip(ends, ends[1:])]


def test_float16(finished_run: Path, exported: Path, tmp_path: Path) -> None:
    _export(finished_run, tmp_path / "out", {"dtype": "float16"})
    for kind in ("users", "items"):
        ours, theirs = _table(exported, kind), _table(tmp_path / "out", kind)
        assert theirs.schema.field("embedding").type.value_type == pa.float16()
        assert ours["id"].equals(theirs["id"])
        np.testing.assert_allclose(_rows(theirs), _rows(ours), rtol=2e-3, atol=1e-3)


def test_refusals(finished_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "output.exists": [str(finished_run), "--out", str(exported)],
        "output.not-ours": [str(finished_run), "--out", str(finished_run)],
        "run.missing": [str(tmp_path), "--out", str(tmp_path / "out")],
    }
    for code, arguments in cases.items():
        assert refusal(main, arguments, capsys).startswith(f"error[{code}]: ")
    for name in ("x", "..", "step-1", "../checkpoints"):
        arguments = [str(finished_run), "--out", str(tmp_path / "o"), "--checkpoint", name]
        assert refusal(main, arguments, capsys).startswith("error[checkpoint.missing]: ")
    assert not list(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refused:
        read_manifest(tmp_path)
    assert refused.value.code == "export.missing"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_index_finds_what_exact_search_finds(finished_run: Path, tmp_path: Path, kind: str) -> None:
    import faiss

    content = _export(finished_run, tmp_path / "out", {"index": kind})
    assert content == read_manifest(tmp_path / "out")
    assert content["index"]["kind"] == kind
    index = faiss.read_index(str(tmp_path / "out/index/items.faiss"))
    ids = np.array(pq.read_table(tmp_path / "out/index/ids.parquet")["id"].to_pylist())
    items, users = _table(tmp_path / "out", "items"), _table(tmp_path / "out", "users")
    trained = users["train_degree"].to_numpy() > 0
    rows = _rows(users)[trained].astype(np.float32)
    found = ids[index.search(rows, 20)[1]]
    exact = np.array(items["id"].to_pylist())[np.argsort(-(rows @ _rows(items).T), axis=1)[:, :20]]
    overlap = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found, exact, strict=True)])
    assert overlap >= 0.99
    assert content["index"]["recall@20"] == pytest.approx(overlap, abs=1e-3)
    assert content["index"]["queries"] == trained.sum()


def test_an_approximate_index_searches_wider_until_it_is_good_enough(tmp_path: Path) -> None:
    """Rows without any structure, the worst case: the first width would not do."""
    from cm3_dist.inference.faiss_index import IVF_SEARCH, build_index

    rng = np.random.default_rng(0)
    for kind, count in (("users", 200), ("items", 6000)):
        (tmp_path / kind).mkdir()
        flat = pa.array(rng.standard_normal(count * 16).astype(np.float32))
        lists = pa.FixedSizeListArray.from_arrays(flat, 16)
        table = pa.table({"id": np.arange(count), "train_degree": np.ones(count, np.int64), "embedding": lists})
        pq.write_table(table, tmp_path / kind / "part-00000.parquet")
    found = build_index(tmp_path, "ivf", 16, seed=0)
    assert found["recall@20"] >= 0.99
    assert found["nprobe"] > IVF_SEARCH
