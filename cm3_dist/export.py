"""Writes the final user and item rows of a run as Parquet, with the users' and items' own ids::

    python -m cm3_dist.export runs/baby --out exports/baby
    torchrun --nproc_per_node=2 -m cm3_dist.export runs/baby --out exports/baby --dtype float16 --modality-rows

One file a part, whatever the number of ranks; docs/outputs.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from cm3_dist.inference.id_map import OwnIds
    from cm3_dist.inference.trained_model import FinishedRun

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
BLOCK = 65_536  # rows of a row group: what is copied and written at a time
SCORE = "inner product of a user's and an item's embedding, not normalised"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Index(str, Enum):
    """Choices of `--index`."""

    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"


class Dtype(str, Enum):
    """Choices of `--dtype`."""

    float32 = "float32"
    float16 = "float16"


@app.command(help="Write the final user and item rows of a run as Parquet, with your own ids.")
def command(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write")],
    overrides: Overrides = None,
    dtype: Annotated[Dtype, typer.Option(help="of the rows")] = Dtype.float32,
    modality_rows: Annotated[
        bool, typer.Option("--modality-rows", help="add the items' fused row and modality channels before propagation")
    ] = False,
    index: Annotated[
        Index | None,
        typer.Option(help="build a FAISS index of the items and measure its recall; hnsw or ivf for large catalogues"),
    ] = None,
    checkpoint: CheckpointName = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export")] = False,
) -> None:
    """Command line; the help text is above."""
    settings = run_settings(run, overrides or [])
    with distributed(settings.machine) as runtime:
        from cm3_dist.inference.trained_model import FinishedRun

        finished = FinishedRun(settings, runtime, checkpoint)
        manifest = export(
            finished,
            out,
            dtype=dtype.value,
            modality_rows=modality_rows,
            index=index.value if index else None,
            overwrite=overwrite,
        )
        if runtime.rank == 0:
            print(
                f"{out}: {manifest['users']:,} users and {manifest['items']:,} items, "
                f"{manifest['width']} x {manifest['dtype']}, from {manifest['checkpoint']}"
            )
            if found := manifest["index"]:
                print(f"index {found['kind']}: recall@20 {found['recall@20']:.4f} against exact search", end=", ")
                chosen = {name: found[name] for name in ("ef_search", "nprobe") if name in found}
                print(f"{found['queries']:,} users", *(f"{name} {value}" for name, value in chosen.items()), sep=", ")


def export(
    run: FinishedRun,
    out: Path,
    *,
    dtype: str = "float32",
    modality_rows: bool = False,
    index: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the folder `out`: every rank its own parts, block by block. Collective. Returns the manifest.

    Args:
        run: the model.
        out: the folder.
        dtype: "float32" or "float16".
        modality_rows: add the items' modality channels and fused rows.
        index: "flat", "hnsw" or "ivf": rank 0 builds that FAISS index of the items, the others wait.
        overwrite: replace an earlier export.

    Raises:
        InputError: the folder is taken or cannot be written, or a value does not fit `dtype`.
    """
    import torch.distributed as dist
    from tqdm import tqdm

    from cm3_dist.distributed.collectives import everywhere, on_rank_0
    from cm3_dist.inference.atomic_output import new_folder
    from cm3_dist.inference.id_map import OwnIds

    runtime, manifest = run.runtime, run.manifest
    users, items = run.rows
    ego = run.item_ego if modality_rows else None
    own = len(run.shard.parts)
    found: dict[str, dict[str, Any]] = {}
    with new_folder(out, runtime, MANIFEST, overwrite) as folder:

        def write() -> None:
            sizes = [manifest.parts[part] for part in run.shard.parts]
            total = sum(part.users + part.items for part in sizes)
            quiet = None if runtime.rank == 0 else True
            with tqdm(total=total, desc="export", unit="row", unit_scale=True, disable=quiet, leave=False) as bar:
                for kind, rows, extra in (("user", users, None), ("item", items, ego)):
                    ids = OwnIds(run.shard.root, manifest, kind)  # type: ignore[arg-type]
                    (folder / f"{kind}s").mkdir(exist_ok=True)
                    for index, part in enumerate(run.shard.parts):
                        stride = len(rows) // own
                        block = slice(index * stride, (index + 1) * stride)
                        name = f"{kind}s/part-{part:05d}.parquet"
                        columns = {"embedding": rows[block]}
                        if extra is not None:
                            columns |= _ego_columns(run, extra[block])
                        count = _write_part(folder / name, ids, part, columns, dtype, bar.update)
                        found[name] = _described(folder / name, count)

        everywhere(runtime, write)
        files: list[dict[str, dict[str, Any]]] = [{} for _ in range(runtime.world_size)]
        dist.all_gather_object(files, found, group=runtime.control)
        listed = {name: entry for each in files for name, entry in each.items()}
        content = _manifest(run, dtype, modality_rows, dict(sorted(listed.items())))
        content["index"] = _indexed(run, folder, index, content["width"]) if index else None
        text = json.dumps(content, indent=1) + "\n"
        on_rank_0(runtime, lambda: (folder / MANIFEST).write_text(text, encoding="utf-8"))
    return content


def _indexed(run: FinishedRun, folder: Path, kind: str, width: int) -> dict[str, Any]:
    """Lets rank 0 build the index; all ranks learn what it is like."""
    import torch.distributed as dist

    from cm3_dist.distributed.collectives import on_rank_0

    found: list[dict[str, Any]] = [{}]

    def build() -> None:
        from cm3_dist.inference.faiss_index import build_index

        found[0] = build_index(folder, kind, width, run.settings.train.seed)  # type: ignore[arg-type]

    on_rank_0(run.runtime, build)
    dist.broadcast_object_list(found, group_src=0, group=run.runtime.control)
    return found[0]


def _ego_columns(run: FinishedRun, rows: Tensor) -> dict[str, Tensor]:
    blocks = rows.split(run.settings.model.dim, dim=1)
    names = [*(f"modality_{modality.name}" for modality in run.manifest.modalities), "fused"]
    return dict(zip(names, blocks, strict=True))


def _write_part(path: Path, ids: OwnIds, part: int, columns: dict[str, Tensor], dtype: str, done: Any) -> int:
    """Streams one part in row groups of BLOCK rows; returns its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    nodes = ids.part(part)
    kind = pa.float32() if dtype == "float32" else pa.float16()
    fields = [pa.field("id", ids.type), pa.field("train_degree", pa.int64())]
    fields += [pa.field(name, pa.list_(kind, rows.shape[1])) for name, rows in columns.items()]
    # Dictionaries and byte statistics of floats that hardly repeat cost time and room.
    options: dict[str, Any] = {"use_dictionary": ["id"], "write_statistics": ["id", "train_degree"]}
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd", **options) as writer:
        for begin in range(0, nodes.num_rows, BLOCK):
            some = nodes.slice(begin, BLOCK)
            lists = [
                _lists(rows[begin : begin + some.num_rows], dtype, f"{path.parent.name}: {name}")
                for name, rows in columns.items()
            ]
            writer.write_table(pa.table([some["id"], some["train_degree"], *lists], schema=pa.schema(fields)))
            done(some.num_rows)
    return nodes.num_rows


def _lists(rows: Tensor, dtype: str, what: str) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    from cm3_dist.errors import InputError

    with np.errstate(over="ignore"):
        values = rows.cpu().numpy().astype(dtype, copy=False)
    if not np.isfinite(values).all():
        raise InputError(f"{what}: a value is not finite in {dtype}" + "; use float32" * (dtype == "float16"))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _described(path: Path, rows: int) -> dict[str, Any]:
    from partition.files import sha256

    return {"rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _manifest(run: FinishedRun, dtype: str, modality_rows: bool, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from cm3_dist.config.run_files import versions

    manifest, dim = run.manifest, run.settings.model.dim
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run.folder),
        "checkpoint": run.checkpoint.name,
        "best_epoch": run.progress.best_epoch,
        "validation": run.progress.best_metrics,
        "data": {"name": manifest.name, "digest": manifest.digest()},
        "users": manifest.users,
        "items": manifest.items,
        "parts": manifest.num_parts,
        "dtype": dtype,
        "dim": dim,
        "width": dim * len(run.channels),
        "channels": run.channels,
        "modality_rows": modality_rows,
        "score": SCORE,
        "files": files,
        "settings": run.settings.plain(),
        "versions": versions(),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        InputError: `folder` is no export, or one of another schema version.
    """
    from cm3_dist.errors import InputError

    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read; an export is made with python -m cm3_dist.export") from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION or "files" not in content:
        raise InputError(f"{path}: not the manifest of an export of schema version {SCHEMA_VERSION}")
    return content


def batches(folder: Path, kind: str, columns: list[str], rows: int = BLOCK) -> Iterator[pa.RecordBatch]:
    """Streams the exported rows of `kind` ("users" or "items"), part by part, in the order of their row numbers."""
    import pyarrow.parquet as pq

    for name in read_manifest(folder)["files"]:
        if name.startswith(f"{kind}/"):
            with pq.ParquetFile(folder / name) as file:
                yield from file.iter_batches(rows, columns=columns)


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.export")


if __name__ == "__main__":
    entry_point(main)()
