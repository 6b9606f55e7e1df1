"""Files of others run no code and lead nowhere else; whatever they hold, a reader takes or refuses them in a line."""

from __future__ import annotations

import json
import os
import pickle
import string
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cm3_dist.config.loading import load_settings
from partition.build import build
from partition.errors import InputError
from partition.folder import layout
from partition.folder.arrays import (
    RELATIONS,
    Graph,
    Similar,
    Weights,
    open_features,
    read_graph,
    read_similar,
    read_table,
    write_graph,
    write_similar,
)
from partition.folder.integrity import check_manifest
from partition.folder.manifest import Modality, read_manifest
from partition.options import BuildOptions, CutMethod
from tests.support.small import prepare_small
from tests.support.tamper import accept_manifest

# Which examples is the hypothesis profile's affair (tests/conftest.py): the same in every run, or random in test-all.
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


class Bait:
    """Unpickles to a folder that proves it."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (self.proof,)


def refused_quietly(read: Callable[[], object]) -> None:
    with pytest.raises(InputError) as error:
        read()
    assert "\n" not in str(error.value)


def test_pickles_in_arrays_stay_shut(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    bait = np.array([[Bait(proof)]], dtype=object)
    np.save(tmp_path / "bait.npy", bait, allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Bait(proof)))
    np.savez(tmp_path / "bait.npz", indptr=bait, neighbour=bait, weight=bait, allow_pickle=True)
    modality = Modality(name="image", dim=1, dtype="float32", source_dim=1)
    for name in ("bait.npy", "plain.npy"):
        refused_quietly(lambda name=name: open_features(tmp_path / name, modality, 1))
    for reader in (read_graph, read_similar):
        refused_quietly(lambda reader=reader: reader(tmp_path / "bait.npz"))
    folder = data(tmp_path / "data")
    for name in ("bait.npy", "plain.npy"):
        (folder / "image_feat.npy").write_bytes((tmp_path / name).read_bytes())
        refused_quietly(lambda: prepare(folder, tmp_path / "out"))
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    call = f"!!python/object/apply:os.mkdir ['{proof}']"
    (tmp_path / "run.yaml").write_text(f"train: {call}\n")
    refused_quietly(lambda: load_settings(tmp_path / "run.yaml", []))
    refused_quietly(lambda: load_settings(None, [f"train.epochs={call}"]))
    assert not proof.exists()


def data(folder: Path) -> Path:
    """A log and features that can be prepared."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 12, 80), rng.integers(0, 8, 80), strict=True)})
    (folder / "log.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs))
    np.save(folder / "image_feat.npy", rng.standard_normal((8, 4)).astype(np.float32))
    return folder


def prepare(folder: Path, out: Path) -> None:
    build(BuildOptions(input=[str(folder)], output=out, parts=2, method=CutMethod.RANDOM, item_graph_k=2))


def whole_or_nothing(change: Callable[[Path], object]) -> None:
    """A changed data set is prepared, or refused in one line with nothing left behind."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = data(place / "data")
        change(folder)
        if not taken_or_refused(lambda: prepare(folder, place / "out")):
            assert sorted(path.name for path in place.iterdir()) == ["data"]
        else:
            check_manifest(place / "out", read_manifest(place / "out"))


cells = st.one_of(
    st.integers(-5, 20).map(str), st.text(max_size=6), st.sampled_from(["", "nan", "1e9", '"', ",", "\t"])
)
tables = st.lists(st.lists(cells, min_size=1, max_size=4), max_size=30)
columns = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-3, 10)), min_size=1, max_size=20),
    st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=20),
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.lists(st.lists(st.floats(width=32), max_size=4), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=20),
)
arrays = st.tuples(
    st.sampled_from(["float16", "float32", "float64", "int64", "bool", "complex64", "S3"]),
    st.lists(st.integers(0, 9), max_size=3),
)


def csv_text(table: list[list[str]]) -> str:
    return "user,item\n" + "".join(",".join(row) + "\n" for row in table)


def write_parquet(folder: Path, user: list[Any], item: list[Any]) -> None:
    (folder / "log.csv").unlink()
    size = min(len(user), len(item))
    pq.write_table(pa.table({"user": pa.array(user[:size]), "item": pa.array(item[:size])}), folder / "log.parquet")


def flip(path: Path, place: float, value: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= value
    path.write_bytes(content)


def write_features(folder: Path, kind: str, shape: list[int]) -> None:
    np.save(folder / "image_feat.npy", np.zeros(shape, kind))


def _interactions_csv(table: list[list[str]]) -> None:
    whole_or_nothing(lambda folder: (folder / "log.csv").write_text(csv_text(table), encoding="utf-8", errors="ignore"))


def _interactions_bytes(content: bytes) -> None:
    whole_or_nothing(lambda folder: (folder / "log.csv").write_bytes(content))


def _interactions_parquet(user: list[Any], item: list[Any]) -> None:
    whole_or_nothing(lambda folder: write_parquet(folder, user, item))


def _features_arrays(array: tuple[str, list[int]]) -> None:
    whole_or_nothing(lambda folder: write_features(folder, *array))


def _features_bytes(place: float, value: int) -> None:
    whole_or_nothing(lambda folder: flip(folder / "image_feat.npy", place, value))


leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**30), st.floats(), st.text(max_size=8))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
)
keys = st.sampled_from(
    ["train", "train.epochs", "model.dim", "data.path", "evaluate.ks", "negatives", "x", "train.epochs.y"]
)


def _settings_text(text: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        taken_or_refused(lambda: load_settings(path, []))


def _settings_trees(tree: Any, key: str) -> None:
    *outer, last = key.split(".")
    content: dict[str, Any] = {last: tree}
    for name in reversed(outer):
        content = {name: content}
    _settings_text(yaml.safe_dump(content))
    taken_or_refused(lambda: load_settings(None, [f"{key}={tree}"]))


def taken_or_refused(read: Callable[[], object]) -> bool:
    """Whether it is taken; anything but an InputError of one line fails the test."""
    try:
        read()
    except InputError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    return False


def _manifest(place: float, tree: Any) -> None:
    """A value somewhere in a manifest is another, and its digest is that of the changed one."""
    content = json.loads(_manifest_text())
    spots = list(_spots(content))
    holder, name = spots[int(place * (len(spots) - 1))]
    holder[name] = tree
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        accept_manifest(root, content)
        taken_or_refused(lambda: check_manifest(root, read_manifest(root)))


def _spots(tree: Any) -> Any:
    for name in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []:
        yield tree, name
        yield from _spots(tree[name])


_text: list[str] = []


def _manifest_text() -> str:
    if not _text:
        with tempfile.TemporaryDirectory() as temporary:
            _text.append((prepare_small(Path(temporary)) / layout.MANIFEST).read_text())
    return _text[0]


def _parts(place: float, value: int, name: str) -> None:
    """A byte of a part's file is another, and nobody looked at its digest."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(_part_file(name))
        flip(path, place, value)
        if name == "graph.npz":
            taken_or_refused(lambda: read_graph(path))
        elif name == "item_graph.npz":
            taken_or_refused(lambda: read_similar(path))
        else:
            taken_or_refused(lambda: read_table(path, {"id": pa.large_string(), "train_degree": pa.int64()}))


_files: dict[str, bytes] = {}


def _part_file(name: str) -> bytes:
    if not _files:
        with tempfile.TemporaryDirectory() as temporary:
            part = layout.part_dir(prepare_small(Path(temporary)), 1)
            _files.update({path.name: path.read_bytes() for path in part.iterdir()})
    return _files[name]


shares, bits = st.floats(0, 1), st.integers(1, 255)
READERS: dict[str, Any] = {
    "interactions_csv": given(tables)(_interactions_csv),
    "interactions_bytes": given(st.binary(max_size=200))(_interactions_bytes),
    "interactions_parquet": given(columns, columns)(_interactions_parquet),
    "features_arrays": given(arrays)(_features_arrays),
    "features_bytes": given(shares, bits)(_features_bytes),
    "settings_text": given(st.text(alphabet=string.printable, max_size=80))(_settings_text),
    "settings_trees": given(trees, keys)(_settings_trees),
    "manifest": given(shares, trees)(_manifest),
    "parts": given(shares, bits, st.sampled_from(["users.arrow", "graph.npz", "item_graph.npz"]))(_parts),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_take_or_refuse(reader: str) -> None:
    FEW(READERS[reader])()


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_take_or_refuse_at_length(reader: str) -> None:
    MANY(READERS[reader])()


def small_graph() -> Graph:
    return Graph(
        row={"user": np.array([0, 1, 7]), "item": np.array([0, 1])},
        degree={"user": np.ones(3, np.int32), "item": np.ones(2, np.int32)},
        edges={relation: (np.array([0, 1]), np.array([0, 1])) for relation in RELATIONS},
    )


def small_weighted_graph() -> Graph:
    weights = Weights(
        {relation: np.full(2, 0.5, np.float32) for relation in RELATIONS}, {"user": np.ones(3), "item": np.ones(2)}
    )
    return replace(small_graph(), weights=weights)


def small_item_graph() -> Similar:
    return Similar(np.array([0, 1, 2]), np.array([0, 1]), np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("write", "read", "content"),
    [
        (write_graph, read_graph, small_graph()),
        (write_graph, partial(read_graph, weighted=True), small_weighted_graph()),
        (write_similar, read_similar, small_item_graph()),
    ],
    ids=["graph", "weighted graph", "item graph"],
)
def test_every_byte_of_an_archive_flipped(
    write: Callable[[Path, Any], None], read: Callable[[Path], object], content: object, tmp_path: Path
) -> None:
    """Each byte once, and each bit of version, flags and method in the first member's two zip headers."""
    path = tmp_path / "archive.npz"
    write(path, content)
    data = path.read_bytes()
    directory = data.index(b"PK\x01\x02")
    header = [*range(4, 10), *range(directory + 4, directory + 12)]
    flips = [*enumerate(np.random.default_rng(0).integers(1, 256, len(data)).tolist())]
    flips += [(place, 1 << bit) for place in header for bit in range(8)]
    refused = 0
    for place, mask in flips:
        path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        refused += not taken_or_refused(lambda: read(path))
    assert refused > len(flips) / 2
