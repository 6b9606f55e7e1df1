"""Stand-in until the sources' reader is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partition.read.table_file import TableFile, first_null
from partition.transform.dataset import TEST, TRAIN, VALIDATION

SPLIT_VALUES = {
    **{"0": TRAIN, "train": TRAIN, "training": TRAIN},
    **{"1": VALIDATION, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION},
    **{"2": TEST, "test": TEST},
}
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class Log:
    file: TableFile
    parquet: tuple[str, ...]
    columns: dict[str, str]
    numeric: dict[str, bool]
    dated: bool


def open_log(file: TableFile, roles: Mapping[str, str], extra: Sequence[str], folder: Path) -> Log:
    names = list(dict.fromkeys([*roles.values(), *extra]))
    table = file.read(names, [n for r, n in roles.items() if r in ("user", "item", "split", "event")])
    content, numeric, dated = {}, {}, False
    for role, name in roles.items():
        values = table[name].combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if role in ("user", "item"):
            if not (pa.types.is_integer(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_null(values.type)):
                raise file.error(f"has type {values.type}; ids are whole numbers or text", name, code="ids.type")
            if values.null_count:
                raise file.error("the id is missing", name, first_null(values), code="ids.missing")
            numeric[role] = pa.types.is_integer(values.type) or (
                file.is_text and bool(pc.all(pc.match_substring_regex(values, _WHOLE)).as_py() is not False)
            )
            if numeric[role]:
                try:
                    values = values.cast(pa.int64())
                except pa.ArrowInvalid:
                    raise file.error("an id is above 2^63 - 1", name, code="ids.range") from None
        elif role == "split":
            if values.null_count:
                raise file.error("the split label is missing", name, first_null(values), code="split.label")
            texts = values.to_pylist()
            labels = [SPLIT_VALUES.get(str(v).lower(), -1) for v in texts]
            if -1 in labels:
                row = labels.index(-1)
                raise file.error(
                    f"unknown split {texts[row]!r}; expected 0, 1, 2 or train, validation, test", name, row, code="split.label"
                )
            values = pa.array(labels, pa.int32())
        elif role == "time":
            kind = values.type
            if pa.types.is_temporal(kind):
                dated, values = True, pc.cast(values, pa.timestamp("us"), safe=False).cast(pa.int64())
            elif pa.types.is_integer(kind):
                values = values.cast(pa.int64())
            elif pa.types.is_floating(kind):
                values = pc.if_else(pc.is_finite(values), values, None).cast(pa.float64())
            else:
                raise file.error(f"has type {kind}; times are numbers or dates", name, code="time.type")
            if values.null_count:
                raise file.error("the time is missing", name, first_null(values), code="time.missing")
        elif role in ("rating", "weight"):
            values = values.cast(pa.float64())
        content["r_" + role] = values
    for name in extra:
        content[name] = table[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.table(content), path)
    columns = {role: "r_" + role for role in roles}
    return Log(file, (str(path),), columns, numeric, dated)
