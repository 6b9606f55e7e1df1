"""The table that ends a run, with the commands to use next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_result(content: dict[str, Any], metrics: Path, best: Path) -> None:
    """Prints the metrics beside popularity and random ranking, and where the files are.

    Args:
        content: of metrics.json.
        metrics: path of metrics.json, in the run folder.
        best: path of the best checkpoint.
    """
    console = Console(soft_wrap=True, highlight=False)
    if content["evaluated"]:
        console.print(_table(content))
    else:
        console.print("nothing was evaluated: the data have neither validation nor test interactions")
    folder = metrics.parent
    settings, more = folder / "settings.yaml", 2 * content["epochs"]
    console.print(
        f"{content['epochs']} epochs, {content['seconds']:.0f} s on {content['world_size']} rank(s)\n"
        f"metrics      {metrics}\n"
        f"checkpoint   {best}\n"
        f"TensorBoard  tensorboard --logdir {folder / 'tensorboard'}\n"
        f"use it       python -m cm3_dist.recommend {folder} --out lists.parquet\n"
        f"train on     python -m cm3_dist.train --config {settings} --resume train.epochs={more}"
    )


def _table(content: dict[str, Any]) -> Table:
    split = content["evaluated"][-1]
    rows = {"CM3": content[split], **content["baselines"]}
    when = "at the best validation epoch" if "validation" in content["evaluated"] else "after the last epoch"
    table = Table(title=f"{split}, full ranking, {when} ({content['best_epoch']})", title_justify="left")
    table.add_column("")
    for label in rows:
        table.add_column(label, justify="right", style="bold" if label == "CM3" else None)
    for name in content[split]:
        if name.startswith(("recall", "ndcg")):
            title = name.replace("recall", "Recall").replace("ndcg", "NDCG")
            table.add_row(title, *(f"{values[name]:.4f}" for values in rows.values()))
    return table
