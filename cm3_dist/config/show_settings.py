"""`--settings`: every key, its value here, and what it means."""

from __future__ import annotations

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from cm3_dist.config.settings import Settings


def print_settings(settings: Settings) -> None:
    """Prints a table of all settings."""
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "meaning"):
        table.add_column(title, no_wrap=title != "meaning")
    _rows(settings, "", table)
    Console().print(table)


def _rows(section: BaseModel, prefix: str, table: Table) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            _rows(value, f"{prefix}{name}.", table)
        else:
            table.add_row(f"{prefix}{name}", str(value), field.description or "")
