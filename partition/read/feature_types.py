"""Which Arrow types hold feature rows: one list or tensor of numbers per item.

A column of lists is one of three things. Lists of numbers are features. Lists of numbers in a form that is not read
(decimals, truth values, matrices) are refused by name, because leaving them out would train without them. Lists of
anything else (tags, categories) are attributes of the items: they are features only by mistake, if someone names them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyarrow as pa

_FLOATS = (pa.float16(), pa.float32(), pa.float64())
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def is_feature_type(kind: pa.DataType) -> bool:
    """True for a type that is read as rows of numbers.

    These are lists of any kind of floats or integers, lists of one such list (to any depth), and tensors of fixed shape
    with one dimension other than 1.
    """
    return is_list_type(kind) and why_unusable(kind) is None


def is_refused_type(kind: pa.DataType) -> bool:
    """True for lists and tensors of numbers that cannot be read: they are refused, not ignored."""
    return why_unusable(kind) is not None and _is_number(_innermost(kind))


def why_unusable(kind: pa.DataType) -> str | None:
    """Why a column of lists or tensors is not a feature modality; None if it is one, or holds no lists.

    Returns:
        The end of a sentence that begins with the column: "holds lists of decimal128(5, 2); ...".
    """
    if not is_list_type(kind):
        return None
    inner = _innermost(kind)
    for level in _levels(kind):
        if isinstance(level, pa.FixedShapeTensorType) and math.prod(level.shape) != max(level.shape, default=0):
            shape = ", ".join(map(str, level.shape))
            return f"holds tensors of shape ({shape}); flatten each to one row of {math.prod(level.shape)} numbers"
    if inner in _FLOATS + _INTEGERS:
        plain = not (pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind))
        return None if plain else f"holds encoded lists ({kind}); store them as plain lists"
    if _is_number(inner):
        return f"holds lists of {inner}; store them as lists of float or double"
    return f"holds lists of {inner}, not of numbers"


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type that the values of a feature type are read in: their own if they are floats, else float32."""
    inner = _innermost(kind)
    return inner if inner in _FLOATS else pa.float32()


def is_list_type(kind: pa.DataType) -> bool:
    """True for lists of any kind and tensors, whatever they hold."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_list_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return is_list_type(kind.value_type)
    return any(check(kind) for check in _LISTS)


def _innermost(kind: pa.DataType) -> pa.DataType:
    """The type of the values in lists, of lists, ... of them."""
    *_, inner = _levels(kind)
    return inner


def _levels(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The type itself and, one inside the other, those of its lists and values."""
    yield kind
    while is_list_type(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
        yield kind


def _is_number(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == "arrow.bool8"
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_number(kind.value_type)
    return bool(kind in _FLOATS + _INTEGERS or pa.types.is_decimal(kind) or pa.types.is_boolean(kind))
