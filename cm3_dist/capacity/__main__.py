"""What a training run needs, before it is started::

    python -m cm3_dist.capacity --data prepared/baby --ranks 4                       # exact counts of a prepared folder
    python -m cm3_dist.capacity --users 100M --items 10M --interactions 5B \
        --modalities image:128:float16,text:128:float16 --ranks 64 --device cuda      # expected from numbers alone
    python -m cm3_dist.capacity --data prepared/mine --ranks 8 train.batch_size=32768 propagation.mode=sampled

Settings are those of cm3_dist.train. Exit status 1 when something does not fit, with what would make it fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.errors import InputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SUFFIXES = {"k": 10**3, "M": 10**6, "B": 10**9}
DRAWABLE = 20_000_000  # training interactions up to which a folder is loaded whole to draw steps from it


@app.command(
    help="Memory, bytes between ranks, time and disk of a training run: from a prepared folder (--data), or from "
    "numbers alone (--users, --items, --interactions, --modalities). Ends with status 1 when something does not fit."
)
def capacity(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="settings, as for cm3_dist.train")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings")] = None,
    data: Annotated[Path | None, typer.Option(help="prepared folder; its counts are exact")] = None,
    users: Annotated[str | None, typer.Option(help="number of users, e.g. 2M")] = None,
    items: Annotated[str | None, typer.Option(help="number of items")] = None,
    interactions: Annotated[str | None, typer.Option(help="number of interactions, held-out ones included")] = None,
    modalities: Annotated[
        str, typer.Option(metavar="NAME:DIM[:float16],...", help="widths and types of the item features")
    ] = "image:128,text:128",
    item_graph_k: Annotated[int, typer.Option(min=1, help="neighbours per item and modality")] = 10,
    inside: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="share of interactions with both ends on one rank; random: 1/ranks"),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB per rank: of the device, or of the host for cpu")
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option(min=0, help="GiB of host memory per rank, with --device cuda")
    ] = None,
    link: Annotated[float | None, typer.Option(min=0, help="GB/s that a rank sends to others")] = None,
    compute: Annotated[float | None, typer.Option(min=0, help="TFLOP/s of float32 products per rank")] = None,
    copy: Annotated[float | None, typer.Option(min=0, help="GB/s of memory that a rank reads and writes")] = None,
    disk: Annotated[float, typer.Option(min=0, help="GiB of disk for the prepared folder and checkpoints")] = 100_000,
    draw: Annotated[
        int | None,
        typer.Option(min=0, help="steps drawn from --data; 0: expected steps. Default: 1 for small folders"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write everything to this file")] = None,
) -> None:
    """Command line; the help text is above."""
    settings = load_settings(config, [*(overrides or []), *([f"data.path={data}"] if data else [])])
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: cpu or cuda", "capacity.device")
    chosen: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
    numbers = {"--users": users, "--items": items, "--interactions": interactions}
    if data and (given := [name for name, text in numbers.items() if text is not None]):
        raise InputError(f"{given[0]}: --data has its own numbers; give one or the other", "capacity.options")
    if not data and (missing := [name for name, text in numbers.items() if text is None]):
        text = f"{missing[0]} is missing: give --data, or --users, --items and --interactions"
        raise InputError(text, "capacity.options")
    sizes = [_number(name, text) for name, text in numbers.items() if text is not None]
    # Torch and TorchRec take seconds to import: --help and wrong options do not wait for them.
    from cm3_dist.capacity.advice import advise
    from cm3_dist.capacity.from_folder import scenario_from_folder
    from cm3_dist.capacity.from_numbers import scenario_from_numbers
    from cm3_dist.capacity.hardware import Hardware
    from cm3_dist.capacity.prediction import predict_drawn, predict_expected
    from cm3_dist.capacity.tables import show

    rates = {"memory": memory, "host_memory": host_memory, "link": link, "compute": compute, "copy": copy}
    hardware = Hardware.of(ranks, chosen, disk, {name: rate for name, rate in rates.items() if rate is not None})
    if data:
        scenario = scenario_from_folder(settings, data, hardware, inside)
        small = scenario.manifest.train <= DRAWABLE
        drawn = int(small) if draw is None else draw
    else:
        scenario = scenario_from_numbers(settings, sizes, modalities, hardware, inside, item_graph_k)
        drawn = 0
    prediction = predict_drawn(scenario, drawn) if drawn else predict_expected(scenario)
    advice = advise(scenario, prediction) if prediction.short() else []
    show(scenario, prediction, advice)
    if output is not None:
        content = {**scenario.plain(), **prediction.plain(), "advice": advice}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if prediction.short():
        sys.exit(1)


def _number(name: str, text: str) -> int:
    """`150000`, `150k`, `2M`, `5B`."""
    digits, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        number = round(float(digits.replace(",", "").replace("_", "")) * factor)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InputError(f"{name} {text}: expected a number such as 150000, 150k, 2M or 5B", "capacity.number")
    return number


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.capacity")


if __name__ == "__main__":
    entry_point(main)()
