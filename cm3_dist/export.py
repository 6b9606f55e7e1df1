"""Command: final user and item embeddings as Parquet, with external ids, and a FAISS index of the items on request::

    python -m cm3_dist.export runs/baby --out exports/baby
    torchrun --nproc_per_node=2 -m cm3_dist.export runs/baby --out exports/baby --dtype float16 --modality-rows

One file per part, on any number of ranks; docs/outputs.md describes them.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point

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


@app.command(help="Write the final user and item rows of a run as Parquet, with your ids.")
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
    """Runs the command; its help text is above."""
    from cm3_dist.inference.export_rows import print_export, write_rows
    from cm3_dist.inference.trained_model import open_model

    with open_model(run_settings(run, overrides or []), checkpoint) as model:
        export = write_rows(
            model,
            out,
            dtype=dtype.value,
            modality_rows=modality_rows,
            index=index.value if index else None,
            overwrite=overwrite,
        )
    manifest = export.finish()
    if model.runtime.rank == 0:
        print_export(out, manifest)


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.export")


if __name__ == "__main__":
    entry_point(main)()
