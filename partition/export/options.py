"""The options of `python -m partition export`, typed once: the command line is made from them."""

from __future__ import annotations

from pathlib import Path

from partition.options import Choice, Options, option


class ExportFormat(Choice):
    """What the files are for."""

    MMREC = "mmrec"
    RECBOLE = "recbole"
    PARQUET = "parquet"
    DGL = "dgl"


class ExportOptions(Options):
    """Options of `python -m partition export`; docs/data.md explains them."""

    prepared: Path = option(help="Folder written by build.", metavar="PREPARED", argument=True)
    format: ExportFormat = option(help="What the files are for.")
    output: Path = option(help="New or empty folder to write.", metavar="DIR")
    name: str | None = option(None, "Name of the data set, from which files are named; by default that of the folder.")
