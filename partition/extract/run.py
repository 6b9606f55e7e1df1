"""Encodes the items table into feature rows on disk, block by block, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.columns_on_disk import npy_file
from partition.errors import InputError
from partition.extract import tfidf
from partition.extract.encoders import Encoder, Piece
from partition.extract.images import Picture, UnreadableError
from partition.extract.items import Item, Items
from partition.extract.loading import load_encoder
from partition.extract.request import BLOCK, Fill, Request
from partition.files import atomic_file
from partition.resume import work_folder

if TYPE_CHECKING:
    from PIL.Image import Image

_GIVEN, _MISSING, _UNREADABLE = 0, 1, 2
_READERS = 8  # threads that load images while the encoder works


class _MemoryFullError(Exception):
    pass


@dataclass(frozen=True)
class Extracted:
    """What was written."""

    items: int
    dim: int
    missing: int  # items without text or image
    unreadable: list[str]  # why images could not be read, one line each

    def report(self, request: Request) -> list[str]:
        """Lines for the user."""
        missing = "none missing"
        if self.missing:
            missing = f"{self.missing:,} with nothing to encode, filled with {request.fill}"
        lines = [f"{request.output}: {self.items:,} items, {self.dim} wide; {missing}"]
        lines += [f"  unreadable: {reason}" for reason in self.unreadable[:3]]
        if len(self.unreadable) > 3:
            lines.append(f"  and {len(self.unreadable) - 3:,} more, listed in {request.beside}")
        features = f"--features {request.modality}={request.output}"
        return [*lines, f"Next: python -m partition build --input LOG {features} --parts 4 --output PREPARED"]


def extract(request: Request) -> Extracted:
    """Writes the rows, and a JSON file beside them that describes them.

    Raises:
        InputError: anything wrong with the options, the items or the model; nothing is written then.
    """
    request.check()
    items = Items(request.items, request.item_column, request.text, request.images)
    # A model, images and terms may be files, or the name of a model on the hub, a column, or a number.
    inputs = [str(request.items), *filter(None, (request.model, request.images, request.tfidf))]
    request.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with work_folder(request.output, request.decides(), inputs) as work:
            if request.tfidf is not None:
                blocks, made_by = _by_tfidf(request, items, work.folder)
            else:
                blocks, made_by = _by_model(request, items, work.result)
            return _write(request, items, blocks, made_by)
    except _MemoryFullError:
        raise InputError(
            f"the GPU has not enough memory for {request.batch_size} items at a time; the same command with a smaller "
            "--batch-size resumes this one",
            "extract.memory",
        ) from None


def _by_model(
    request: Request, items: Items, result: Callable[[str, Callable[[Path], object]], Path]
) -> tuple[list[Path], dict[str, Any]]:
    @cache
    def loaded() -> Encoder:
        encoder = load_encoder(request)
        result("kind", lambda path: path.write_text(encoder.kind, encoding="utf-8"))
        return encoder

    def make(block: list[Item]) -> Callable[[Path], object]:
        def save(path: Path) -> None:
            values, state, reasons = _encode(loaded(), block, request)
            with path.open("wb") as file:
                np.savez(file, values=values, state=state, reasons=np.array(reasons, str))

        return save

    blocks = []
    with tqdm(total=len(items.ids), desc=request.modality, unit="item", disable=None) as bar:
        for number, block in enumerate(items.blocks(BLOCK)):
            blocks.append(result(f"rows-{number:08d}.npz", make(block)))
            bar.update(len(block))
    kind = result("kind", lambda path: path.write_text(loaded().kind, encoding="utf-8"))
    model = {"model": request.model, "revision": request.revision, "called_as": kind.read_text(encoding="utf-8")}
    return blocks, {**model, "max_tokens": request.max_tokens}


def _by_tfidf(request: Request, items: Items, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Encodes all texts at once, because the weights of the terms depend on the whole catalogue."""
    texts = [[item.text for item in block] for block in items.blocks(BLOCK)]
    given = [text for block in texts for text in block if text is not None]
    if not given:
        raise InputError(f"{request.items}: no item has a text in {', '.join(request.text)}", "extract.nothing")
    number = str(request.tfidf)
    if number.isdecimal() and int(number):
        fitted = tfidf.fit(given, int(number), request.seed)
        kept = request.output.with_name(f"{request.output.name}.tfidf.npz")
        with atomic_file(kept) as path:
            fitted.save(path)
    else:
        fitted, kept = tfidf.load(Path(number)), Path(number)
    blocks = []
    for count, block in enumerate(texts):
        state = np.array([_GIVEN if text is not None else _MISSING for text in block], np.int8)
        values = fitted.encode([text for text in block if text is not None]) if not state.all() else np.empty((0, 0))
        blocks.append(folder / f"rows-{count:08d}.npz")
        np.savez(blocks[-1], values=values, state=state, reasons=np.array([], str))
    return blocks, {"tfidf": kept.name, "variance_kept": fitted.explained, "terms": len(fitted.terms)}


def _encode(encoder: Encoder, block: list[Item], request: Request) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows [n, d] of the items with something to encode, the states of all [items], and why images are unreadable."""
    state = np.full(len(block), _MISSING, np.int8)
    filled = [number for number, item in enumerate(block) if item.text is not None or item.picture is not None]
    filled.sort(key=lambda number: len(block[number].text or ""))  # texts of similar length share a batch
    batches = [filled[begin : begin + request.batch_size] for begin in range(0, len(filled), request.batch_size)]
    rows: dict[int, np.ndarray] = {}
    reasons: list[str] = []
    for numbers, images in _ahead(batches, block):
        pieces: dict[int, Piece] = {}
        for number, image in zip(numbers, images, strict=True):
            if isinstance(image, UnreadableError):
                reasons.append(str(image))
                state[number], image = _UNREADABLE, None
            if image is not None or block[number].text is not None:
                pieces[number] = Piece(block[number].text, image)
                state[number] = _GIVEN
        if pieces:
            rows.update(zip(pieces, _rows(encoder, list(pieces.values())), strict=True))
    values = np.stack([rows[number] for number in sorted(rows)]) if rows else np.empty((0, 0), np.float32)
    return values, state, reasons


def _rows(encoder: Encoder, pieces: list[Piece]) -> np.ndarray:
    import torch

    try:
        return encoder.encode(pieces)
    except torch.OutOfMemoryError:
        raise _MemoryFullError from None


def _ahead(
    batches: list[list[int]], block: Sequence[Item]
) -> Iterator[tuple[list[int], list[Image | UnreadableError | None]]]:
    """Batches with their images; those of the next batch are loaded in the background."""
    with ThreadPoolExecutor(_READERS) as readers:
        loading = [readers.submit(_open, block[number].picture) for number in batches[0]] if batches else []
        for numbers, following in zip(batches, [*batches[1:], []], strict=True):
            current = loading
            loading = [readers.submit(_open, block[number].picture) for number in following]
            yield numbers, [future.result() for future in current]


def _open(picture: Picture | None) -> Image | UnreadableError | None:
    try:
        return None if picture is None else picture.load()
    except UnreadableError as reason:
        return reason


def _write(request: Request, items: Items, blocks: list[Path], made_by: dict[str, Any]) -> Extracted:
    dim, count = 0, 0
    total, reasons = np.zeros(1), []
    for path in blocks:
        with np.load(path, allow_pickle=False) as block:
            values = block["values"]
            reasons += block["reasons"].tolist()
        if len(values):
            dim = values.shape[1]
            count += len(values)
            total = total + values.sum(0, dtype=np.float64)
    if not count:
        sought = ", ".join([*request.text, *([request.images] if request.images else [])])
        why = f"; {reasons[0]}" if reasons else ""
        message = f"{request.items}: no item has anything to encode in {sought}{why}"
        raise InputError(message, "extract.nothing")
    fill = total / count if request.fill == Fill.MEAN else np.zeros(dim)
    missing: list[Any] = []
    with atomic_file(request.output) as path:
        write = _write_parquet if request.output.suffix == ".parquet" else _write_npy
        write(path, request, items.ids, _filled(blocks, fill, items.ids, missing, request), dim)
    about = {
        "items": len(items.ids),
        "modality": request.modality,
        "dim": dim,
        "dtype": request.dtype,
        "text": request.text,
        "images": request.images,
        **made_by,
        "fill": request.fill,
        "missing": missing,
        "unreadable": reasons,
    }
    with atomic_file(request.beside) as path:
        path.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Extracted(len(items.ids), dim, len(missing), reasons)


def _filled(
    blocks: list[Path], fill: np.ndarray, ids: pa.Array, missing: list[Any], request: Request
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows [n, d] of all items in order with a mask of the missing ones [n]; appends the ids of those to `missing`."""
    start = 0
    for path in blocks:
        with np.load(path, allow_pickle=False) as block:
            state, found = block["state"], block["values"]
        values = np.repeat(fill[None].astype(request.dtype), len(state), axis=0)
        if len(found):
            values[state == _GIVEN] = found.astype(request.dtype)
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(wrong):
            message = f"item {ids[start + int(wrong[0])].as_py()!r}: the encoder's row is not finite"
            raise InputError(message, "extract.value")
        missing += ids.take(pa.array(start + np.flatnonzero(state != _GIVEN))).to_pylist()
        yield values, state != _GIVEN
        start += len(state)


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
