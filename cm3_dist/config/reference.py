"""The reference of all settings: the page docs/settings.md (`make docs`) and the table of `--settings`."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cm3_dist.config.settings import Settings

HEAD = """# Settings

Generated from `cm3_dist/config/settings.py` by `make docs`; a test checks that this page is up to date.

Set a value with `key.sub=value` on the command line. It overrides the YAML file given with `--config`, which overrides
the default:

```
torchrun --nproc_per_node=2 -m cm3_dist.train --config jobs/baby.yaml train.epochs=20 propagation.fanouts=[10,5,5]
python -m cm3_dist.train --config jobs/baby.yaml --settings     # print all settings, then exit
```

Values are YAML: `null`, `true`, `1e-3`, `[10, 5]`. With a wrong key or value the command exits with code 2; the error
names the setting, where it was set and, for an unknown key, the nearest known one. A run writes all its settings to
`settings.yaml` in its folder ([run-folder.md](run-folder.md)). To resume a run, the sections `model`, `propagation`,
`negatives`, `loss`, `tables` and `dense`, `train.batch_size` and `train.seed` must be unchanged; all other settings may
change.
"""


def page() -> str:
    """The content of docs/settings.md."""
    top = {name: field for name, field in Settings.model_fields.items() if _section(field) is None}
    parts = [HEAD, "## Top level\n", _table("", top)]
    for name, field in Settings.model_fields.items():
        if (section := _section(field)) is not None:
            parts += [f"## {name}\n", f"{section.__doc__}\n", _table(f"{name}.", section.model_fields)]
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = yaml.safe_dump(_plain(field.default), default_flow_style=True).removesuffix("...\n").strip()
        values = _values(field.annotation, field.metadata)
        rows.append(f"| `{prefix}{name}` | `{default}` | {values} | {field.description or ''} |")
    return "\n".join(rows) + "\n"


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | list | None) else str(value)


def _values(kind: Any, limits: list[Any] | tuple[Any, ...] = ()) -> str:
    """The values that a setting accepts, in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _values(inside[0], [*_flat(inside[1:]), *limits])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin in (Union, types.UnionType):
        return " or ".join("`null`" if one is type(None) else _values(one, limits) for one in inside)
    if origin is list:
        return f"list of {_values(inside[0]).replace('number', 'numbers')}"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    bounds = [text for limit in _flat(limits) if (text := _bound(limit))]
    return " ".join([names.get(kind, "path"), " and ".join(bounds)]).strip()


def _flat(limits: Any) -> list[Any]:
    """The bounds, including those that pydantic wraps in a `Field`."""
    return [one for limit in limits for one in (_flat(limit.metadata) if isinstance(limit, FieldInfo) else [limit])]


def _bound(limit: Any) -> str:
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if (value := getattr(limit, name, None)) is not None:
            return f"{sign} {value}"
    return ""


def print_settings(settings: Settings) -> None:
    """Prints every setting with its value and meaning (`--settings`)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "meaning"):
        table.add_column(title, no_wrap=title != "meaning")
    _add_rows(settings, "", table)
    Console().print(table)


def _add_rows(section: BaseModel, prefix: str, table: Any) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            _add_rows(value, f"{prefix}{name}.", table)
        else:
            table.add_row(f"{prefix}{name}", str(value), field.description or "")


if __name__ == "__main__":
    print(page(), end="")
