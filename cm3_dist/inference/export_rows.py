"""Writes final embeddings as Parquet, per part and node type one file, and a manifest; see docs/outputs.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from cm3_dist.config.run_files import versions
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import everywhere
from cm3_dist.distributed.oom_advice import explained
from cm3_dist.errors import InputError
from cm3_dist.inference.atomic_output import StagedOutput, stage_folder
from cm3_dist.inference.id_map import IdMap
from cm3_dist.inference.trained_model import TrainedModel
from partition.files import sha256

if TYPE_CHECKING:
    from cm3_dist.inference.faiss_index import IndexType

SCHEMA_VERSION = 1
EXPORT_MANIFEST = "manifest.json"
BLOCK = 65_536  # rows per row group: as many are copied and written at a time
SCORE = "inner product of a user's and an item's embedding, not normalised"

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Export:
    """The rows of all ranks, in a temporary folder, and their manifest, complete but for the index."""

    staged: StagedOutput
    manifest: dict[str, Any]
    index: IndexType | None
    settings: Settings

    def finish(self) -> dict[str, Any]:
        """Builds the index, writes the manifest and publishes the folder. Not collective; only rank 0 does anything.

        Returns:
            The manifest; on other ranks without the index.

        Raises:
            InputError: the folder cannot be written, or there is nothing to index.
            OutOfMemoryError: the index does not fit in memory.
        """
        if self.staged.is_rank_0:
            with self.staged.writing(), explained(self.settings, 0, training=False):
                if self.index is not None:
                    from cm3_dist.inference.faiss_index import build_index

                    width, seed = self.manifest["width"], self.settings.train.seed
                    self.manifest["index"] = build_index(self.staged.folder, self.index, width, seed)
                text = json.dumps(self.manifest, indent=1) + "\n"
                (self.staged.folder / EXPORT_MANIFEST).write_text(text, encoding="utf-8")
                self.staged.publish()
        return self.manifest


def write_rows(
    model: TrainedModel,
    out: Path,
    *,
    dtype: Dtype = "float32",
    modality_rows: bool = False,
    index: IndexType | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes the rows, each rank its own parts, block by block; `Export.finish` makes the folder appear. Collective.

    Args:
        model: the model.
        out: the folder.
        dtype: of the embeddings.
        modality_rows: add the items' modality channels and fused rows before propagation.
        index: type of a FAISS index of the items, which `Export.finish` builds.
        overwrite: whether to replace an earlier export.

    Raises:
        InputError: the folder exists or cannot be written, or a value is out of range of `dtype`.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"dtype {dtype!r}: there are float32 and float16", "export.dtype")
    staged = stage_folder(out, model.runtime, EXPORT_MANIFEST, overwrite)
    with staged.writing():
        user_columns = {"embedding": model.rows[0]}
        item_columns = {"embedding": model.rows[1]}
        if modality_rows:
            names = [*(f"modality_{modality.name}" for modality in model.manifest.modalities), "fused"]
            item_columns |= zip(names, model.item_ego.split(model.settings.model.dim, dim=1), strict=True)
        written: dict[str, dict[str, Any]] = {}

        def write() -> None:
            sizes = [model.manifest.parts[part] for part in model.shard.parts]
            total = sum(part.users + part.items for part in sizes)
            disable = None if model.runtime.rank == 0 else True
            with tqdm(total=total, desc="export", unit="row", unit_scale=True, disable=disable, leave=False) as bar:
                for ids, columns in ((model.user_ids, user_columns), (model.item_ids, item_columns)):
                    written.update(_write_parts(staged.folder, model.shard.parts, ids, columns, dtype, bar.update))

        everywhere(model.runtime, write, out)
        files: list[dict[str, dict[str, Any]]] = [{} for _ in range(model.runtime.world_size)]
        dist.all_gather_object(files, written, group=model.runtime.control)
    listed = {name: entry for each in files for name, entry in each.items()}
    content = _manifest(model, dtype, modality_rows, dict(sorted(listed.items())))
    return Export(staged, content, index, model.settings)


def _write_parts(
    folder: Path, parts: range, ids: IdMap, columns: dict[str, Tensor], dtype: Dtype, progress: Callable[[int], object]
) -> dict[str, dict[str, Any]]:
    """Writes the files of one node type; `columns` hold the rows of all `parts`. Returns their entries by name."""
    (folder / f"{ids.node_type}s").mkdir(exist_ok=True)
    entries = {}
    for position, part in enumerate(parts):
        own = {name: rows.chunk(len(parts))[position] for name, rows in columns.items()}
        name = f"{ids.node_type}s/part-{part:05d}.parquet"
        rows = _write_part(folder / name, ids.part(part), own, dtype, progress)
        path = folder / name
        entries[name] = {"rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return entries


def _write_part(
    path: Path, nodes: pa.Table, columns: dict[str, Tensor], dtype: Dtype, progress: Callable[[int], object]
) -> int:
    """Streams one part in row groups of BLOCK rows; returns the number of rows."""
    kind = pa.float32() if dtype == "float32" else pa.float16()
    fields = [nodes.schema.field("id"), nodes.schema.field("train_degree")]
    fields += [pa.field(name, pa.list_(kind, rows.shape[1])) for name, rows in columns.items()]
    # Floats hardly repeat: dictionaries and statistics of them would cost time and space.
    options: dict[str, Any] = {"use_dictionary": ["id"], "write_statistics": ["id", "train_degree"]}
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd", **options) as writer:
        for begin in range(0, nodes.num_rows, BLOCK):
            block = nodes.slice(begin, BLOCK)
            embeddings = [
                _embedding_column(rows[begin : begin + block.num_rows], dtype, f"{path.parent.name}: {name}")
                for name, rows in columns.items()
            ]
            writer.write_table(pa.table([block["id"], block["train_degree"], *embeddings], schema=pa.schema(fields)))
            progress(block.num_rows)
    return int(nodes.num_rows)


def _embedding_column(rows: Tensor, dtype: Dtype, name: str) -> pa.Array:
    with np.errstate(over="ignore"):
        values = rows.cpu().numpy().astype(dtype, copy=False)
    if not np.isfinite(values).all():
        hint = "; use float32" if dtype == "float16" else ""
        raise InputError(f"{name}: a value is not finite in {dtype}{hint}", "export.not-finite")
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _manifest(model: TrainedModel, dtype: Dtype, modality_rows: bool, files: dict[str, Any]) -> dict[str, Any]:
    manifest, dim = model.manifest, model.settings.model.dim
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(model.folder),
        "checkpoint": model.checkpoint.name,
        "best_epoch": model.record["best_epoch"],
        "validation": model.record["best_metrics"],
        "data": {"name": manifest.name, "digest": manifest.digest()},
        "users": manifest.users,
        "items": manifest.items,
        "parts": manifest.num_parts,
        "dtype": dtype,
        "dim": dim,
        "width": dim * len(model.channels),
        "channels": model.channels,
        "modality_rows": modality_rows,
        "score": SCORE,
        "files": files,
        "settings": model.settings.plain(),
        "versions": versions(),
        "index": None,
    }


def print_export(out: Path, manifest: dict[str, Any]) -> None:
    """Prints what an export holds."""
    print(
        f"{out}: {manifest['users']:,} users and {manifest['items']:,} items, "
        f"{manifest['width']} x {manifest['dtype']}, from {manifest['checkpoint']}"
    )
    if index := manifest["index"]:
        parts = [f"index {index['kind']}: recall@20 {index['recall@20']:.4f} against exact search"]
        parts += [f"{index['queries']:,} users"]
        parts += [f"{name} {index[name]}" for name in ("ef_search", "nprobe") if name in index]
        print(", ".join(parts))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        InputError: `folder` is not an export, or has another schema version.
    """
    path = folder / EXPORT_MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        message = f"{path}: cannot be read; an export is made with python -m cm3_dist.export"
        raise InputError(message, "export.missing") from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION or "files" not in content:
        message = f"{path}: is not the manifest of an export of schema version {SCHEMA_VERSION}"
        raise InputError(message, "export.format")
    return content


def read_batches(
    folder: Path, kind: Literal["users", "items"], columns: list[str], rows: int = BLOCK
) -> Iterator[pa.RecordBatch]:
    """Streams exported rows, part by part, in the order of their row numbers."""
    for name in read_manifest(folder)["files"]:
        if name.startswith(f"{kind}/"):
            with pq.ParquetFile(folder / name) as file:
                yield from file.iter_batches(rows, columns=columns)
