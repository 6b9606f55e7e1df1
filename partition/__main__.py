"""Prepares data for training::

python -m partition extract --items items.parquet --text title,description --tfidf 256 --output text.parquet
python -m partition synthetic --output data/demo
python -m partition build --input data/demo --parts 4 --output prepared/demo
python -m partition verify prepared/demo
python -m partition stats prepared/demo --picture degrees.png
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from partition.errors import InputError
from partition.extract.command import extract

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prepare data for training: make or read it, cut it into parts, check it.",
)
# The heavy imports (DGL, faiss, torch) wait until a command needs them, so that --help answers at once.
_COLUMNS, _SPLIT, _FEATURES, _GRAPH = "Columns", "Cleaning and split", "Features", "Item graph and parts"


class Split(str, Enum):
    """Choices of `--split`."""

    auto = "auto"
    column = "column"
    random = "random"
    leave_last_out = "leave-last-out"
    cold_items = "cold-items"


class PartMethod(str, Enum):
    """Choices of `--method`."""

    auto = "auto"
    metis = "metis"
    stream = "stream"
    random = "random"


Prepared = Annotated[Path, typer.Argument(metavar="PREPARED", help="Folder written by build.")]


@app.command()
def build(
    input: Annotated[
        list[Path],
        typer.Option(metavar="DIR_OR_FILE", help="Folder (an MMRec folder as it is, or tables) or file; repeatable."),
    ],
    output: Annotated[Path, typer.Option(metavar="PREPARED", help="Folder to write.")],
    parts: Annotated[
        int, typer.Option(min=1, help="Parts to cut the graph into; any number of ranks that divides it can train.")
    ],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="More input, as from `--input *.csv`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set; by default that of the input.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared folder.")] = False,
    user_column: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Its name, if not user, user_id, userID or uid.")
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Its name, if not item, item_id, itemID, asin or iid.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Its name, if not timestamp, time or ts.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(rich_help_panel=_COLUMNS, help="Its name, if not x_label or split.")
    ] = None,
    split: Annotated[
        Split, typer.Option(rich_help_panel=_SPLIT, help="auto: the split column if there is one, else random 8:1:1.")
    ] = Split.auto,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_SPLIT, help="Behind every random choice.")] = 2025,
    kcore: Annotated[
        int,
        typer.Option(min=0, rich_help_panel=_SPLIT, help="Keep users and items with at least this many interactions."),
    ] = 0,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE[:COLUMN]]",
            rich_help_panel=_FEATURES,
            help="A modality: one found in the input, or where its rows lie; repeatable, in the curve's order.",
        ),
    ] = None,
    pca: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIM",
            rich_help_panel=_FEATURES,
            help="Reduce the features' width, of all modalities or of one; repeatable.",
        ),
    ] = None,
    spectral: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="DIM",
            rich_help_panel=_FEATURES,
            help="Add a modality `spectral` of this width, made of the training interactions.",
        ),
    ] = 0,
    noise: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            rich_help_panel=_FEATURES,
            help="To study noise: this share of the items get each other's feature rows, in the item graph, too.",
        ),
    ] = 0.0,
    item_graph_k: Annotated[
        int, typer.Option(min=1, rich_help_panel=_GRAPH, help="Neighbours an item and modality, itself included.")
    ] = 10,
    item_graph_weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=W",
            rich_help_panel=_GRAPH,
            help="Weight of a modality; repeatable. Image and one other: 0.1, 0.9.",
        ),
    ] = None,
    cooccurrence_weight: Annotated[
        float, typer.Option(min=0, rich_help_panel=_GRAPH, help="Weight of neighbours by common users in training.")
    ] = 0.0,
    approximate_above: Annotated[
        int,
        typer.Option(min=0, rich_help_panel=_GRAPH, help="Items above which neighbours are searched approximately."),
    ] = 200_000,
    method: Annotated[
        PartMethod,
        typer.Option(
            rich_help_panel=_GRAPH,
            help="How parts are cut. auto: metis up to 20 million training interactions, stream above.",
        ),
    ] = PartMethod.auto,
) -> None:
    """Clean, split, cut into parts: from raw files to a prepared folder."""
    from partition.build import build as run
    from partition.options import BuildOptions

    options = BuildOptions(
        input=[*input, *(more or [])],
        output=output,
        parts=parts,
        name=name,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        split_column=split_column,
        split=split.value,
        seed=seed,
        kcore=kcore,
        features=features or [],
        pca=pca or [],
        spectral=spectral,
        item_graph_k=item_graph_k,
        item_graph_weight=item_graph_weight or [],
        cooccurrence_weight=cooccurrence_weight,
        approximate_above=approximate_above,
        noise=noise,
        method=method.value,
        overwrite=overwrite,
    )
    run(options)
    print(f"Next: python -m cm3_dist.train data.path={output}")


app.command()(extract)


@app.command()
def verify(root: Prepared) -> None:
    """Check every invariant of a prepared folder."""
    from partition.folder.verify import verify as run

    manifest = run(root)
    print(f"{root}: whole; {manifest.num_parts} parts, digest {manifest.digest()[:12]}")


@app.command()
def stats(
    root: Prepared,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the degrees' histograms.")] = None,
) -> None:
    """Show sizes, balance and edge cut of a prepared folder."""
    from partition.folder.stats import describe

    describe(root, picture)


@app.command()
def synthetic(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write, as build reads it.")],
    expand: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR_OR_FILE", help="Grow this data set, with its own structure, instead of planting one."
        ),
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="How many; 3,000 if not given (with --expand, give it).")
    ] = None,
    items: Annotated[int | None, typer.Option(min=2, help="How many; 1,500, likewise.")] = None,
    interactions: Annotated[int | None, typer.Option(min=1, help="How many; 45,000, likewise.")] = None,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Tastes, of which a user has one to three; 30 if not given.")
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:DIM[:float16],...",
            help="Features to make (image:64,text:32), or with --expand to keep, reduced by PCA (all).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 2025,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier call.")] = False,
) -> None:
    """Make a multimodal data set of any size: with planted tastes, or grown from a real one."""
    from partition.synthetic.tables import parse_modalities

    if expand is not None:
        from partition.synthetic.fractal import ExpandOptions
        from partition.synthetic.fractal import expand as run

        if users is None or items is None or interactions is None:
            raise InputError("--expand: give --users, --items and --interactions, the sizes to grow to")
        if clusters is not None:
            raise InputError("--clusters: tastes are planted only without --expand")
        grown = parse_modalities(modalities) if modalities else {}
        run(ExpandOptions(expand, output, users, items, interactions, grown, seed, overwrite))
    else:
        from partition.synthetic.planted import SyntheticOptions, synthesise

        options = SyntheticOptions(
            output=output,
            users=users or 3_000,
            items=items or 1_500,
            interactions=interactions or 45_000,
            clusters=clusters or 30,
            modalities=parse_modalities(modalities or "image:64,text:32"),
            seed=seed,
            overwrite=overwrite,
        )
        synthesise(options)
    print(f"Next: python -m partition build --input {output} --parts 4 --output prepared/{output.name}")


def main() -> None:
    """Runs the command line; what the user can mend becomes one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(error.line, file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
