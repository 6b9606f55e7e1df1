from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from partition.build import build
from partition.folder.manifest import Manifest, read_manifest
from partition.options import BuildOptions, CutMethod, SplitMethod
from partition.stages import Stages
from tests.support.raw_tables import random_log


def prepared(folder: Path, *inputs: Path, threads: int = 2) -> Manifest:
    command = BuildOptions(
        input=[str(path) for path in inputs],
        output=folder / "prepared",
        parts=2,
        split=SplitMethod.RANDOM,
        kcore=3,
        min_rating=2,
        weight_column="strength",
        method=CutMethod.RANDOM,
        threads=threads,
        overwrite=True,
    )
    build(command, Stages(quiet=True))
    return read_manifest(folder / "prepared")


def test_the_same_rows_give_the_same_folder_from_any_file(tmp_path: Path) -> None:
    source = random_log(tmp_path / "source", rows=1500)
    items, rows = source / "items.parquet", pq.read_table(source / "log.parquet")
    wanted = prepared(tmp_path, source)
    assert wanted.counts["kcore_dropped"] > 0
    assert wanted.weighted
    found = {"1 thread": prepared(tmp_path, source, threads=1)}

    rows = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    csv.write_csv(rows, tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    lines = "".join(json.dumps(row) + "\n" for row in rows.to_pylist())
    (tmp_path / "log.jsonl").write_text(lines)
    for log in ("log.csv", "log.csv.gz", "log.jsonl"):
        found[log] = prepared(tmp_path, tmp_path / log, items)
    days = tmp_path / "days"
    for day, part in enumerate((rows.slice(900), rows.slice(0, 900))):
        (days / f"day=2026-01-0{day}").mkdir(parents=True)
        pq.write_table(part, days / f"day=2026-01-0{day}" / "log.parquet")
    found["Hive folders"] = prepared(tmp_path, days, items)

    for name, manifest in found.items():
        assert manifest.parts == wanted.parts, name
        assert manifest.counts == wanted.counts, name
        assert manifest.digests == wanted.digests, name
