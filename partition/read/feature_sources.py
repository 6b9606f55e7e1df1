"""Where the feature rows of a modality are: a NumPy file, or a column of lists in tables.

Only `.npy` and `.npz` are read. Formats that run code when they are opened (pickles, and what PyTorch saves) and those
that would need more packages are refused by name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from partition.errors import InputError, reading, require
from partition.files import naming
from partition.read.feature_types import is_feature_type, is_refused_type, why_unusable
from partition.read.table_file import TableFile

MATRICES = (".npy", ".npz")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
_OTHERS = (".h5", ".hdf5", ".mat", ".safetensors")
_ENDING = "_feat"
_CHUNK = 1 << 24  # bytes copied at a time
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class MatrixFile:
    """A matrix in a .npy or .npz file; the row number is the item index.

    Raises:
        InputError: `features.format`, the file has another format; it is not opened.
    """

    path: Path
    name: str = ""  # of the modality: the array of a .npz file with several

    def __post_init__(self) -> None:
        suffix = self.path.suffix.lower()
        if suffix in MATRICES:
            return
        why = "its format is not read"
        if suffix in _PICKLES:
            why = "a pickle is not opened, because that can run any program"
        target = self.path.with_suffix(".npy").name
        message = f"{self.path}: {why}; save the matrix with numpy.save({target!r}, matrix)"
        raise InputError(message, "features.format")

    @cached_property
    def _header(self) -> tuple[tuple[int, ...], np.dtype]:
        if self.path.suffix.lower() == ".npy":
            with reading(self.path, ".npy"):
                values = np.load(self.path, mmap_mode="r", allow_pickle=False)
            shape, dtype = values.shape, values.dtype
        else:
            with self._opened() as file:
                shape, dtype = _read_header(file)
        message = f"has shape {shape}; expected (items, width)"
        require(len(shape) == 2 and shape[1] > 0, self.path, message, "features.shape")
        message = f"has dtype {dtype}; expected floats or integers"
        require(dtype.type in _FLOATS or dtype.kind in "iu", self.path, message, "features.dtype")
        return shape, dtype

    @property
    def rows(self) -> int:
        """Number of rows.

        Raises:
            InputError: missing, torn, not two-dimensional, without columns, or of a dtype that is not read.
        """
        return self._header[0][0]

    @property
    def paths(self) -> list[Path]:
        """The file, in a list."""
        return [self.path]

    def values(self, work: Path) -> np.ndarray:
        """[items, d] in the stored dtype, memory-mapped; an array of a .npz file is copied to the folder `work`.

        Raises:
            InputError: as `rows`.
        """
        path = self.path
        _ = self._header  # checks it
        if path.suffix.lower() == ".npz":
            path = work / f"{self.name or 'matrix'}-npz.npy"
            with naming(path, path), path.open("wb") as target:
                for chunk in self._chunks():
                    target.write(chunk)
        with reading(self.path, self.path.suffix):
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _chunks(self) -> Iterator[bytes]:
        with self._opened() as file:
            while chunk := file.read(_CHUNK):  # the end checks the archive's checksum
                yield chunk

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """The array in a .npz file."""
        with (
            reading(self.path, ".npz"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._member(archive)) as file,
        ):
            yield file

    def _member(self, archive: zipfile.ZipFile) -> str:
        """The array to read: the only one, or the one named like the modality."""
        names = archive.namelist()
        wanted = f"{self.name}.npy"
        if len(names) == 1 or wanted in names:
            return wanted if wanted in names else names[0]
        held = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
        message = f"holds {held}; expected one array, or one named {self.name!r}"
        raise InputError(f"{self.path}: {message}", "features.array")


@dataclass(frozen=True)
class ListColumn:
    """A column of lists of numbers, at most one list per item."""

    tables: tuple[TableFile, ...]
    column: str
    position: np.ndarray  # [rows over all tables] int64 item index of every row

    @property
    def paths(self) -> list[Path]:
        """Files of the tables."""
        return [table.path for table in self.tables]


Source = MatrixFile | ListColumn


def modality_of(path: Path) -> str | None:
    """The modality that a file declares by its name: NAME of `NAME_feat.npy`, or of any format a matrix may come in.

    `MatrixFile` refuses the formats that are not read, with the remedy.
    """
    known = (*MATRICES, *_PICKLES, *_OTHERS)
    if path.suffix.lower() not in known or not path.stem.endswith(_ENDING):
        return None
    return path.stem.removesuffix(_ENDING) or None


def is_matrix_file(path: Path) -> bool:
    """True for the suffix of a matrix, whether it is read (.npy, .npz) or refused (.pt, .pkl ...)."""
    return path.suffix.lower() in (*MATRICES, *_PICKLES, *_OTHERS)


def is_feature_column(table: TableFile, column: str) -> bool:
    """True for a column of lists of numbers (`partition.read.feature_types`)."""
    return table.schema is not None and column in table.names and is_feature_type(table.schema.field(column).type)


def refused_column(table: TableFile, column: str) -> InputError | None:
    """The error for a column that holds numbers in a form that is not read; None for all others."""
    if table.schema is None or column not in table.names:
        return None
    kind = table.schema.field(column).type
    if not is_refused_type(kind):
        return None
    message = f"{why_unusable(kind)}; or name the modalities to use with --features"
    return table.error(message, column, code="features.column")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
