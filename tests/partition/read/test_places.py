from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from partition.build import read_dataset
from partition.errors import InputError
from partition.input_files import stamps
from partition.options import BuildOptions, SplitMethod
from partition.read.log import open_log
from partition.read.places import listing, place_of
from partition.read.sources import find
from partition.read.table_file import TableFile, open_table
from partition.stages import Stages

Store = Callable[[str, pa.Table], None]


def pair(*users: str) -> pa.Table:
    return pa.table({"user_id": list(users), "item_id": ["a"] * len(users)})


def contents(table: TableFile) -> dict[str, list[Any]]:
    return table.read(table.names).to_pydict()


@pytest.fixture
def local(tmp_path: Path) -> tuple[str, Store]:
    """A folder, and a function that writes a table below it."""

    def store(name: str, table: pa.Table) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write = pq.write_table if path.suffix == ".parquet" else csv.write_csv
        write(table, path)

    return str(tmp_path), store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Store]]:
    """A bucket of a local S3 server, and a function that writes a table into it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (settings | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()  # earlier tests
    filesystem = fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True)
    filesystem.create_dir("logs")

    def store(name: str, table: pa.Table) -> None:
        with filesystem.open_output_stream(f"logs/{name}", compression="detect") as stream:
            (pq.write_table if name.endswith(".parquet") else csv.write_csv)(table, stream)

    yield "s3://logs", store
    server.stop()


@pytest.fixture(params=["local", "bucket"])
def storage(request: pytest.FixtureRequest) -> tuple[str, Store]:
    found: tuple[str, Store] = request.getfixturevalue(request.param)
    return found


def test_a_folder_with_hive_partitions(storage: tuple[str, Store]) -> None:
    base, store = storage
    for day, users in ((1, ["u1", "u2"]), (2, ["u3"])):
        store(f"shop/events/day=2026-01-0{day}/hour={day}/part-0.parquet", pair(*users))
    store("shop/events/day=2026-01-03/hour=__HIVE_DEFAULT_PARTITION__/LOG.CSV", pair("u4"))
    store("shop/items.parquet", pa.table({"item_id": ["a"]}))
    store("shop/events/left.csv", pair("x"))
    store("shop/old/log.csv", pair("x"))
    store("shop/old/deep/log.csv", pair("x"))
    store("shop/events/day=2026-01-01/.hidden.csv", pair("x"))
    found = find([f"{base}/shop"], {})
    assert [contents(table) for table in found.interactions] == [
        {"user_id": ["u1", "u2"], "item_id": ["a", "a"], "day": ["2026-01-01"] * 2, "hour": [1, 1]},
        {"user_id": ["u3"], "item_id": ["a"], "day": ["2026-01-02"], "hour": [2]},
        {"user_id": ["u4"], "item_id": ["a"], "day": ["2026-01-03"], "hour": [None]},
    ]
    assert [table.place.name for table in found.items] == [f"{base}/shop/items.parquet"]
    assert found.name == "shop"
    unused = ["events/left.csv", "old/"]
    assert found.unused == [f"{name} (in a sub-folder; give it with --input)" for name in unused]


def test_patterns(storage: tuple[str, Store]) -> None:
    base, store = storage
    for day in (1, 2, 3):
        store(f"logs/day={day}/a.csv", pair(f"u{day}"))
        store(f"logs/b{day}.csv", pair(f"v{day}"))

    def users(pattern: str) -> list[str]:
        return [
            user for place in listing(f"{base}/{pattern}").places for user in contents(open_table(place))["user_id"]
        ]

    assert users("logs/*.csv") == ["v1", "v2", "v3"]
    assert users("logs/b[12].csv") == ["v1", "v2"]
    assert users("logs/**/*.csv") == ["v1", "v2", "v3", "u1", "u2", "u3"]
    assert users("logs/day=*/a.csv") == ["u1", "u2", "u3"]
    assert users("logs/day=[23]") == ["u2", "u3"]
    assert [place.keys for place in listing(f"{base}/logs/day=[23]").places] == [(("day", 2),), (("day", 3),)]
    assert find([f"{base}/logs/*.csv"], {}).name == "logs"
    with pytest.raises(InputError, match=r"logs/c\*\.csv: no such file or folder") as caught:
        listing(f"{base}/logs/c*.csv")
    assert caught.value.code == "file.missing"


def test_a_log_in_any_place(storage: tuple[str, Store], tmp_path: Path) -> None:
    base, store = storage
    store("log.csv", pair("u1", "u2"))
    table = open_table(f"{base}/log.csv")
    assert (table.place.is_local, table.path.name) == (not base.startswith("s3"), "log.csv")
    log = open_log(table, {"user": "user_id", "item": "item_id"}, (), tmp_path / "work")
    assert pq.read_table(log.parquet[0])["user"].to_pylist() == ["u1", "u2"]
    stamp, digest = table.place.stamp(), table.place.sha256()
    store("log.csv", pair("u1", "u3", "u4"))
    assert table.place.stamp() != stamp
    assert table.place.sha256() != digest
    error = table.error("is wrong", "user_id", 1)
    assert str(error) == f"{base}/log.csv: column 'user_id', row 1 (line 3): is wrong"


def test_a_data_set_in_any_place(storage: tuple[str, Store], tmp_path: Path) -> None:
    base, store = storage
    features = pa.table({"item_id": ["a", "b"], "text": [[1.0, 0.0], [0.0, 1.0]]})
    for name in ("shop/day=1/log.parquet", "shop/day=2/log.parquet", "shop/items.parquet"):
        store(name, features if "items" in name else pair("u1", "u2"))
    dataset = read_dataset(
        BuildOptions(input=[f"{base}/shop"], where="day = 2", output=tmp_path / "out", parts=1, split=SplitMethod.NONE),
        tmp_path,
        Stages(quiet=True),
    )
    assert (dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()) == (["u1", "u2"], ["a", "b"])
    assert dataset.counts["where_dropped"] == 2
    assert dataset.features["text"].values.tolist() == [[1, 0], [0, 1]]
    assert set(dataset.inputs) == {"items.parquet", *(f"{base}/shop/day={day}/log.parquet" for day in (1, 2))}


def test_an_endpoint_in_the_uri(bucket: tuple[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    base, store = bucket
    store("log.csv", pair("u1"))
    address = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = find([f"{base}/log.csv?endpoint_override={address}"], {})
    assert contents(found.interactions[0])["user_id"] == ["u1"]
    assert found.interactions[0].place.name == f"{base}/log.csv"


def test_a_file_uri(local: tuple[str, Store]) -> None:
    base, store = local
    store("my log.csv", pair("u1"))
    assert contents(open_table(f"file://{base}/my%20log.csv"))["user_id"] == ["u1"]
    assert contents(open_table(f"{base}/my log.csv"))["user_id"] == ["u1"]


@pytest.mark.parametrize("source", ["ftp://host/log.csv", "https://host/log.csv", "nonsense://x"])
def test_a_uri_that_no_file_system_reads(source: str) -> None:
    with pytest.raises(InputError) as caught:
        place_of(source)
    assert caught.value.code == "file.uri"
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)


def test_what_is_missing(storage: tuple[str, Store]) -> None:
    base, store = storage
    store("log.csv", pair("u1"))
    for source in (f"{base}/none.csv", f"{base}/none/"):
        with pytest.raises(InputError) as caught:
            listing(source)
        assert (str(caught.value), caught.value.code) == (f"{source}: no such file or folder", "file.missing")
    with pytest.raises(InputError) as caught:
        place_of(f"{base}/none.csv").stamp()
    assert caught.value.code == "file.missing"


@pytest.mark.parametrize(("log", "kind"), [("_delta_log/0.json", "Delta"), (".hoodie/hoodie.properties", "Hudi")])
def test_tables_with_a_log_of_their_own_are_refused(local: tuple[str, Store], log: str, kind: str) -> None:
    base, store = local
    store("table/part-0.parquet", pair("u1"))
    path = Path(base, "table", log)
    path.parent.mkdir()
    path.touch()
    with pytest.raises(InputError, match=f"table: a {kind} table") as caught:
        find([f"{base}/table"], {})
    assert caught.value.code == "table.format"


def test_keys_in_folder_names(local: tuple[str, Store]) -> None:
    base, store = local
    for name in ("shop=a%2Fb/n=07", "shop=c d/n=8"):
        store(f"t/{name}/log.csv", pair("u1"))
    assert [place.keys for place in listing(f"{base}/t").places] == [
        (("shop", "a/b"), ("n", "07")),
        (("shop", "c d"), ("n", "8")),
    ]
    store("own/user_id=1/log.csv", pair("u1"))  # the column of the file counts
    assert contents(find([f"{base}/own"], {}).interactions[0]) == {"user_id": ["u1"], "item_id": ["a"]}


def test_a_key_can_be_a_role(local: tuple[str, Store], tmp_path: Path) -> None:
    base, store = local
    for split in ("train", "test"):
        store(f"t/split={split}/log.parquet", pair("u1", "u2"))
    for table, label in zip(find([f"{base}/t"], {}).interactions, (2, 0), strict=True):
        roles = {"user": "user_id", "item": "item_id", "split": "split"}
        log = open_log(table, roles, (), tmp_path / "work")
        assert pq.read_table(log.parquet[0])["split"].to_pylist() == [label, label]


def test_links(local: tuple[str, Store]) -> None:
    base, store = local
    store("data/day=1/log.csv", pair("u1"))
    Path(base, "data/day=1/loop").symlink_to(Path(base, "data"))
    Path(base, "linked").symlink_to(Path(base, "data"))
    assert [place.name for place in listing(f"{base}/linked").places] == [f"{base}/linked/day=1/log.csv"]


def test_files_in_object_storage_are_watched(bucket: tuple[str, Store]) -> None:
    base, store = bucket
    store("day=1/a.csv", pair("u"))
    store("b.csv", pair("u", "v"))
    before = stamps(base)
    assert [name.removeprefix(base) for name in before] == ["/b.csv", "/day=1/a.csv"]
    assert list(stamps(f"{base.replace('s3://', 's3a://')}/*.csv").values()) == [before[f"{base}/b.csv"]]
    assert stamps(f"{base}/none.csv") == {}
    store("b.csv", pair("u", "v", "w"))
    changed = {name for name, stamp in stamps(base).items() if stamp != before[name]}
    assert changed == {f"{base}/b.csv"}
