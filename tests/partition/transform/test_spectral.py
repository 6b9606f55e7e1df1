"""The modality made of training interactions: by its formula, without the held-out ones, and in a prepared folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from partition.errors import InputError
from partition.folder.layout import features_file, part_dir
from partition.folder.verify import verify
from partition.transform.spectral import spectral_features
from tests.support.small import small_dataset

SIZES = (120, 60)


def test_equals_a_dense_decomposition() -> None:
    user, item = small_dataset().train()
    user, item = user[item != 59], item[item != 59]
    matrix = np.zeros(SIZES)
    matrix[user, item] = 1
    degrees = matrix.sum(1, keepdims=True), matrix.sum(0, keepdims=True)
    matrix /= np.sqrt(np.maximum(degrees[0], 1) * np.maximum(degrees[1], 1))
    _, value, vector = np.linalg.svd(matrix)
    rows = (vector[1:7] * value[1:7, None]).T
    rows[degrees[1][0] == 0] = 0
    found = spectral_features(user, item, *SIZES, 6)
    # Compared by their cosines, which know no signs.
    norm = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    np.testing.assert_allclose(found @ found.T, rows @ rows.T / np.outer(norm, norm), atol=1e-5)
    np.testing.assert_array_equal(found[59], 0)  # has no interaction
    np.testing.assert_array_equal(spectral_features(user, item, *SIZES, 6), found)
    near, far = found[20] @ found[21], found[20] @ found[50]
    assert near > far + 0.3  # users like items whose numbers are near each other


def test_more_dimensions_than_there_are() -> None:
    with pytest.raises(InputError) as caught:
        spectral_features(*small_dataset().train(), *SIZES, 60)
    assert caught.value.code == "option.spectral"


def _folder(path: Path, moved: bool) -> Path:
    """Interactions with labels; `moved`: the held-out ones with other items."""
    rng = np.random.default_rng(0)
    lines = ["userID\titemID\tx_label"]
    for user in range(40):
        items = rng.permutation(30)[:8]
        for place, item in enumerate(items):
            held_out = place >= 6
            lines.append(f"{user}\t{(item + 7) % 30 if held_out and moved else item}\t{place - 5 if held_out else 0}")
    path.mkdir(parents=True)
    (path / "tiny.inter").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    np.save(path / "text_feat.npy", np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32))
    return path


def test_held_out_interactions_have_no_part_in_it(tmp_path: Path) -> None:
    from cm3_dist import prepare

    found = []
    for moved in (False, True):
        folder = _folder(tmp_path / f"{moved}" / "tiny", moved)
        prepared = prepare(folder, folder / "prepared", parts=2, spectral=5, method="random", quiet=True)
        manifest = verify(prepared)
        assert [(m.name, m.dim) for m in manifest.modalities] == [("text", 4), ("spectral", 5)]
        files = [part_dir(prepared, part) / features_file("spectral") for part in range(2)]
        found.append([np.load(file) for file in files])
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
        assert one.any()
