from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw_tables import Maker, Refused, items_table, logged, pairs, random_log, read, table, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_log(tmp_path_factory.mktemp("random") / "log")


def kept(source: Path, options: dict[str, Any], tmp_path: Path) -> set[tuple[Any, Any]]:
    return {(user, item) for user, item, _ in pairs(read(tmp_path, source, split="none", **options))}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"where": "rating >= 4"}, lambda row: row["rating"] >= 4),
        ({"where": "event = 'buy' OR Rating = 5"}, lambda row: row["event"] == "buy" or row["rating"] == 5),
        ({"where": "\"user\" like '%1' and item < 40"}, lambda row: row["user"].endswith("1") and row["item"] < 40),
        ({"min_rating": 3.5}, lambda row: row["rating"] >= 3.5),
        ({"event_weight": "buy=3, click=0.5"}, lambda row: row["event"] in ("buy", "click")),
        ({"where": "split > 0", "min_rating": 2}, lambda row: row["split"] > 0 and row["rating"] >= 2),
    ],
)
def test_rows_that_count(source: Path, tmp_path: Path, options: dict[str, Any], wanted: Any) -> None:
    rows = [row for row in pq.read_table(source / "log.parquet").to_pylist() if wanted(row)]
    assert kept(source, options, tmp_path) == {(row["user"], row["item"]) for row in rows}
    counts = read(tmp_path, source, split="none", **options).counts
    dropped = sum(count for reason, count in counts.items() if reason.endswith(("_dropped", "_merged")))
    assert dropped == 3000 - len({(row["user"], row["item"]) for row in rows})


def test_a_condition_can_use_a_column_that_is_used_otherwise(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table(split=["train", "valid", "train", "test", "train", "train"]))
    items = write(tmp_path / "items.parquet", items_table())
    dataset = read(tmp_path, log, items, where="split <> 'valid'")
    assert len(pairs(dataset)) == 5
    assert dataset.counts["where_dropped"] == 1


def test_weights_of_events(source: Path, tmp_path: Path) -> None:
    dataset = read(tmp_path, source, split="none", event_weight="buy=3,click=1,view=0.25")
    value = {"buy": 3, "click": 1, "view": 0.25}
    expected: dict[tuple[Any, Any], float] = {}
    for row in pq.read_table(source / "log.parquet").to_pylist():
        key = row["user"], row["item"]
        expected[key] = max(value[row["event"]], expected.get(key, 0))
    assert dataset.weight is not None
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    columns = zip(dataset.user, dataset.item, dataset.weight, strict=True)
    assert {(users[user], items[item]): weight for user, item, weight in columns} == expected
    assert read(tmp_path, source, split="none").weight is None


def test_weights_of_1_change_nothing(tmp_path: Path) -> None:
    items = write(tmp_path / "items.parquet", items_table())
    log = write(tmp_path / "log.parquet", table(one=[1] * 6))
    weighed, plain = read(tmp_path, log, items, weight_column="one"), read(tmp_path, log, items)
    assert pairs(weighed) == pairs(plain)
    assert weighed.weight is not None
    assert weighed.weight.tolist() == [1] * 6


def test_unknown_items_can_be_dropped(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table(user=["u1", "u1", "u2", "u2", "u3", "u3"], item=list("bazcbc")))
    items = write(tmp_path / "items.parquet", items_table("abz"))
    dataset = read(tmp_path, log, items, drop_unknown_items=True)
    assert {(user, item) for user, item, _ in pairs(dataset)} == {("u1", "b"), ("u1", "a"), ("u2", "z"), ("u3", "b")}
    assert dataset.counts["unknown_items_dropped"] == 2
    assert (
        read(tmp_path, log, write(items, items_table("abcz")), drop_unknown_items=True).counts["unknown_items_dropped"]
        == 0
    )


def unknown(path: Path) -> Any:
    found = logged(item=list("baxcxc"))(path)
    more = write(path / "more.csv", table(item=list("bbbbbx")))
    return [*found, more]


def weights(values: list[Any]) -> Maker:
    return logged(w=pa.array(values, pa.float64()), suffix="parquet")


def first_weight(row: int) -> str:
    return f"log.parquet: column 'w': 1 of 6 weights are not finite and above 0; first: row {row}, "


WEIGHED = {"weight_column": "w"}
REFUSED = {
    "unknown items are counted": Refused(
        unknown,
        "features.missing",
        "log.csv: column 'item': 3 of 12 interactions are with an item that has no "
        "features (not in items.parquet); first: row 2 (line 4), 'x'; --drop-unknown-items",
    ),
    "unknown column": Refused(
        logged(), "option.where", "log.csv: --where \"nix > 3\": no column 'nix'", {"where": "nix > 3"}
    ),
    "no condition": Refused(logged(), "option.where", '--where "drop table x": ', {"where": "drop table x"}),
    "no SQL": Refused(logged(), "option.where", '--where "user = = 3": ', {"where": "user = = 3"}),
    "no function": Refused(logged(), "option.where", '--where "nix(item) > 3": ', {"where": "nix(item) > 3"}),
    "not computable": Refused(
        logged(), "option.where", '--where "cast(item as int) > 3": ', {"where": "cast(item as int) > 3"}
    ),
    "no row left": Refused(logged(), "rows.none", "--where \"item = 'z'\": ", {"where": "item = 'z'"}),
    "no rating": Refused(logged(), "column.missing", "log.csv: no rating column", {"min_rating": 1}),
    "weight 0": Refused(
        weights([1, 2, 0, 1, -1, 1]),
        "weight.invalid",
        "log.parquet: column 'w': 2 of 6 weights are not finite and above 0; first: row 2, 0.0",
        WEIGHED,
    ),
    "weight NaN": Refused(weights([1, 2, 3, float("nan"), 1, 1]), "weight.invalid", first_weight(3), WEIGHED),
    "weight too large": Refused(weights([1, 1e39, 3, 1, 1, 1]), "weight.invalid", first_weight(1), WEIGHED),
    "no weight": Refused(weights([1, 2, 3, 1, 1, None]), "weight.invalid", first_weight(5), WEIGHED),
    "event twice": Refused(logged(), "option.event-weight", "--event-weight a=1,a=2: ", {"event_weight": "a=1,a=2"}),
    "event without weight": Refused(logged(), "option.event-weight", "--event-weight a: ", {"event_weight": "a"}),
    "event of weight 0": Refused(logged(), "option.event-weight", "--event-weight a=0: ", {"event_weight": "a=0"}),
    "two weights": Refused(logged(), "option.event-weight", "--event-weight a=1: ", {"event_weight": "a=1", **WEIGHED}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
