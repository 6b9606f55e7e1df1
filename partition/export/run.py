"""`python -m partition export`: the split and the features of a prepared folder, in the format of another program."""

from __future__ import annotations

from pathlib import Path

from partition.errors import InputError
from partition.export.options import ExportFormat, ExportOptions
from partition.export.rows import Target
from partition.files import atomic_folder, is_free, recover
from partition.folder.read_dataset import PreparedFolder


def export(options: ExportOptions) -> list[str]:
    """Writes `options.output`, whole or not at all.

    Returns:
        Lines for the user: what was written, what the format cannot hold, and how to read it.

    Raises:
        InputError: anything wrong with the folder; `export.output`, the output is not an empty folder; `export.ids`,
            the format cannot hold an id; `export.name`, the name of the data set cannot be that of files.
        OSError: it cannot be written.
    """
    _check_output(options.output)
    source = PreparedFolder.open(options.prepared)
    name = options.name or source.manifest.name
    if "/" in name or name.startswith("."):
        raise InputError(f"{name!r} cannot be the name of a file; give another with --name", "export.name")
    recover(options.output)
    with atomic_folder(options.output) as folder:
        notes = _write(options.format, source, Target(folder, options.output, name))
        _check_output(options.output)  # again: writing takes time
    return [f"{options.output}: {name} for {options.format}", *notes]


def _check_output(output: Path) -> None:
    if not is_free(output):
        raise InputError(f"{output}: exists and is not an empty folder; choose another --output", "export.output")


def _write(form: ExportFormat, source: PreparedFolder, target: Target) -> list[str]:
    """Writes the files of one format; each module is imported when it is needed."""
    if form is ExportFormat.MMREC:
        from partition.export import mmrec

        return mmrec.write(source, target)
    if form is ExportFormat.RECBOLE:
        from partition.export import recbole

        return recbole.write(source, target)
    if form is ExportFormat.PARQUET:
        from partition.export import parquet

        return parquet.write(source, target)
    from partition.export import dgl

    return dgl.write(source, target)
