from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.options import BuildOptions, item_graph_weights, pca_dims
from partition.read import features as features_module
from partition.read.features import reduce
from partition.stages import Stages
from partition.synthetic.planted import SyntheticOptions, synthesise
from partition.synthetic.tables import Width, parse_modalities
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset, Interactions
from partition.transform.dedup import evaluable, k_core, merge_duplicates, renumber
from partition.transform.ingest import read_dataset
from partition.transform.split import split

USERS = ["u1", "u1", "u2", "u2", "u3", "u3"]
ITEMS = ["b", "a", "c", "a", "b", "c"]
LABELS = [0, 1, 0, 2, 0, 0]


def table(**columns: Any) -> pa.Table:
    return pa.table({"user": USERS, "item": ITEMS, "split": LABELS} | columns)


def items_table(ids: list[Any] = ["a", "b", "c", "d"], width: int = 3) -> pa.Table:  # noqa: B006
    image = np.arange(len(ids) * width, dtype=np.float32).reshape(-1, width)
    return pa.table({"item": ids, "image": list(image), "text": list(-image.astype(np.float64))})


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
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    command = BuildOptions(input=list(inputs), output=tmp_path / "out", parts=1, **options)
    return read_dataset(command, work, Stages(quiet=True))


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


EXPECTED = sorted(zip(USERS, ITEMS, LABELS, strict=True))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "csv", "tsv", "inter", "txt"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    inputs = write(tmp_path / f"log.{suffix}", table()), write(tmp_path / "items.parquet", items_table())
    dataset = read(tmp_path, *inputs)
    assert pairs(dataset) == EXPECTED
    assert dataset.user_ids.to_pylist() == ["u1", "u2", "u3"]
    assert dataset.item_ids.to_pylist() == ["a", "b", "c", "d"]
    assert list(dataset.features) == ["image", "text"]
    assert dataset.features["image"].values.dtype == np.float32
    assert dataset.features["text"].values[3].tolist() == [-9, -10, -11]
    assert dataset.split_method == "column"
    assert dataset.name == "log"
    assert sorted(dataset.inputs) == ["items.parquet", f"log.{suffix}"]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
def test_a_folder_of_shards_in_any_row_order(tmp_path: Path, suffix: str) -> None:
    folder, order = tmp_path / "logs", np.random.default_rng(0).permutation(len(USERS))
    folder.mkdir()
    shuffled = table().take(pa.array(order))
    write(folder / f"2.{suffix}", shuffled.slice(0, 4))
    write(folder / f"1.{suffix}", shuffled.slice(4))
    write(folder / "items.parquet", items_table())
    (folder / "notes.txt").write_text("not a table")
    (folder / ".hidden.csv").write_text("nor this")
    dataset = read(tmp_path, folder)
    assert pairs(dataset) == EXPECTED
    assert dataset.user_ids.to_pylist() == ["u1", "u2", "u3"]
    assert dataset.name == "logs"


def test_an_mmrec_folder_as_it_is(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (0, 0, 1), (7, 2, 0), (7, 1, 2)])
    (folder / "meta.csv").write_text("itemID,title\n0,x\n")  # MMRec folders hold other files as well
    dataset = read(tmp_path, folder)
    assert pairs(dataset) == [(0, 0, 1), (0, 2, 0), (7, 1, 2), (7, 2, 0)]
    assert dataset.item_ids.to_pylist() == [0, 1, 2, 3]  # item 3 has features but no interaction
    assert dataset.user_ids.type == dataset.item_ids.type == pa.int64()
    assert {name: f.values.dtype for name, f in dataset.features.items()} == {"image": np.float16, "text": np.float64}
    assert isinstance(dataset.features["image"].values, np.memmap)
    assert dataset.name == "tiny"


def test_mmrec_mapping_files_give_the_own_ids(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    (folder / "i_id_mapping.csv").write_text("asin\titemID\n007\t1\nB0A\t0\nB0D\t3\nB0C\t2\n")
    (folder / "u_id_mapping.csv").write_text("user_id\tuserID\nAmy\t1\nBob\t0\nCid\t2\n")
    dataset = read(tmp_path, folder)
    assert dataset.item_ids.to_pylist() == ["B0A", "007", "B0C", "B0D"]
    assert pairs(dataset) == [("Amy", "B0A", 0), ("Bob", "B0C", 0)]
    assert sorted(dataset.inputs) == [
        "i_id_mapping.csv",
        "image_feat.npy",
        "text_feat.npy",
        "tiny.inter",
        "u_id_mapping.csv",
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["3", "10", "0"], [0, 3, 10]),
        (["007", "10", "0"], ["0", "007", "10"]),
        (["1e3", "10", "0"], ["0", "10", "1e3"]),
        (["+1", "10", "0"], ["+1", "0", "10"]),
        (["12345678901234567890", "2", "1"], ["1", "12345678901234567890", "2"]),
        (["NA", "null", "x"], ["NA", "null", "x"]),
    ],
)
def test_ids_in_text_are_numbers_only_if_all_are_written_as_such(
    tmp_path: Path, written: list[str], expected: list[Any]
) -> None:
    log = write(tmp_path / "log.csv", pa.table({"uid": written, "iid": ["a", "b", "c"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == expected


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.uint64(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_id_types(tmp_path: Path, kind: pa.DataType, suffix: str) -> None:
    numbers = pa.types.is_integer(kind)
    ids: list[Any] = [5, 2, 9, 5] if numbers else ["5", "2", "9", "5"]
    users = pa.chunked_array([pa.array(ids[:2]).cast(kind), pa.array(ids[2:]).cast(kind)])
    log = write(tmp_path / f"log.{suffix}", pa.table({"user_id": users, "item_id": ["a", "a", "b", "c"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == sorted(set(ids))
    assert dataset.user_ids.type == (pa.int64() if numbers else pa.string())
    assert [(dataset.user_ids[u].as_py(), i) for u, i in zip(dataset.user, dataset.item, strict=True)] == [
        (ids[1], 0), (ids[0], 0), (ids[0], 2), (ids[2], 1)
    ]  # fmt: skip


def test_dictionary_entries_that_no_row_uses_are_no_users(tmp_path: Path) -> None:
    users = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int32()), pa.array(["z", "ghost", "y"]))
    log = write(tmp_path / "log.arrow", pa.table({"user": users, "item": ["a", "a", "b"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == ["y", "z"]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["uid", "asin", "x_label"], {}),
        (["USER_ID", "Item", "Split"], {}),
        (["user_id:token", "item_id:token", "x_label:float"], {}),
        (["who", "what", "fold"], {"user_column": "who", "item_column": "what", "split_column": "fold"}),
    ],
)
def test_column_names_are_guessed_or_given(tmp_path: Path, names: list[str], options: dict[str, str]) -> None:
    log = write(tmp_path / "log.parquet", table().rename_columns(names))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()), **options)
    assert pairs(dataset) == EXPECTED


@pytest.mark.parametrize("labels", [["train", "VALID", "Training", "test", "0", "train"], list("010200")])
def test_split_labels_by_name(tmp_path: Path, labels: list[str]) -> None:
    log = write(tmp_path / "log.csv", table(split=labels))
    assert pairs(read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))) == EXPECTED


def test_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(b'\xef\xbb\xbfuser,item\r\n"u,1",a\r\n\r\nu2,"b"\r\n')
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == ["u,1", "u2"]
    tabs = tmp_path / "log.tsv"
    tabs.write_text('user\titem\n5" nail\ta\nu2\tb\n')  # a quote inside a value is a character like any other
    dataset = read(tmp_path, tabs, tmp_path / "items.parquet")
    assert dataset.user_ids.to_pylist() == ['5" nail', "u2"]


@pytest.mark.parametrize(
    "times",
    [
        [30, 10, 20, 60, 40, 50],
        [3.5, 1.0, 2.25, 6.0, 4.0, 5.0],
        ["2026-01-03", "2026-01-01", "2026-01-02", "2026-01-06", "2026-01-04", "2026-01-05"],
        [f"2026-01-01 00:00:0{s}" for s in (3, 1, 2, 6, 4, 5)],
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_leave_last_out_reads_any_kind_of_time(tmp_path: Path, times: list[Any], suffix: str) -> None:
    column = pa.array(times)
    if pa.types.is_string(column.type):
        column = column.cast(pa.timestamp("s"))
    log = write(tmp_path / f"log.{suffix}", table(user=["u"] * 3 + ["v"] * 3, item=list("abcabc"), ts=column))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()), split="leave-last-out")
    assert pairs(dataset) == [("u", "a", 2), ("u", "b", 0), ("u", "c", 1), ("v", "a", 2), ("v", "b", 0), ("v", "c", 1)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_list_columns_of_any_precision(tmp_path: Path, dtype: type, fixed: bool, suffix: str) -> None:
    values: np.ndarray = np.random.default_rng(0).standard_normal((4, 5)).astype(dtype)
    flat = pa.array(values.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, 5) if fixed else pa.ListArray.from_arrays(np.arange(0, 21, 5), flat)
    items = write(tmp_path / f"items.{suffix}", pa.table({"sku": list("dbca"), "image": lists, "title": list("wxyz")}))
    log = write(tmp_path / "log.csv", table().rename_columns(["user", "sku", "split"]))
    dataset = read(tmp_path, log, items, item_column="sku")
    assert dataset.item_ids.to_pylist() == list("dbca")  # the items table's order is the catalogue's
    assert list(dataset.features) == ["image"]
    assert dataset.features["image"].values.dtype == dtype
    np.testing.assert_array_equal(dataset.features["image"].values, values)
    assert pairs(dataset) == EXPECTED


def test_tables_are_matched_by_id_and_numpy_files_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "LIST_BATCH", 2)
    log = write(tmp_path / "log.csv", table())
    order = write(tmp_path / "items.csv", pa.table({"item": list("cabd")}))
    other = write(tmp_path / "other.parquet", items_table(list("abcd"), 2).rename_columns(["asin", "vec", "text"]))
    np.save(tmp_path / "sound.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    chosen = [f"sound={tmp_path / 'sound.npy'}", f"image={other}:vec", f"text={other}"]
    dataset = read(tmp_path, log, order, features=chosen)
    assert dataset.item_ids.to_pylist() == list("cabd")
    assert list(dataset.features) == ["sound", "image", "text"]  # as given
    assert dataset.features["image"].values.tolist() == [[4, 5], [0, 1], [2, 3], [6, 7]]
    assert dataset.features["sound"].values.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert pairs(dataset) == EXPECTED
    # Without an items table the first table of features is the catalogue.
    dataset = read(tmp_path, log, features=chosen[1:])
    assert dataset.item_ids.to_pylist() == list("abcd")


def test_modalities_found_can_be_chosen_and_ordered(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    np.save(folder / "audio_feat.npy", np.ones((4, 2), np.float32))
    assert list(read(tmp_path, folder).features) == ["image", "audio", "text"]
    assert list(read(tmp_path, folder, features=["text", "image"]).features) == ["text", "image"]


def test_pca_equals_the_singular_value_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 17 * 12 * 8)  # several uneven blocks
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((200, 12)) * np.geomspace(10, 0.1, 12) + 3).astype(np.float32)
    values[5] = 0
    reduced, share = reduce(values, 4, tmp_path / "pca.npy")
    left, scale, right = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    sign = np.sign(right[np.arange(4), np.abs(right[:4]).argmax(axis=1)])
    np.testing.assert_allclose(reduced, left[:, :4] * scale[:4] * sign, atol=1e-4)
    assert share == pytest.approx((scale[:4] ** 2).sum() / (scale**2).sum())
    assert reduced.dtype == np.float32
    assert not reduced[5].any()  # an item without features stays one


def test_pca_options(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    np.save(folder / "text_feat.npy", np.random.default_rng(0).standard_normal((4, 5)))
    widths = {name: (f.values.shape, f.source_dim) for name, f in read(tmp_path, folder, pca=["4"]).features.items()}
    assert widths == {"image": ((4, 3), 3), "text": ((4, 4), 5)}
    features = read(tmp_path, folder, pca=["4", "text=2", "image=3"]).features
    assert features["text"].values.shape == (4, 2)
    assert features["image"].values.dtype == np.float16  # as wide as it was: untouched
    assert pca_dims(["8", "text=2"], ["image", "text"]) == {"*": 8, "text": 2}


def test_weights_of_the_item_graph() -> None:
    assert item_graph_weights([], ["image", "text"]) == {"image": 0.1, "text": 0.9}
    assert item_graph_weights(["text=1", "image=0"], ["image", "text"]) == {"image": 0, "text": 1}


def random_interactions(seed: int = 0, users: int = 200, items: int = 80, rows: int = 3000) -> Interactions:
    rng = np.random.default_rng(seed)
    user = (users * rng.random(rows) ** 2).astype(np.int64)
    item = (items * rng.random(rows) ** 2).astype(np.int64)
    time = rng.integers(0, 50, rows)  # with ties
    return Interactions(user, item, rng.integers(0, 3, rows).astype(np.int8), time)


def test_duplicates_keep_the_lowest_label_and_the_earliest_time() -> None:
    raw = random_interactions()
    merged, count = merge_duplicates(raw, 80)
    assert raw.split is not None
    assert raw.time is not None
    assert merged.split is not None
    assert merged.time is not None
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for user, item, label, time in zip(raw.user, raw.item, raw.split, raw.time, strict=True):
        best = expected.get((user, item), (label, time))
        expected[user, item] = min(best[0], label), min(best[1], time)
    assert count == len(raw) - len(expected)
    found = {(u, i): (s, t) for u, i, s, t in zip(merged.user, merged.item, merged.split, merged.time, strict=True)}
    assert found == expected
    assert list(found) == sorted(found)
    assert merged.split.dtype == np.int8


def test_merged_pairs_are_counted_and_do_not_leak(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", pa.concat_tables([table(), table(split=[2, 0, 2, 2, 2, 2])]))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.counts["duplicates_merged"] == 6
    assert ("u1", "a", TRAIN) in pairs(dataset)
    assert ("u2", "a", TEST) in pairs(dataset)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_k_core_equals_removing_one_node_at_a_time(k: int) -> None:
    interactions, _ = merge_duplicates(random_interactions(k), 80)
    edges = set(zip(interactions.user.tolist(), interactions.item.tolist(), strict=True))
    while True:
        degree: dict[tuple[str, int], int] = {}
        for user, item in edges:
            for node in (("u", user), ("i", item)):
                degree[node] = degree.get(node, 0) + 1
        weak = next((node for node, count in degree.items() if count < k), None)
        if weak is None:
            break
        edges = {(u, i) for u, i in edges if weak not in (("u", u), ("i", i))}
    core = k_core(interactions, k)
    assert set(zip(core.user.tolist(), core.item.tolist(), strict=True)) == edges
    assert 0 < len(core) <= len(interactions)


def test_the_core_takes_users_items_and_feature_rows_with_it(tmp_path: Path) -> None:
    # Items 1 and 2 and users 5, 6, 9 form a 2-core; item 0 leans on user 3, item 3 has nobody.
    rows = [(5, 1, 0), (5, 2, 0), (6, 1, 0), (6, 2, 0), (9, 1, 0), (9, 2, 0), (3, 0, 0), (3, 1, 0)]
    dataset = read(tmp_path, mmrec(tmp_path / "tiny", rows), kcore=2)
    assert pairs(dataset) == sorted(rows[:6])
    assert dataset.item_ids.to_pylist() == [1, 2]
    assert dataset.features["image"].values.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert dataset.counts | {} == {
        "duplicates_merged": 0,
        "kcore_dropped": 2,
        "kcore_users_dropped": 1,
        "kcore_items_dropped": 2,
        "users_without_training": 0,
        "heldout_dropped": 0,
    }


def test_renumber() -> None:
    used, number = renumber(np.array([7, 2, 7, 4]))
    assert used.tolist() == [2, 4, 7]
    assert number.tolist() == [2, 0, 2, 1]


def clean_interactions(seed: int = 0) -> Interactions:
    merged, _ = merge_duplicates(random_interactions(seed), 80)
    return Interactions(renumber(merged.user)[1], merged.item, merged.split, merged.time)


@pytest.mark.parametrize("method", ["random", "leave_last_out", "cold_items"])
def test_a_split_gives_each_interaction_one_label_and_repeats_with_its_seed(method: Any) -> None:
    interactions = clean_interactions()
    labels = split(interactions, method, 3)
    assert labels.shape == (len(interactions),)
    assert labels.dtype == np.int8
    assert set(labels.tolist()) == {TRAIN, VALIDATION, TEST}
    np.testing.assert_array_equal(labels, split(interactions, method, 3))
    assert (labels == split(interactions, method, 4)).all() == (method == "leave_last_out")


def test_random_split_of_each_user() -> None:
    interactions = clean_interactions()
    labels = split(interactions, "random", 3)
    for user in range(interactions.user.max() + 1):
        own = labels[interactions.user == user]
        tenths = max(len(own) // 10, 1), max(len(own) // 5 - len(own) // 10, 1)
        held_out = {1: (0, 0), 2: (0, 1)}.get(len(own), tenths)
        assert ((own == VALIDATION).sum(), (own == TEST).sum()) == held_out
        assert (own == TRAIN).any()
    first = np.array([labels[interactions.user == user][0] for user in range(50)])
    assert 0 < (first != TRAIN).mean() < 0.6  # not always the same places


def test_leave_last_out_respects_time() -> None:
    interactions = clean_interactions()
    labels = split(interactions, "leave_last_out", 0)
    assert interactions.time is not None
    for user in range(interactions.user.max() + 1):
        own = interactions.user == user
        times = [interactions.time[own & (labels == code)] for code in (TRAIN, VALIDATION, TEST)]
        assert [len(part) for part in times[1:]] == [int(own.sum() >= 3), int(own.sum() >= 2)]
        ordered = np.concatenate([np.sort(part) for part in times])
        assert (np.diff(ordered) >= 0).all()


def test_cold_items_have_no_training_interaction() -> None:
    interactions = clean_interactions()
    labels = split(interactions, "cold_items", 0)
    by_label = [set(interactions.item[labels == code].tolist()) for code in (TRAIN, VALIDATION, TEST)]
    assert not by_label[0] & by_label[1]
    assert not by_label[0] & by_label[2]
    assert not by_label[1] & by_label[2]
    items = len(set(interactions.item.tolist()))
    assert len(by_label[1]) == len(by_label[2]) == round(items / 10)


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    log, _ = synthesise(SyntheticOptions(folder, 40, 30, 300, 5, {"image": Width(4)}, seed=1))
    once = read(tmp_path, folder)
    rows = pq.read_table(log)
    pq.write_table(rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows))), log)
    again = read(tmp_path, folder)
    np.testing.assert_array_equal(once.split, again.split)
    assert pairs(once) == pairs(again)


def test_users_without_training_are_kept_out_of_evaluation_and_counted(tmp_path: Path) -> None:
    rows = [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 2, 2)]
    dataset = read(tmp_path, mmrec(tmp_path / "tiny", rows))
    assert pairs(dataset) == [(0, 0, 0), (0, 1, 2)]
    assert dataset.user_ids.to_pylist() == [0, 1, 2]
    assert dataset.counts["users_without_training"] == 2
    assert dataset.counts["heldout_dropped"] == 3
    user, label = np.array([0, 0, 1]), np.array([TRAIN, TEST, VALIDATION])
    assert evaluable(user, label).tolist() == [True, True, False]


def test_synthetic_data(tmp_path: Path) -> None:
    options = SyntheticOptions(tmp_path / "a", 400, 200, 4000, 8, {"image": Width(12), "text": Width(6)}, seed=1)
    synthesise(options)
    synthesise(SyntheticOptions(tmp_path / "b", 400, 200, 4000, 8, {"image": Width(12), "text": Width(6)}, seed=1))
    for name in ("interactions.parquet", "items.parquet"):
        assert pq.read_table(tmp_path / "a" / name).equals(pq.read_table(tmp_path / "b" / name))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["interactions.parquet", "items.parquet"]
    dataset = read(tmp_path, tmp_path / "a")
    assert dataset.counts["duplicates_merged"] == 0
    assert len(dataset.user) == 4000
    assert dataset.user_ids[3].as_py() == "user-000003"
    degree, popularity = np.bincount(dataset.user), np.sort(np.bincount(dataset.item))[::-1]
    assert degree.min() >= 5
    assert degree.max() > 3 * degree.mean()
    assert popularity[:20].sum() > 0.25 * popularity.sum()
    # Whoever follows the features finds a user's test items, popularity alone does not.
    train = np.zeros((400, 200))
    train[dataset.user[dataset.split == TRAIN], dataset.item[dataset.split == TRAIN]] = 1
    image = dataset.features["image"].values / np.linalg.norm(dataset.features["image"].values, axis=1, keepdims=True)
    hidden, recall = dataset.split == TEST, []
    for scores in (train @ np.maximum(image @ image.T, 0) ** 4, np.tile(train.sum(axis=0), (400, 1))):
        scores[train > 0] = -np.inf
        top = np.argsort(-scores, axis=1)[:, :20]
        recall.append((top[dataset.user[hidden]] == dataset.item[hidden][:, None]).any(axis=1).mean())
    assert recall[0] > 1.3 * recall[1]


def test_synthetic_data_in_blocks_and_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.synthetic.tables.ROW_GROUP", 100)
    monkeypatch.setattr("partition.synthetic.tables.ITEM_GROUP", 7)
    log, items = synthesise(SyntheticOptions(tmp_path, 50, 20, 500, 3, {"image": Width(4, "float16")}, seed=1))
    assert pq.ParquetFile(log).num_row_groups == pq.ParquetFile(items).num_row_groups + 2 == 5
    rows = pq.read_table(log)
    assert len(set(zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True))) == 500  # half of all pairs
    assert pq.read_schema(items).field("image").type == pa.list_(pa.float16(), 4)
    assert parse_modalities("image:64, text:32:float16") == {"image": Width(64), "text": Width(32, "float16")}


@pytest.mark.parametrize(
    ("name", "users", "items", "sizes", "modalities"),
    [
        ("baby", 19_445, 7_050, (118_551, 20_559, 21_682), ["image", "text"]),
        ("tiktok", 9_308, 6_710, (59_541, 3_051, 6_130), ["image", "audio"]),
    ],
)
def test_counts_of_real_data(
    shared_data: Path, tmp_path: Path, name: str, users: int, items: int, sizes: tuple[int, ...], modalities: list[str]
) -> None:
    dataset = read(tmp_path, shared_data / name)
    assert (len(dataset.user_ids), len(dataset.item_ids)) == (users, items)
    assert (dataset.split == TRAIN).sum() == sizes[0]
    assert len(dataset.split) + dataset.counts["heldout_dropped"] == sum(sizes)
    assert list(dataset.features) == modalities
    assert dataset.counts["duplicates_merged"] == 0
    if name == "tiktok":
        assert (np.bincount(dataset.item[dataset.split == TRAIN], minlength=items) == 0).sum() == 465
        assert dataset.features["audio"].values.dtype == np.float16
    if name == "baby":
        assert dataset.item_ids[1].as_py() == "9729375011"
        # The field's own split of Baby rounds 8:1:1 as ours does.
        labels = read(tmp_path, shared_data / name, split="random").split
        assert tuple(np.bincount(labels)) == sizes


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


BAD_VALUES = np.zeros((4, 3), np.float32)
BAD_VALUES[2, 1] = np.nan
INFINITE = np.zeros((4, 3), np.float16)
INFINITE[3, 0] = np.inf
SHORT = pa.table({"item": list("abcd"), "image": [[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]]})
HOLE = pa.table({"item": list("abcd"), "image": [[1.0], [2.0], None, [4.0]]})
GAP = pa.table({"item": list("abcd"), "image": [[1.0], [2.0], [3.0], [None]]})
NOT_A_NUMBER = pa.table({"item": list("abcd"), "image": [[1.0], [np.inf], [3.0], [4.0]]})

ERRORS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], list[str]]] = {
    "no input": (lambda path: [path / "none"], {}, ["none: no such file or folder"]),
    "empty folder": (lambda path: [path], {}, ["no table in it"]),
    "unknown extension": (text("x", "log.xlsx"), {}, ["log.xlsx: unknown extension"]),
    "empty file": (text(""), {}, ["log.csv: cannot be read as csv: Empty"]),
    "header only": (text("user,item\n"), {}, ["log.csv: has no rows"]),
    "no header": (text("0\t1\t0\n", "log.tsv"), {}, ["log.tsv: no item column", "--item-column"]),
    "no user column": (logged(user=None), {}, ["log.csv: no user column (user, user_id,", "columns are item, split"]),
    "no item column": (logged(item=None), {}, ["log.csv: no item column", "columns are user, split"]),
    "column given but missing": (logged(), {"user_column": "who"}, ["log.csv: no column 'who' (--user-column)"]),
    "ambiguous column": (logged(asin=ITEMS), {}, ["log.csv: columns 'item' and 'asin' could both", "--item-column"]),
    "column twice": (text("user,item,item\nu,a,a\n"), {"item_column": "item"}, ["column 'item'", "two columns"]),
    "no split column": (logged(split=None), {"split": "column"}, ["log.csv: no split column", "--split-column"]),
    "split in one file only": (
        two_logs({"user": ["u"], "item": ["a"], "split": [0]}, {"user": ["u"], "item": ["a"]}),
        {},
        ["1.parquet: no split column"],
    ),
    "no time column": (logged(), {"split": "leave-last-out"}, ["log.csv: no time column", "--time-column"]),
    "ragged row": (text("user,item\nu,a\nu\n"), {}, ["log.csv", "line 3", "Expected 2 columns, got 1"]),
    "not UTF-8": (text(b"user,item\nu,a\n\xff,a\n"), {}, ["log.csv", "column 'user'", "line 3", "UTF8"]),
    "torn Parquet": (torn("parquet"), {}, ["log.parquet: cannot be read as parquet"]),
    "torn Arrow": (torn("arrow"), {}, ["log.arrow: cannot be read as arrow"]),
    "Parquet in name only": (text("user,item\n", "log.parquet"), {}, ["log.parquet: cannot be read as parquet"]),
    "null user": (text("user,item\nu,a\n,b\n"), {}, ["log.csv", "column 'user', row 1 (line 3)", "missing"]),
    "null item": (
        logged(item=["a", "b", None, "a", "a", "a"], suffix="parquet"),
        {},
        ["log.parquet: column 'item', row 2: the id is missing"],
    ),
    "negative user": (
        logged(user=[0, 1, 2, -3, 0, 0]),
        {},
        ["log.csv: column 'user', row 3 (line 5): the id -3 is negative"],
    ),
    "negative item": (
        folder(rows=[(0, 1, 0), (0, -1, 0)]),
        {},
        ["tiny.inter: column 'itemID', row 1", "-1 is negative"],
    ),
    "huge id": (
        logged(user=pa.array([2**63, 1, 2, 3, 4, 5], pa.uint64()), suffix="parquet"),
        {},
        ["log.parquet: column 'user'", "2^63"],
    ),
    "float ids": (logged(user=[0.5] * 6, suffix="parquet"), {}, ["log.parquet: column 'user': has type double"]),
    "numbers and text": (
        two_logs({"user": [1], "item": ["a"]}, {"user": ["1"], "item": ["a"]}),
        {},
        ["0.parquet: column 'user': has numbers, but", "1.parquet"],
    ),
    "unknown split": (
        logged(split=[0, 1, 0, 7, 0, 0]),
        {},
        ["log.csv: column 'split', row 3 (line 5): unknown split '7'"],
    ),
    "unknown split by name": (
        logged(split=["train", "train", "holdout", "test", "test", "test"], suffix="arrow"),
        {},
        ["log.arrow: column 'split', row 2: unknown split 'holdout'"],
    ),
    "null split": (
        logged(split=[0, None, 0, 1, 0, 0], suffix="parquet"),
        {},
        ["log.parquet: column 'split', row 1: the split label is missing"],
    ),
    "empty training split": (
        logged(split=[1, 2, 1, 2, 1, 2]),
        {},
        ["log.csv: column 'split': the training split is empty"],
    ),
    "null time": (
        logged(time=[1, 2, 3, None, 5, 6], suffix="parquet"),
        {"split": "leave-last-out"},
        ["log.parquet: column 'time', row 3: the time is missing"],
    ),
    "NaN time": (
        logged(time=[1, 2, 3, 4, 5, np.nan], suffix="parquet"),
        {"split": "leave-last-out"},
        ["log.parquet: column 'time', row 5: the time is missing"],
    ),
    "time as text": (
        logged(time=["soon"] * 6),
        {"split": "leave-last-out"},
        ["log.csv: column 'time': has type string"],
    ),
    "dates and numbers": (
        two_logs(
            {"user": ["u"], "item": ["a"], "ts": pa.array([0], pa.timestamp("s"))},
            {"user": ["u"], "item": ["a"], "ts": [0]},
        ),
        {"split": "leave-last-out"},
        ["1.parquet: dates in one file and numbers in another"],
    ),
    "nothing in the core": (logged(), {"kcore": 9}, ["--kcore 9: no interaction is left"]),
    "too few items to hold out": (logged(), {"split": "cold-items"}, ["--split cold-items: 3 items"]),
    "no features": (lambda path: [write(path / "log.csv", table())], {}, ["log.csv: no item features", "--features"]),
    "no feature file": (folder(), {"features": ["image=none.npy"]}, ["none.npy: no such file"]),
    "unknown modality": (folder(), {"features": ["video"]}, ["--features video", "image, text"]),
    "modality twice": (folder(), {"features": ["text", "text"]}, ["--features: modality 'text' occurs twice"]),
    "bad modality name": (
        folder(lambda tiny: np.save(tiny / "a b_feat.npy", BAD_VALUES)),
        {},
        ["--features: 'a b' is no modality name"],
    ),
    "NaN": (features(BAD_VALUES), {}, ["text_feat.npy: row 2, column 1: the value is nan"]),
    "infinite": (features(INFINITE), {}, ["text_feat.npy: row 3, column 0: the value is inf"]),
    "rows of two files differ": (
        features(np.zeros((5, 3), np.float32)),
        {},
        ["text_feat.npy: 5 rows", "image_feat.npy has 4"],
    ),
    "not a matrix": (features(np.zeros(4, np.float32)), {}, ["text_feat.npy: has shape (4,)"]),
    "not floats": (features(np.zeros((4, 3), np.int64)), {}, ["text_feat.npy: has dtype int64"]),
    "pickled": (
        folder(lambda tiny: np.save(tiny / "text_feat.npy", np.array([{}], object))),
        {},
        ["text_feat.npy: cannot be read as .npy"],
    ),
    "torn npy": (folder(cut("text_feat.npy")), {}, ["text_feat.npy: cannot be read as .npy"]),
    "empty npy": (folder(cut("text_feat.npy", 0)), {}, ["text_feat.npy: cannot be read as .npy"]),
    "item beyond the rows": (
        folder(rows=[(0, 1, 0), (0, 4, 0)]),
        {},
        ["tiny.inter: column 'itemID', row 1 (line 3): item 4 has no features", "ends with row 3"],
    ),
    "item not in the table": (
        items(items_table(["a", "b"])),
        {},
        ["log.csv: column 'item', row 2 (line 4): item 'c' has no features", "items.parquet"],
    ),
    "item twice in the table": (
        items(items_table(["a", "b", "c", "b"])),
        {},
        ["items.parquet: column 'item', row 3: 'b' a second time"],
    ),
    "text ids and numpy rows": (
        lambda path: [write(path / "log.csv", table()), *folder()(path)][:1],
        {"features": ["image=tiny/image_feat.npy"]},
        ["log.csv: column 'item': the ids are text, so add an items table"],
    ),
    "rows of numpy and table differ": (
        lambda path: [*items(items_table(["a", "b", "c"]))(path), *folder()(path)][:2],
        {"features": ["text=tiny/text_feat.npy"]},
        ["text_feat.npy: 4 rows, but", "items.parquet has 3 items"],
    ),
    "unequal lists": (items(SHORT), {}, ["items.parquet: column 'image', row 2: a list of 1 values; the first has 2"]),
    "missing list": (items(HOLE), {}, ["items.parquet: column 'image', row 2: the features are missing"]),
    "missing value": (items(GAP), {}, ["items.parquet: column 'image', row 3: a value is NaN, infinite or missing"]),
    "infinite in a list": (items(NOT_A_NUMBER), {}, ["items.parquet: column 'image', row 1: a value is NaN"]),
    "no such list column": (
        items(items_table()),
        {"features": ["sound=items.parquet"]},
        ["items.parquet: column 'sound': not a list column of floats (those are: image, text)"],
    ),
    "second table lacks an item": (
        lambda path: [*items(items_table())(path), write(path / "more.parquet", items_table(list("abc")))][:2],
        {"features": ["image", "sound=more.parquet:text"]},
        ["more.parquet: 3 rows, but", "items.parquet has 4 items; 'd' is missing"],
    ),
    "second table has one more": (
        lambda path: [*items(items_table())(path), write(path / "more.parquet", items_table(list("abcde")))][:2],
        {"features": ["image", "sound=more.parquet:text"]},
        ["more.parquet: column 'item', row 4: item 'e' is not in", "items.parquet"],
    ),
    "several logs in an MMRec folder": (
        folder(
            lambda tiny: [
                *[(tiny / f"x{n}.inter").write_text("") for n in (1, 2)],
                (tiny / "tiny.inter").rename(tiny / "gone"),
            ]
        ),
        {},
        ["tiny: several .inter files (x1.inter, x2.inter)"],
    ),
    "mapping without an item": (
        mapping("asin\titemID\nA\t0\nB\t2\nC\t3\n"),
        {},
        ["i_id_mapping.csv: column 'itemID': 1 is"],
    ),
    "mapping with an id twice": (
        mapping("asin\titemID\nA\t0\nB\t1\nA\t2\nC\t3\n"),
        {},
        ["i_id_mapping.csv: column 'asin', row 2 (line 4): 'A' a second time"],
    ),
    "mapping of other columns": (mapping("a\tb\nA\t0\n"), {}, ["i_id_mapping.csv: expected column 'itemID'"]),
    "PCA above the width": (folder(), {"pca": ["text=4"]}, ["--pca text=4: modality 'text' has 3 dimensions"]),
    "PCA of an unknown modality": (folder(), {"pca": ["video=2"]}, ["--pca video=2: no modality 'video'"]),
    "PCA to nothing": (folder(), {"pca": ["0"]}, ["--pca 0: expected DIM or NAME=DIM"]),
    "PCA to words": (folder(), {"pca": ["text=few"]}, ["--pca text=few: 'few' is not a number"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    make, options, expected = ERRORS[case]
    monkeypatch.chdir(tmp_path)
    inputs = make(tmp_path)
    with pytest.raises(InputError) as caught:
        read(tmp_path, *inputs, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    "weights", [["text=1"], ["text=1", "image=-1"], ["text=0", "image=0"], ["audio=1"], ["1"], ["text=x"]]
)
def test_bad_weights_of_the_item_graph(weights: list[str]) -> None:
    with pytest.raises(InputError, match="--item-graph-weight"):
        item_graph_weights(weights, ["image", "text"])


@pytest.mark.parametrize("text", ["image", "image:0", "image:4,image:4", "image:4,", "a b:4"])
def test_bad_modalities_of_synthetic_data(text: str) -> None:
    with pytest.raises(InputError, match="--modalities"):
        parse_modalities(text)


@pytest.mark.parametrize(
    ("sizes", "option"),
    [((10, 10, 51, 2), "--interactions"), ((10, 10, 9, 2), "--interactions"), ((10, 10, 20, 11), "--clusters")],
)
def test_sizes_of_synthetic_data_that_do_not_go_together(tmp_path: Path, sizes: tuple[int, ...], option: str) -> None:
    users, items, interactions, clusters = sizes
    options = SyntheticOptions(tmp_path / "data", users, items, interactions, clusters)
    with pytest.raises(InputError, match=option):
        synthesise(options)
    assert not (tmp_path / "data").exists()
