"""IdMap: external ids and global rows over several parts; files are mapped when they are needed, and stay mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cm3_dist.inference import id_map
from cm3_dist.inference.id_map import IdMap
from partition.errors import InputError
from partition.folder.manifest import Manifest, read_manifest
from tests.support.small import ITEMS, USERS, prepare_small


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = prepare_small(tmp_path_factory.mktemp("ids"))
    return root, read_manifest(root)


def all_rows(manifest: Manifest) -> np.ndarray:
    """Global rows of all users."""
    return np.concatenate([p * manifest.user_stride + np.arange(s.users) for p, s in enumerate(manifest.parts)])


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_take_and_find_are_inverse(
    prepared: tuple[Path, Manifest], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_map, "BLOCK", block)
    ids = IdMap(*prepared, "user")
    rows = np.random.default_rng(0).permutation(np.tile(all_rows(prepared[1]), 2))
    taken = ids.take(rows)
    assert taken.type == pa.large_string()  # more than 2 GiB of ids fit in one array
    assert sorted(set(taken.to_pylist())) == sorted(f"u{n}" for n in range(USERS))
    np.testing.assert_array_equal(ids.find_any(taken), rows)
    np.testing.assert_array_equal(ids.rows(taken.to_pylist()), rows)
    np.testing.assert_array_equal(ids.rows(taken.cast(pa.string())), rows)
    np.testing.assert_array_equal(ids.take(ids.rows(["u7", "u7", "u0"])).to_pylist(), ["u7", "u7", "u0"])
    assert ids.find(pa.array(["u3", "nobody"]))[1] == -1
    assert len(ids.take(np.empty(0, np.int64))) == 0


def test_part_ids_come_in_the_order_of_rows(prepared: tuple[Path, Manifest]) -> None:
    ids = IdMap(*prepared, "item")
    parts = [1, 2]
    rows = [p * prepared[1].item_stride + np.arange(prepared[1].parts[p].items) for p in parts]
    assert ids.part_ids(parts).equals(ids.take(np.concatenate(rows)))
    assert len(ids.part_ids(range(4))) == ITEMS


def test_only_what_is_needed_is_mapped_and_only_once(tmp_path: Path) -> None:
    root = prepare_small(tmp_path)
    manifest = read_manifest(root)
    for part in (0, 1, 3):
        (root / f"parts/part-{part:05d}/items.arrow").unlink()
    ids = IdMap(root, manifest, "item")
    row = np.array([2 * manifest.item_stride])
    found = ids.take(row)
    (root / "parts/part-00002/items.arrow").unlink()
    assert ids.take(row).equals(found)
    with pytest.raises(InputError) as refused:
        ids.take(np.array([0]))
    assert refused.value.code == "prepared.torn"


def test_types(prepared: tuple[Path, Manifest]) -> None:
    users, items = IdMap(*prepared, "user"), IdMap(*prepared, "item")
    assert users.parse("7") == "7"
    assert items.parse("1007") == 1007
    for call in (
        lambda: items.parse("x"),
        lambda: users.rows([7]),
        lambda: users.rows(pa.array([7])),
        lambda: items.rows(pa.array(["1007"])),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert refused.value.code == "ids.type"
