"""Tables leave the engine as NumPy and Arrow files, which are memory-mapped; only a batch of rows is in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from partition.relational.engine import Engine


def write_columns(
    engine: Engine, table: ir.Table, types: Mapping[str, DTypeLike], folder: Path
) -> dict[str, np.ndarray]:
    """Writes the columns of an ordered table to `folder` as NAME.npy, and maps them.

    Args:
        engine: runs the table.
        table: with the columns of `types`.
        types: name -> dtype.
        folder: for the files.

    Raises:
        OSError: the disk is full.
    """
    kinds = {name: np.dtype(kind) for name, kind in types.items()}
    # Renamed when complete: a file of that name may be mapped.
    rows, files = 0, {name: (folder / f"{name}.npy.new").open("w+b") for name in kinds}
    try:
        for name, file in files.items():
            _write_header(file, kinds[name], 0)
        for batch in engine.batches(table.select(*kinds)):
            for name, file in files.items():
                values = batch[name].to_numpy(zero_copy_only=False)
                file.write(values.astype(kinds[name], copy=False).tobytes())
            rows += len(batch)
        for name, file in files.items():
            file.seek(0)
            _write_header(file, kinds[name], rows)
    finally:
        for file in files.values():
            file.close()
    for name in kinds:
        (folder / f"{name}.npy.new").rename(folder / f"{name}.npy")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in kinds}


def _write_header(file: BinaryIO, kind: np.dtype, rows: int) -> None:
    """Writes the header of a .npy file, which is as long for any number of rows: NumPy leaves room for it to grow."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)


def write_ids(engine: Engine, ids: ir.Table, path: Path) -> pa.Array:
    """Writes the ids of nodes as an Arrow file of one batch, and maps it: int64, or large_string of any size.

    Args:
        engine: runs the table.
        ids: ordered; one column.
        path: of the file.

    Raises:
        OSError: the disk is full.
    """
    (name,) = ids.columns
    number = ids[name].type().is_integer()
    batches = (batch.column(0) for batch in engine.batches(ids))
    with tempfile.TemporaryFile(dir=path.parent) as offsets, tempfile.TemporaryFile(dir=path.parent) as values:
        return save_ids(_whole_numbers(batches, values) if number else _texts(batches, offsets, values), path)


def _whole_numbers(batches: Iterator[pa.Array], file: BinaryIO) -> pa.Array:
    rows = 0
    for batch in batches:
        file.write(batch.cast(pa.int64()).to_numpy().tobytes())
        rows += len(batch)
    return pa.Array.from_buffers(pa.int64(), rows, [None, _mapped(file)])


def _texts(batches: Iterator[pa.Array], offsets: BinaryIO, values: BinaryIO) -> pa.Array:
    """The batches as one array whose buffers are mapped files."""
    rows = end = 0
    offsets.write(np.zeros(1, np.int64).tobytes())
    for batch in batches:
        texts = batch.cast(pa.large_string())
        _, bounds, content = texts.buffers()
        own = np.frombuffer(bounds, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if len(texts):
            if own[-1] > own[0]:
                values.write(memoryview(content)[own[0] : own[-1]])
            offsets.write((own[1:] - own[0] + end).tobytes())
            end += int(own[-1] - own[0])
            rows += len(texts)
    return pa.LargeStringArray.from_buffers(rows, _mapped(offsets), _mapped(values))


def _mapped(file: BinaryIO) -> pa.Buffer:
    file.flush()
    if not file.tell():
        return pa.py_buffer(b"")
    return pa.py_buffer(np.memmap(file, np.uint8, "r"))


def save_ids(ids: pa.Array, path: Path) -> pa.Array:
    """Writes ids as an Arrow file of one batch, in place of one that may be mapped, and maps it."""
    batch, temporary = pa.record_batch({"id": ids}), path.with_suffix(".new")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    temporary.rename(path)
    return read_ids(path)


def read_ids(path: Path) -> pa.Array:
    """Maps the ids of an Arrow file of one batch."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        return file.get_batch(0).column(0)


def column(engine: Engine, table: ir.Table, name: str) -> np.ndarray:
    """One column of an ordered table, in memory."""
    batches = [batch.column(0).to_numpy() for batch in engine.batches(table.select(name))]
    return np.concatenate(batches) if batches else np.empty(0, np.int64)
