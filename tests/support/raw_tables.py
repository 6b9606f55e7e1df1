"""Small raw data sets as files, the data set that is read from them, and makers of bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from partition.build import read_dataset
from partition.errors import InputError
from partition.options import BuildOptions
from partition.stages import Stages
from partition.transform.dataset import Dataset

USERS = ["u1", "u1", "u2", "u2", "u3", "u3"]
ITEMS = ["b", "a", "c", "a", "b", "c"]
LABELS = [0, 1, 0, 2, 0, 0]
EXPECTED = sorted(zip(USERS, ITEMS, LABELS, strict=True))
Maker = Callable[[Path], Sequence[Path]]


def table(**columns: Any) -> pa.Table:
    return pa.table({"user": USERS, "item": ITEMS, "split": LABELS} | columns)


def items_table(ids: Sequence[Any] = ("a", "b", "c", "d"), width: int = 3) -> pa.Table:
    image = np.arange(len(ids) * width, dtype=np.float32).reshape(-1, width)
    return pa.table({"item": list(ids), "image": list(image), "text": list(-image.astype(np.float64))})


def write(path: Path, content: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=4)
    elif path.suffix in (".arrow", ".feather"):
        feather.write_feather(content, str(path), compression="uncompressed" if path.suffix == ".arrow" else "lz4")
    else:
        tab = path.suffix in (".tsv", ".inter", ".txt")
        csv.write_csv(content, path, csv.WriteOptions(delimiter="\t" if tab else ",", quoting_style="none"))
    return path


def read(tmp_path: Path, *inputs: Path, **options: Any) -> Dataset:
    work, stages = tmp_path / "work", options.pop("stages", None)
    work.mkdir(exist_ok=True)
    command = BuildOptions(input=[str(path) for path in inputs], output=tmp_path / "out", parts=1, **options)
    return read_dataset(command, work, stages or Stages(quiet=True))


def mmrec(folder: Path, rows: list[tuple[int, int, int]], items: int = 4, width: int = 3) -> Path:
    folder.mkdir()
    lines = ["userID\titemID\tx_label", *("\t".join(map(str, row)) for row in rows)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    values = np.arange(items * width).reshape(items, width)
    np.save(folder / "text_feat.npy", values.astype(np.float64))
    np.save(folder / "image_feat.npy", values.astype(np.float16))
    return folder


def pairs(dataset: Dataset) -> list[tuple[Any, Any, int]]:
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    columns = zip(dataset.user, dataset.item, dataset.split, strict=True)
    return sorted((users[user], items[item], int(label)) for user, item, label in columns)


@dataclass(frozen=True)
class Refused:
    """Input that is refused: its files and options, the code of the error, and how its message begins."""

    make: Maker
    code: str
    place: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            inputs = self.make(Path())
            with pytest.raises(InputError) as caught:
                read(folder, *inputs, **self.options)
        assert caught.value.code == self.code
        assert str(caught.value).startswith(self.place)
        assert "\n" not in str(caught.value)


def logged(**columns: Any) -> Callable[[Path], Any]:
    """A log whose columns are replaced; None leaves one out."""

    def make(path: Path) -> Any:
        content = {"user": USERS, "item": ITEMS, "split": LABELS} | columns
        suffix = content.pop("suffix", "csv")
        log = write(path / f"log.{suffix}", pa.table({k: v for k, v in content.items() if v is not None}))
        return [log, write(path / "items.parquet", items_table())]

    return make


def text(content: str | bytes, name: str = "log.csv") -> Callable[[Path], Any]:
    def make(path: Path) -> Any:
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [path / name, write(path / "items.parquet", items_table())]

    return make


def items(content: pa.Table, suffix: str = "parquet") -> Callable[[Path], Any]:
    return lambda path: [write(path / "log.csv", table()), write(path / f"items.{suffix}", content)]


def folder(
    damage: Callable[[Path], Any] | None = None, rows: Any = ((0, 2, 0), (1, 0, 1), (1, 1, 0))
) -> Callable[[Path], Any]:
    def make(path: Path) -> Any:
        tiny = mmrec(path / "tiny", list(rows))
        if damage is not None:
            damage(tiny)
        return [tiny]

    return make


def features(values: np.ndarray) -> Callable[[Path], Any]:
    return folder(lambda tiny: np.save(tiny / "text_feat.npy", values))


def cut(name: str, share: float = 0.6) -> Callable[[Path], Any]:
    def damage(tiny: Path) -> None:
        path = tiny / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def mapping(lines: str) -> Callable[[Path], Any]:
    return folder(lambda tiny: (tiny / "i_id_mapping.csv").write_text(lines))


def torn(suffix: str) -> Callable[[Path], Any]:
    def make(path: Path) -> Any:
        found = logged(suffix=suffix)(path)
        cut(found[0].name)(path)
        return found

    return make


def two_logs(*contents: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda path: [
        *(write(path / f"{n}.parquet", pa.table(content)) for n, content in enumerate(contents)),
        write(path / "items.parquet", items_table()),
    ]


def random_log(folder: Path, seed: int = 0, users: int = 200, items: int = 80, rows: int = 3000) -> Path:
    """A data set in Parquet: rows in any order with repeated pairs, times with ties, labels, weights and text ids."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    user, item = ((size * rng.random(rows) ** 2).astype(np.int64) for size in (users, items))
    user[:6], item[:6] = users + np.array([0, 1, 1, 2, 2, 2]), np.arange(6)  # users with 1, 2 and 3 items
    content = {
        "user": pa.array([f"user-{number}" for number in user]),
        "item": item,
        "split": rng.integers(0, 3, rows),
        "time": rng.integers(0, 50, rows),
        "rating": rng.integers(1, 6, rows),
        "strength": rng.integers(1, 9, rows) / 4,
        "event": np.array(["view", "click", "buy"])[rng.integers(0, 3, rows)],
    }
    pq.write_table(pa.table(content), folder / "log.parquet")
    pq.write_table(items_table(list(range(items))), folder / "items.parquet")
    return folder
