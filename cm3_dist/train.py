"""Trains CM3 on a prepared folder::

    python -m partition build --input DATA --parts 4 --output prepared/NAME        # once
    torchrun --nproc_per_node=2 -m cm3_dist.train data.path=prepared/NAME run.dir=runs/NAME
    python -m cm3_dist.train --config jobs/baby.yaml train.epochs=3                # one process

Settings are `key.sub=value`, over the YAML file given with --config, over the defaults of cm3_dist/config/settings.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.training.progress import Resume

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Train CM3 on a prepared folder; alone, or as `torchrun --nproc_per_node=N -m cm3_dist.train ...`.")
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="settings, e.g. train.epochs=5")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings")] = None,
    resume: Annotated[
        Resume | None,
        typer.Option(
            "--resume",
            metavar="[auto]",
            show_choices=False,
            help="continue the run in run.dir from its newest checkpoint; with `--resume auto` from the newest one "
            "that is whole, naming the damaged ones it passes over, and from the start if there is none",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--settings", help="print all settings with their meaning, and exit")] = False,
) -> None:
    """Command line; the help text is above."""
    settings = load_settings(config, overrides or [])
    if show:
        from cm3_dist.config.reference import print_settings

        print_settings(settings)
        return
    from cm3_dist.distributed.oom_advice import explained
    from cm3_dist.distributed.runtime import distributed

    with distributed(settings.machine) as runtime, explained(settings, runtime.rank):
        from cm3_dist.training.loop import run  # imports TorchRec and DGL, which takes seconds

        run(settings, runtime, resume)


def spell_out(arguments: list[str]) -> list[str]:
    """Gives `--resume`, whose value may be left out, a value: what follows is one only if it is `auto`."""
    spelt: list[str] = []
    for argument in arguments:
        if argument == "auto" and spelt and spelt[-1] == "--resume=newest":
            spelt[-1] = "--resume=auto"
        else:
            spelt.append("--resume=newest" if argument == "--resume" else argument)
    return spelt


def main() -> None:
    """Command line."""
    app(spell_out(sys.argv[1:]), prog_name="python -m cm3_dist.train")


if __name__ == "__main__":
    entry_point(main)()
