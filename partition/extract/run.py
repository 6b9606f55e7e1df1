"""Encodes the items table into feature rows on disk, block by block, so that an interrupted run can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.columns_on_disk import npy_file
from partition.errors import InputError
from partition.extract import report, tfidf
from partition.extract.encoders import Encoder
from partition.extract.encoding import Block, BlockEncoder
from partition.extract.items import Item, Items
from partition.extract.loading import load_encoder
from partition.extract.report import Extracted
from partition.extract.request import BLOCK, Fill, Request
from partition.files import atomic_file
from partition.resume import Work, work_folder


def extract(request: Request) -> Extracted:
    """Writes the rows, and a JSON file beside them that describes them.

    An item whose text or image cannot be read or encoded gets no row of its own: it is marked as missing.

    Raises:
        InputError: anything wrong with the options, the table or the model; nothing is written then.
    """
    request.check()
    items = Items(request.items, request.item_column, request.text, request.images)
    # A model, images and terms may be files, or the name of a model on the hub, a column, or a number.
    inputs = [str(request.items), *filter(None, (request.model, request.images, request.tfidf))]
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(request.output, request.decides(), inputs) as work:
        if request.tfidf is not None:
            blocks, made_by = _by_tfidf(request, items, work.folder)
        else:
            blocks, made_by = _by_model(request, items, work)
        return _write(request, items, blocks, made_by)


def _by_model(request: Request, items: Items, work: Work) -> tuple[list[Path], Callable[[], dict[str, Any]]]:
    @cache
    def loaded() -> Encoder:
        encoder = load_encoder(request)
        work.result("kind", lambda path: path.write_text(encoder.kind, encoding="utf-8"))
        return encoder

    proven = any(Block.load(path).given.any() for path in sorted(work.folder.glob("rows-*.npz")))
    encoder = BlockEncoder(loaded, request.batch_size, request.characters, proven)

    def make(block: list[Item]) -> Callable[[Path], object]:
        return lambda path: encoder.encode(block).save(path)

    blocks = []
    bar = tqdm(total=len(items.ids), desc=request.modality, unit="item", disable=None)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # one line per odd image; what cannot be read is reported
        for number, block in enumerate(items.blocks(BLOCK)):
            blocks.append(work.result(f"rows-{number:08d}.npz", make(block)))
            bar.update(len(block))

    def made_by() -> dict[str, Any]:
        kind = (work.folder / "kind").read_text(encoding="utf-8")  # written before the first row
        model = {"model": request.model, "revision": request.revision, "called_as": kind}
        return {**model, "max_tokens": request.max_tokens}

    return blocks, made_by


def _by_tfidf(request: Request, items: Items, folder: Path) -> tuple[list[Path], Callable[[], dict[str, Any]]]:
    """Encodes all texts at once, because the weights of the terms depend on the whole catalogue."""
    catalogue = list(items.blocks(BLOCK))
    given = [item.text for block in catalogue for item in block if item.text is not None]
    if not given:
        reason = next((reason for block in catalogue for item in block for reason in item.wrong), "")
        raise _nothing(request, reason)
    number = str(request.tfidf)
    if number.isdecimal() and int(number):
        fitted = tfidf.fit(given, int(number), request.seed)
        kept = request.output.with_name(f"{request.output.name}.tfidf.npz")
        with atomic_file(kept) as path:
            fitted.save(path)
    else:
        fitted, kept = tfidf.load(Path(number)), Path(number)
    blocks = []
    for count, block in enumerate(catalogue):
        blocks.append(folder / f"rows-{count:08d}.npz")
        _tfidf_block(fitted, block).save(blocks[-1])
    return blocks, lambda: {"tfidf": kept.name, "variance_kept": fitted.explained, "terms": len(fitted.terms)}


def _tfidf_block(fitted: tfidf.TfIdf, block: list[Item]) -> Block:
    given = np.array([item.text is not None for item in block], bool)
    reasons = ["; ".join(item.wrong) for item in block]
    if not given.any():
        return Block(np.empty((0, 0), np.float32), given, np.array(reasons, str))
    values, known = fitted.encode([item.text for item in block if item.text is not None])
    for number in np.flatnonzero(given)[~known]:
        given[number] = False
        reasons[number] = "; ".join(filter(None, [reasons[number], "its text has none of the terms"]))
    return Block(values[known], given, np.array(reasons, str))


def _write(request: Request, items: Items, blocks: list[Path], made_by: Callable[[], dict[str, Any]]) -> Extracted:
    found = report.of(items)
    start, total = 0, np.zeros(1)
    for path in blocks:
        block = Block.load(path).cast(request.dtype)
        found.add(items.ids.slice(start, len(block.given)), block)
        start += len(block.given)
        if len(block.values):
            found.dim = block.values.shape[1]
            total = total + block.values.sum(0, dtype=np.float64)
    count = found.items - found.missing
    if not count:
        raise _nothing(request, found.failed[0][1] if found.failed else "")
    fill = total / count if request.fill == Fill.MEAN else np.zeros(found.dim)
    with atomic_file(request.output) as path:
        write = _write_parquet if request.output.suffix == ".parquet" else _write_npy
        write(path, request, items.ids, _filled(blocks, fill.astype(request.dtype)), found.dim)
    found.write(request, made_by())
    return found


def _nothing(request: Request, reason: str) -> InputError:
    sought = ", ".join([*request.text, *([request.images] if request.images else [])])
    message = f"{request.items}: no item has anything that can be encoded in {sought}"
    return InputError("; first: ".join(filter(None, [message, reason])), "extract.nothing")


def _filled(blocks: list[Path], fill: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows [n, d] of all items in order, in the type of `fill` [d], with a mask of the missing ones [n]."""
    for path in blocks:
        block = Block.load(path).cast(fill.dtype.name)
        values = np.repeat(fill[None], len(block.given), axis=0)
        if len(block.values):
            values[block.given] = block.values
        yield values, ~block.given


def _write_parquet(
    path: Path, request: Request, ids: pa.Array, rows: Iterator[tuple[np.ndarray, np.ndarray]], dim: int
) -> None:
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(request.dtype)), dim)
    schema = pa.schema([("item", ids.type), (request.modality, kind), ("missing", pa.bool_())])
    start = 0
    with pq.ParquetWriter(path, schema) as writer:
        for values, absent in rows:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
            columns = [ids.slice(start, len(values)), lists, pa.array(absent)]
            writer.write_batch(pa.record_batch(columns, schema))
            start += len(values)


def _write_npy(
    path: Path, request: Request, ids: pa.Array, rows: Iterator[tuple[np.ndarray, np.ndarray]], dim: int
) -> None:
    matrix = npy_file(path, request.dtype, (len(ids), dim))
    start = 0
    for values, _ in rows:
        matrix[start : start + len(values)] = values
        start += len(values)
    matrix.flush()
