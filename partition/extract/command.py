"""The command line of `python -m partition extract`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

_MODEL, _OUT = "Encoder", "Output"


class Pooling(str, Enum):
    """Choices of `--pooling`."""

    auto = "auto"
    mean = "mean"
    first = "first"
    last = "last"


class Device(str, Enum):
    """Choices of `--device`."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Fill(str, Enum):
    """Choices of `--fill`."""

    zeros = "zeros"
    mean = "mean"


class Dtype(str, Enum):
    """Choices of `--dtype`."""

    float32 = "float32"
    float16 = "float16"


def extract(
    items: Annotated[Path, typer.Option(metavar="FILE", help="Table with an item column, an item a row.")],
    output: Annotated[
        Path,
        typer.Option(metavar="FILE.parquet|.npy", help="Rows to write, in the table's order; .parquet has the ids."),
    ],
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="Columns with text (or lists of it), joined in this order.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|FOLDER", help="Column with paths or the files' bytes, or a folder with ID.jpg, ID.png, ..."
        ),
    ] = None,
    item_column: Annotated[
        str | None, typer.Option(help="Its name, if not item, item_id, itemID, asin or iid.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|NAME",
            rich_help_panel=_MODEL,
            help="sentence-transformers or transformers model: of text, of images, CLIP or SigLIP, multimodal LM.",
        ),
    ] = None,
    tfidf: Annotated[
        str | None,
        typer.Option(
            metavar="DIM|FILE",
            rich_help_panel=_MODEL,
            help="Texts without a model: TF-IDF reduced to DIM by SVD, or as FILE.tfidf.npz of an earlier call has it.",
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(rich_help_panel=_MODEL, help="Commit or branch on the hub.")] = None,
    pooling: Annotated[
        Pooling,
        typer.Option(
            rich_help_panel=_MODEL, help="Of the last hidden states. auto: last of decoders, mean of everything else."
        ),
    ] = Pooling.auto,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_MODEL, help="A text is cut here; by default 512, or sooner.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=_MODEL, help="Items encoded at a time.")] = 32,
    device: Annotated[Device, typer.Option(rich_help_panel=_MODEL, help="auto: a GPU if there is one.")] = Device.auto,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", rich_help_panel=_MODEL, help="Run Python code that the model brings.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_MODEL, help="Of the SVD.")] = 2025,
    name: Annotated[
        str | None, typer.Option(rich_help_panel=_OUT, help="Of the modality: text, image or multimodal by default.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(rich_help_panel=_OUT, help="Of the rows.")] = Dtype.float32,
    fill: Annotated[
        Fill,
        typer.Option(rich_help_panel=_OUT, help="Row of an item without text or picture, which is marked besides."),
    ] = Fill.zeros,
    overwrite: Annotated[bool, typer.Option("--overwrite", rich_help_panel=_OUT, help="Replace the output.")] = False,
) -> None:
    """Encode a catalogue's texts or pictures into features. Interrupted, it goes on where it was."""
    from partition.extract.request import Request
    from partition.extract.run import extract as run

    request = Request(
        items=items,
        output=output,
        item_column=item_column,
        text=[column.strip() for column in text.split(",")] if text else [],
        images=images,
        model=model,
        tfidf=tfidf,
        name=name,
        revision=revision,
        pooling=pooling.value,
        max_tokens=max_tokens,
        batch_size=batch_size,
        device=device.value,
        dtype=dtype.value,
        fill=fill.value,
        trust_remote_code=trust_remote_code,
        seed=seed,
        overwrite=overwrite,
    )
    done = run(request)
    missing = f"{done.missing:,} with nothing to encode, filled with {fill.value}" if done.missing else "none missing"
    print(f"{output}: {done.items:,} items, {done.dim} wide; {missing}")
    for reason in done.unreadable[:3]:
        print(f"  unreadable: {reason}")
    if len(done.unreadable) > 3:
        print(f"  and {len(done.unreadable) - 3:,} more, listed in {request.beside}")
    features = f"--features {request.modality}={output}"
    print(f"Next: python -m partition build --input LOG {features} --parts 4 --output PREPARED")
