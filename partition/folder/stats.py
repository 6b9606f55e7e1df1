"""Describes a prepared folder: sizes, balance, what the cut costs, and the distribution of degrees.

Reads the manifest and the degrees; the degrees of one part are in memory at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from partition.errors import InputError
from partition.files import atomic_file
from partition.folder import layout
from partition.folder.arrays import node_schema, read_table
from partition.folder.manifest import Manifest, Part, cut_statistics, read_manifest

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_NODES = {"user": layout.USERS, "item": layout.ITEMS}  # kind -> file of a part


def describe(root: Path, picture: Path | None) -> None:
    """Prints tables about a prepared folder, and draws the histograms of its degrees.

    Args:
        root: the folder.
        picture: PNG file to write, if any.

    Raises:
        InputError: as `read_manifest` and `degree_histogram`; `file.unwritable`, the picture cannot be written.
    """
    manifest = read_manifest(root)
    histograms = {kind: degree_histogram(root, manifest, kind) for kind in _NODES}
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width
    for table in (_overview(manifest), _parts(manifest), _cut(manifest, histograms), _degrees(histograms)):
        console.print(table)
    if picture is not None:
        _draw(histograms, manifest.name, picture)
        console.print(f"Degree histograms: {picture}")


def degree_histogram(root: Path, manifest: Manifest, kind: str) -> np.ndarray:
    """Returns how many users or items have 0, 1, 2 ... training interactions: [largest degree + 1] int64.

    Raises:
        InputError: as `read_table`; `degree.negative`, a degree is.
    """
    total = np.zeros(1, np.int64)
    for part in range(manifest.num_parts):
        path = layout.part_dir(root, part) / _NODES[kind]
        degree = read_table(path, node_schema(manifest, kind))["train_degree"].to_numpy()
        if len(degree) and degree.min() < 0:
            raise InputError(f"{path}: row {int(np.argmax(degree < 0))}: train_degree is negative", "degree.negative")
        counts = np.bincount(degree, minlength=len(total))
        counts[: len(total)] += total
        total = counts
    return total


def expected_halo(histogram: np.ndarray, parts: int) -> float:
    """Returns the number of halo rows over all parts that is expected when neighbours are spread over parts at random.

    A node is in the halo of every other part in which it has a neighbour: of (P - 1)(1 - (1 - 1/P)**degree) parts.

    Args:
        histogram: as of `degree_histogram`.
        parts: P.
    """
    degree = np.arange(len(histogram), dtype=np.float64)
    return float((histogram * (parts - 1) * (1 - (1 - 1 / parts) ** degree)).sum())


def quantiles(histogram: np.ndarray) -> list[int]:
    """Returns, for each share of `QUANTILES`, the smallest degree that this share of the nodes does not exceed."""
    below = np.cumsum(histogram)
    ranks = np.maximum(np.ceil(np.array(QUANTILES) * below[-1]), 1)
    return [int(degree) for degree in np.searchsorted(below, ranks)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _overview(manifest: Manifest) -> Table:
    table = _table(f"{manifest.name}: {manifest.num_parts} parts, split by {manifest.split}", "", "")
    table.show_header = False
    for name in ("users", "items", "train", "validation", "test"):
        table.add_row(name, f"{getattr(manifest, name):,}")
    if manifest.weighted:
        table.add_row("interactions are weighted", "yes")
    density = manifest.train / manifest.users / manifest.items
    table.add_row("density of the training split", f"{density:.2e}")
    for kind, rows in (("users", manifest.user_rows), ("items", manifest.item_rows)):
        trained = sum(getattr(part, f"active_{kind}") for part in manifest.parts)
        table.add_row(f"{kind} with a training interaction", f"{trained:,}")
        table.add_row(f"rows for {kind}, padding included", f"{rows:,}")
    for modality in manifest.modalities:
        reduced = f" (of {modality.source_dim})" if modality.source_dim != modality.dim else ""
        masked = ", with items without any" if modality.masked else ""
        table.add_row(f"features: {modality.name}", f"{modality.dim}{reduced} {modality.dtype}{masked}")
    for name, count in manifest.counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table


def _parts(manifest: Manifest) -> Table:
    columns = ("users", "items", "train", "validation", "test", "inside", "halo users", "halo items")
    table = _table("Parts", "part", *columns)

    def cells(part: Part) -> list[float]:
        inside = part.inner_edges / part.train if part.train else float("nan")
        sizes = (part.users, part.items, part.train, part.validation, part.test)
        return [*sizes, inside, part.halo_users, part.halo_items]

    def text(values: list[float]) -> list[str]:
        return [f"{v:.1%}" if column == "inside" else f"{v:,.0f}" for column, v in zip(columns, values, strict=True)]

    rows = [cells(part) for part in manifest.parts]
    for number, row in enumerate(rows):
        table.add_row(str(number), *text(row))
    table.add_section()
    mean = np.nanmean(rows, axis=0)
    table.add_row("mean", *text(mean.tolist()))
    spread = np.nanmax(rows, axis=0) / np.where(mean > 0, mean, 1)
    table.add_row("largest / mean", *(f"{value:.2f}" for value in spread))
    return table


def _cut(manifest: Manifest, histograms: dict[str, np.ndarray]) -> Table:
    """The edges that are cut and the rows that are exchanged, compared with random parts."""
    figures = cut_statistics(manifest.parts)
    table = _table("Cut", "", "here", "random parts", "ratio")

    def add(name: str, here: float, random: float, style: str) -> None:
        table.add_row(name, format(here, style), format(random, style), f"{here / random:.2f}" if random else "-")

    add("training interactions across parts", figures["edge_cut"], figures["edge_cut_random"], ".1%")
    for kind, histogram in histograms.items():
        halo = sum(getattr(part, f"halo_{kind}s") for part in manifest.parts)
        add(f"halo {kind}s, over all parts", halo, expected_halo(histogram, manifest.num_parts), ",.0f")
    table.add_row("padding of user rows", f"{figures['user_padding']:.1%}", "", "")
    table.add_row("padding of item rows", f"{figures['item_padding']:.1%}", "", "")
    recall = manifest.statistics.get("item_graph_recall")
    table.add_row("item graph: recall of true neighbours", "-" if recall is None else f"{recall:.3f}", "", "")
    return table


def _degrees(histograms: dict[str, np.ndarray]) -> Table:
    columns = ["least", *(f"{share:.0%}" for share in QUANTILES[1:-1]), "most"]
    table = _table("Training interactions per node", "", "mean", "none", *columns)
    for kind, histogram in histograms.items():
        mean = (histogram * np.arange(len(histogram))).sum() / histogram.sum()
        table.add_row(f"{kind}s", f"{mean:.1f}", f"{histogram[0]:,}", *(f"{q:,}" for q in quantiles(histogram)))
    return table


def _draw(histograms: dict[str, np.ndarray], name: str, picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, histogram) in zip(figure.subplots(1, 2), histograms.items(), strict=True):
        degree = np.flatnonzero(histogram)
        degree = degree[degree > 0]  # a logarithmic axis has no 0: the title gives its count
        axes.loglog(degree, histogram[degree], ".", markersize=4)
        axes.set_title(f"{kind}s: {histogram.sum():,}, of which {histogram[0]:,} without training interactions", size=9)
        axes.set_xlabel("training interactions")
        axes.set_ylabel(f"number of {kind}s")
        axes.grid(True, which="major", alpha=0.3)
    figure.suptitle(name)
    try:
        with atomic_file(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"{picture}: cannot be written: {error.strerror}", "file.unwritable") from None
