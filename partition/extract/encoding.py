"""Encodes blocks of items. What one item's text or image raises counts against that item alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from partition.errors import InputError, ResourceError
from partition.extract.encoders import Encoder, Piece
from partition.extract.images import Picture, UnreadableError
from partition.extract.items import Item
from partition.extract.reasons import one_bad_item, reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

_READERS = 8  # threads that load images while the encoder works
_HOPELESS = 64  # items that fail one after another before any succeeds: the encoder is at fault, not they


@dataclass(frozen=True)
class Block:
    """The result of consecutive items, n in number, of which g have a row of width d."""

    values: np.ndarray  # [g, d] float32
    given: np.ndarray  # [n] bool: has a row
    reasons: np.ndarray  # [n] str: what could not be used, and why; "" if there is nothing to say

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        with path.open("wb") as file:
            np.savez(file, values=self.values, given=self.given, reasons=self.reasons)

    @classmethod
    def load(cls, path: Path) -> Block:
        """Reads a file written by `save`."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["values"], stored["given"], stored["reasons"])

    def cast(self, dtype: str) -> Block:
        """The block with values of another type; an item whose row does not fit into it loses the row."""
        with np.errstate(over="ignore"):
            values = self.values.astype(dtype)
        fits = np.isfinite(values).all(axis=1)
        if fits.all():
            return Block(values, self.given, self.reasons)
        given, reasons = self.given.copy(), self.reasons.tolist()
        for number in np.flatnonzero(given)[~fits]:
            given[number] = False
            reasons[number] = "; ".join(filter(None, [reasons[number], f"its row is too large for --dtype {dtype}"]))
        return Block(values[fits], given, np.array(reasons, str))


class BlockEncoder:
    """Encodes blocks of items in batches.

    Args:
        load: loads the encoder; called when the first item needs it.
        batch_size: items encoded at a time.
        characters: of a text; what lies beyond is cut off before the encoder cuts it by tokens.
        proven: whether an earlier try encoded something with this encoder.
    """

    def __init__(self, load: Callable[[], Encoder], batch_size: int, characters: int, proven: bool) -> None:
        self._load, self._batch_size, self._characters, self._proven = load, batch_size, characters, proven
        self._failed = 0  # items, while none has succeeded

    def encode(self, block: Sequence[Item]) -> Block:
        """Encodes a block.

        Raises:
            ResourceError: the GPU has not enough memory, or has failed.
            InputError: the encoder cannot be loaded, or fails on everything.
        """
        reasons: list[list[str]] = [list(item.wrong) for item in block]
        rows: dict[int, np.ndarray] = {}
        for numbers, images in _ahead(self._batches(block), block):
            pieces: dict[int, Piece] = {}
            for number, image in zip(numbers, images, strict=True):
                text = block[number].text
                if isinstance(image, UnreadableError):
                    reasons[number].append(str(image))
                    image = None
                if image is not None or text is not None:
                    pieces[number] = Piece(None if text is None else text[: self._characters], image)
            if pieces:
                for number, row in zip(pieces, self._rows(list(pieces.values())), strict=True):
                    if isinstance(row, str):
                        reasons[number].append(row)
                    else:
                        rows[number] = row
        values = np.stack([rows[number] for number in sorted(rows)]) if rows else np.empty((0, 0), np.float32)
        given = np.array([number in rows for number in range(len(block))], bool)
        return Block(values, given, np.array(["; ".join(found) for found in reasons], str))

    def _batches(self, block: Sequence[Item]) -> list[list[int]]:
        filled = [number for number, item in enumerate(block) if item.text is not None or item.picture is not None]
        filled.sort(key=lambda number: len(block[number].text or ""))  # texts of similar length share a batch
        return [filled[begin : begin + self._batch_size] for begin in range(0, len(filled), self._batch_size)]

    def _rows(self, pieces: list[Piece]) -> list[np.ndarray | str]:
        """The row of each item, [d] float32, or why it has none."""
        encoder = self._load()
        try:
            found = list(encoder.encode(pieces))
        except BaseException as error:  # processors and models raise whatever they like
            if not one_bad_item(error):
                raise
            self._check_device(error, len(pieces))
            if len(pieces) > 1:
                return [self._rows([piece])[0] for piece in pieces]  # finds the culprit, keeps the others
            self._check_hope(error)
            return [f"cannot be encoded: {reason_of(error)}"]
        self._proven = True
        return [row if np.isfinite(row).all() else "the encoder's row is not finite" for row in found]

    def _check_device(self, error: BaseException, count: int) -> None:
        """Raises ResourceError if the batch was too large, or if the GPU answers no more."""
        import torch

        if isinstance(error, torch.OutOfMemoryError) and self._batch_size > 1:
            message = f"the GPU has not enough memory for {self._batch_size} items at a time; the same command with a "
            raise ResourceError(f"{message}smaller --batch-size resumes this one", "extract.memory")
        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                message = f"the GPU failed at one of {count} items: {reason_of(error)}; the same command with --device "
                raise ResourceError(f"{message}cpu resumes and finds it", "extract.device") from None

    def _check_hope(self, error: BaseException) -> None:
        self._failed += 1
        if not self._proven and self._failed >= _HOPELESS:
            message = f"none of the first {self._failed} items can be encoded; last: {reason_of(error)}"
            raise InputError(message, "extract.nothing")


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
