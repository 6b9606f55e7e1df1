"""Export as a data set of MMRec, the code base of CM3's authors: numbered users and items, a feature row per item.

`python -m partition build` reads the folder again, with the same split, the same order of items, and the same features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from partition.columns_on_disk import npy_file
from partition.export.rows import Target, as_text, contains, idle_users, interactions, refuse_ids, zeros_for
from partition.folder.read_dataset import PreparedFolder

ID_ROWS = 1 << 20  # ids written at a time
PLAIN = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")


def write(source: PreparedFolder, target: Target) -> list[str]:
    """Writes the files; returns lines for the user.

    - `NAME.inter`: `userID`, `itemID`, `x_label` (0 training, 1 validation, 2 test), separated by tabs; if there are
      weights also `weight`, which MMRec does not use.
    - `MODALITY_feat.npy`: row r belongs to item r.
    - `u_id_mapping.csv` (`user_id`, `userID`) and `i_id_mapping.csv` (`asin`, `itemID`): the external ids.

    Raises:
        InputError: `export.ids`, an id contains a tab or a line break.
    """
    refuse_ids(source, contains(["\t", "\n", "\r"]), "contain a tab or a line break, which MMRec's files cannot hold")
    folder, name = target.folder, target.name
    last = _write_interactions(source, folder / f"{name}.inter", folder)
    for kind, file, header in (
        ("user", "u_id_mapping.csv", "user_id\tuserID"),
        ("item", "i_id_mapping.csv", "asin\titemID"),
    ):
        _write_ids(source.ids[kind], folder / file, header)
    for modality in source.manifest.modalities:
        path = folder / f"{modality.name}_feat.npy"
        values = npy_file(path, np.dtype(modality.dtype), (source.manifest.items, modality.dim))
        source.copy_features(modality, values)
        values.flush()
    notes = [*idle_users(source), *zeros_for(source)]
    if last + 1 < source.manifest.items:
        notes.append(f"the last item with an interaction is {last}: MMRec takes {last + 1:,} for the number of items")
    if target.output.name != name:
        notes.append(f"MMRec looks for {name}.inter in a folder {name}")
    return notes


def _write_interactions(source: PreparedFolder, path: Path, scratch: Path) -> int:
    """Writes NAME.inter; returns the largest item number in it."""
    last, weighted = 0, source.manifest.weighted
    with path.open("wb") as file:
        file.write(b"userID\titemID\tx_label" + (b"\tweight\n" if weighted else b"\n"))
        for block in interactions(source, scratch):
            columns = {"userID": block.user, "itemID": block.item, "x_label": block.split}
            columns |= {} if block.weight is None else {"weight": block.weight}
            csv.write_csv(pa.table(columns), file, PLAIN)
            last = max(last, int(block.item.max()))
    return last


def _write_ids(ids: pa.Array, path: Path, header: str) -> None:
    with path.open("wb") as file:
        file.write(header.encode() + b"\n")
        for begin in range(0, len(ids), ID_ROWS):
            own = as_text(ids[begin : begin + ID_ROWS])
            csv.write_csv(pa.table({"id": own, "number": np.arange(begin, begin + len(own))}), file, PLAIN)
