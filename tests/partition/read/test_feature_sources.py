from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from partition.errors import InputError
from partition.read.feature_sources import MatrixFile, modality_of
from tests.support.raw_tables import mmrec, read

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)
ROWS = [(0, 2, 0), (1, 0, 0)]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_a_matrix_of_integers_becomes_float32(tmp_path: Path, dtype: type) -> None:
    folder = mmrec(tmp_path / "tiny", ROWS)
    np.save(folder / "text_feat.npy", VALUES.astype(dtype))
    found = read(tmp_path, folder).features["text"].values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("others", [{}, {"ids": np.arange(4)}])
def test_an_array_of_an_npz_file(tmp_path: Path, compressed: bool, others: dict[str, np.ndarray]) -> None:
    folder = mmrec(tmp_path / "tiny", ROWS)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "sound.npz", sound=VALUES, **others)  # type: ignore[arg-type]
    dataset = read(tmp_path, folder, features=["image", f"sound={tmp_path / 'sound.npz'}"])
    np.testing.assert_array_equal(dataset.features["sound"].values, VALUES)
    assert "sound.npz" in dataset.inputs


def test_the_only_array_of_an_npz_file_may_have_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "sound.npz", VALUES)
    assert MatrixFile(tmp_path / "sound.npz", "sound").rows == 4


def test_npz_files_that_are_refused(tmp_path: Path) -> None:
    def refusal(path: Path) -> InputError:
        with pytest.raises(InputError, match=path.name) as caught:
            MatrixFile(path, "sound").values(tmp_path)
        assert "\n" not in str(caught.value)
        return caught.value

    np.savez(tmp_path / "several.npz", a=VALUES, b=VALUES)
    found = refusal(tmp_path / "several.npz")
    assert found.code == "features.array"
    assert "holds a, b; expected one array, or one named 'sound'" in str(found)
    np.savez(tmp_path / "objects.npz", np.array([{}], object))
    assert refusal(tmp_path / "objects.npz").code == "features.shape"
    np.savez(tmp_path / "pickled.npz", np.array([[{}]], object))
    assert refusal(tmp_path / "pickled.npz").code == "features.dtype"
    np.savez(tmp_path / "whole.npz", np.random.default_rng(0).random((400, 30)))
    data = (tmp_path / "whole.npz").read_bytes()
    for share in (0.0, 0.3, 0.9, 0.999):
        (tmp_path / "torn.npz").write_bytes(data[: int(len(data) * share)])
        assert refusal(tmp_path / "torn.npz").code == "file.unreadable"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255  # found by the archive's checksum
    (tmp_path / "flipped.npz").write_bytes(flipped)
    assert refusal(tmp_path / "flipped.npz").code == "file.unreadable"


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pt", "pth", "joblib", "h5", "safetensors", "PT"])
def test_other_formats_are_refused_with_the_remedy_and_never_opened(tmp_path: Path, suffix: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "opened",)

    folder = mmrec(tmp_path / "tiny", ROWS)
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"clip\.\w+: .*numpy\.save\('clip\.npy', matrix\)") as caught:
        read(tmp_path, folder, features=["image", f"clip={path}"])
    assert caught.value.code == "features.format"
    assert not (tmp_path / "opened").exists()


def test_a_folder_with_matrices_of_several_formats(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", ROWS)
    (folder / "text_feat.npy").unlink()
    np.savez(folder / "text_feat.npz", VALUES)
    (folder / "image_feat.pkl").write_bytes(b"")  # beside image_feat.npy, which its author has made of it
    np.testing.assert_array_equal(read(tmp_path, folder).features["text"].values, VALUES)
    (folder / "sound_feat.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"sound_feat\.pt: a pickle is not opened") as caught:
        read(tmp_path, folder)
    assert caught.value.code == "features.format"
    assert list(read(tmp_path, folder, features=["text"]).features) == ["text"]
    np.save(folder / "text_feat.npy", VALUES)
    with pytest.raises(InputError, match=r"text_feat\.npz: a second file for modality 'text'") as caught:
        read(tmp_path, folder)
    assert caught.value.code == "features.duplicate"


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("image_feat.npy", "image"),
        ("image_feat.NPZ", "image"),
        ("a_b_feat.pkl", "a_b"),
        ("image_feat.pt", "image"),
        ("image_feat.txt", None),
        ("image.npy", None),
        ("_feat.npy", None),
    ],
)
def test_the_modality_that_a_file_name_declares(name: str, modality: str | None) -> None:
    assert modality_of(Path(name)) == modality
