"""Export as atomic files of RecBole: one per split and one of the items, in external ids.

RecBole keeps the split with `benchmark_filename: [train, valid, test]`.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from partition.export.mmrec import PLAIN
from partition.export.rows import (
    Target,
    as_text,
    contains,
    features,
    idle_users,
    interactions,
    item_slices,
    refuse_ids,
    zeros_for,
)
from partition.folder.read_dataset import PreparedFolder
from partition.transform.dataset import TEST, TRAIN, VALIDATION

SPLITS = {TRAIN: "train", VALIDATION: "valid", TEST: "test"}
# RecBole reads with pandas, which takes these for missing values.
MISSING = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
MISSING += ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]


def write(source: PreparedFolder, target: Target) -> list[str]:
    """Writes the files; returns lines for the user.

    - `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`: `user_id:token`, `item_id:token` and, if there
      are weights, `weight:float`, 1 where held out; no file for a split without interactions.
    - `NAME.item`: `item_id:token` and one `MODALITY_feat:float_seq` per modality.

    Raises:
        InputError: `export.ids`, RecBole would not read an id as it is.
    """
    broken, missing = contains(["\t", "\n", "\r", '"']), pa.array(MISSING, pa.large_string())
    refuse_ids(source, broken, "contain a tab, a line break or a quote, which RecBole does not read as they are")
    refuse_ids(source, lambda ids: pc.is_in(ids, missing), "would be missing values in RecBole")
    used = _write_interactions(source, target)
    _write_items(source, target)
    fields = ", ".join(f"{modality.name}_feat" for modality in source.manifest.modalities)
    weight = ", weight" if source.manifest.weighted else ""
    columns = f"{{inter: [user_id, item_id{weight}], item: [item_id, {fields}]}}"
    notes = [
        *idle_users(source),
        *zeros_for(source),
        f"for RecBole: data_path: the folder with {target.name}/; dataset: {target.name}; "
        f"benchmark_filename: [{', '.join(used)}]; load_col: {columns}",
    ]
    if target.output.name != target.name:
        notes.append(f"RecBole looks for {target.name}.item in a folder {target.name}")
    return notes


def _write_interactions(source: PreparedFolder, target: Target) -> list[str]:
    """Writes the interactions of every split that has some; returns the splits' names."""
    sizes = {TRAIN: source.manifest.train, VALIDATION: source.manifest.validation, TEST: source.manifest.test}
    used = {label: name for label, name in SPLITS.items() if sizes[label]}
    with ExitStack() as stack:
        files = {
            label: stack.enter_context((target.folder / f"{target.name}.{name}.inter").open("wb"))
            for label, name in used.items()
        }
        for file in files.values():
            file.write(b"user_id:token\titem_id:token" + (b"\tweight:float\n" if source.manifest.weighted else b"\n"))
        for block in interactions(source, target.folder):
            for label, file in files.items():
                rows = block.split == label
                columns = {
                    kind: source.ids[kind].take(pa.array(number[rows]))
                    for kind, number in (("user", block.user), ("item", block.item))
                }
                columns |= {} if block.weight is None else {"weight": pa.array(block.weight[rows])}
                csv.write_csv(pa.table(columns), file, PLAIN)
    return list(used.values())


def _write_items(source: PreparedFolder, target: Target) -> None:
    matrices = features(source, target.folder)
    with (target.folder / f"{target.name}.item").open("wb") as file:
        file.write("\t".join(["item_id:token", *(f"{name}_feat:float_seq" for name in matrices)]).encode() + b"\n")
        for rows in item_slices(matrices):
            columns = {"item_id": as_text(source.ids["item"][rows.start : rows.stop])}
            columns |= {name: _sequences(values[rows]) for name, values in matrices.items()}
            csv.write_csv(pa.table(columns), file, PLAIN)


def _sequences(values: np.ndarray) -> pa.Array:
    """Returns rows [n, dim] as text [n]: numbers separated by blanks, in the fewest digits that give them back."""
    wide = values.astype(np.float32) if values.dtype == np.float16 else values
    text = pa.array(wide.ravel()).cast(pa.string())
    ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1]))
    return pc.binary_join(pa.ListArray.from_arrays(ends, text), " ")
