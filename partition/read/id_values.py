"""External ids of every Arrow type as what they mean: whole numbers or text.

| type | becomes |
|---|---|
| integers; decimals and floats without a fraction | int64; text if one of the column is beyond 64 bits |
| string, large_string, string_view | text, as it is |
| UUID | text, as it is usually written: 123e4567-e89b-12d3-a456-426614174000 |
| fixed-size binary | text: hexadecimal digits |
| a dictionary or runs of these | what they are of |

Other types are refused by name.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "text"]

# A number as a program writes it: "007" and "1e3" are text.
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]*)$"
# Below these every whole number is a float of the type; above, two ids may have become one.
FLOAT_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}
_UUID_GROUPS = (8, 4, 4, 4, 12)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class BeyondInt64Error(Exception):
    """A whole number that does not fit 64 bits."""


def plain(values: pa.Array) -> pa.Array:
    """The values without dictionary, runs, views or narrow decimals: each row has its own."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        dictionary = plain(values.dictionary)
        return pa.DictionaryArray.from_arrays(values.indices, dictionary).dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(values))
    if pa.types.is_decimal(kind) and kind.bit_width < 128:  # Arrow computes with the wider ones alone
        return values.cast(pa.decimal128(kind.precision, kind.scale))
    return values.cast(pa.large_string()) if is_text(kind) else values


def is_text(kind: pa.DataType) -> bool:
    """True for the string types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of dictionaries and runs; other types as they are."""
    encoded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return value_type(kind.value_type) if encoded else kind


def id_kind(kind: pa.DataType) -> Kind | None:
    """What ids of a type are; None if it cannot hold ids. A column without a value counts as numbers."""
    kind = value_type(kind)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    if any(check(kind) for check in numbers):
        return "number"
    uuid = isinstance(kind, pa.UuidType)
    return "text" if is_text(kind) or uuid or pa.types.is_fixed_size_binary(kind) else None


def ids(values: pa.Array, kind: Kind) -> tuple[pa.Array, np.ndarray]:
    """Ids as int64 or large_string, null where they are missing.

    Args:
        values: of a type for which `id_kind` is not None.
        kind: what the whole column is; "text" also for numbers, of which one is beyond 64 bits.

    Returns:
        The ids; and [n] bool: the value is a number with a fraction, not finite, or a float that may stand for two
        numbers (`FLOAT_EXACT`), so that it cannot be an id. The id there is null.

    Raises:
        BeyondInt64Error: `kind` is "number", and a number does not fit.
    """
    values = plain(values)
    if id_kind(values.type) == "text":
        return _text(values), np.zeros(len(values), bool)
    numbers, wrong = _whole(values)
    try:
        return numbers.cast(pa.large_string() if kind == "text" else pa.int64()), wrong
    except pa.ArrowInvalid:
        raise BeyondInt64Error from None


def written_as_numbers(values: pa.Array) -> tuple[bool, bool]:
    """Whether all texts are written as whole numbers, and whether all of these fit 64 bits. Nulls count as such."""
    if pc.all(pc.match_substring_regex(values, WHOLE_NUMBER)).as_py() is False:
        return False, False
    try:
        values.cast(pa.int64())
    except pa.ArrowInvalid:
        return True, False
    return True, True


def as_numbers(texts: pa.Array) -> pa.Array:
    """Texts as int64; null where one is not a whole number of 64 bits."""
    try:
        return texts.cast(pa.int64())
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, pa.int64())
    half = len(texts) // 2
    return pa.concat_arrays([as_numbers(texts.slice(0, half)), as_numbers(texts.slice(half))])


def _whole(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Numbers of a type without fractions, null where there is one; and [n] bool: there is one."""
    kind, wrong = values.type, np.zeros(len(values), bool)
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values, wrong
    if pa.types.is_floating(kind):
        numbers = values.cast(pa.float64())
        right = pc.and_(pc.less(pc.abs(numbers), float(FLOAT_EXACT[kind])), pc.equal(pc.floor(numbers), numbers))
        target = pa.int64()
    else:
        numbers = values.cast(pa.decimal256(76, kind.scale)) if kind.scale > 0 else values
        right = pc.equal(pc.floor(numbers), numbers) if kind.scale > 0 else pa.repeat(True, len(values))
        target = pa.decimal256(76, 0)
    wrong = ~right.fill_null(True).to_numpy(zero_copy_only=False)
    return pc.if_else(right, numbers, None).cast(target), wrong


def _text(values: pa.Array) -> pa.Array:
    if not pa.types.is_fixed_size_binary(values.type) and not isinstance(values.type, pa.UuidType):
        return values
    uuid = isinstance(values.type, pa.UuidType)
    stored = values.storage if uuid else values
    width = stored.type.byte_width
    data = np.frombuffer(stored.buffers()[1] or b"", np.uint8)[
        stored.offset * width : (stored.offset + len(stored)) * width
    ]
    data = data.reshape(len(stored), width)
    digits = _HEX[np.stack([data >> 4, data & 15], axis=2).reshape(len(stored), 2 * width)]
    if uuid:
        dash = np.full((len(stored), 1), ord("-"), np.uint8)
        groups = np.split(digits, np.cumsum(_UUID_GROUPS)[:-1], axis=1)
        digits = np.concatenate([part for group in groups for part in (group, dash)][:-1], axis=1)
    offsets = np.arange(len(stored) + 1, dtype=np.int64) * digits.shape[1]
    text = pa.Array.from_buffers(
        pa.large_string(), len(stored), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits))]
    )
    return pc.if_else(stored.is_valid(), text, pa.scalar(None, pa.large_string()))
