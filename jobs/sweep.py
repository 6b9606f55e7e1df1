"""Sweep files: a base job plus named variants and a grid, expanded to points in a stable order under stable names.

A sweep file::

    base: ../baby.yaml              # job file, relative to this file
    settings: {train.epochs: 20}    # over the base, in every point
    points:                         # named variants: settings over the base, or a job file in its place
      full: {}
      plain_uniformity: {loss.item_uniformity: plain}
      in_batch: ../ablations/in_batch.yaml
    grid:                           # every combination, the last key varying fastest; `a, b` sets both keys alike
      train.seed: [1, 2, 3]
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from cm3_dist.config.loading import flat, load_settings, read_yaml
from cm3_dist.config.run_files import METRICS, SETTINGS
from cm3_dist.config.settings import Settings
from partition.errors import InputError

KEYS = ("base", "settings", "points", "grid")
UNHELD = ("run.dir", "machine.")  # what may differ between a point and the run that was made of it
State = Literal["done", "started", "new"]


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    index: int
    name: str
    config: Path | None
    overrides: tuple[str, ...]  # key.sub=value, with run.dir
    settings: Settings

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.settings.run.dir

    def arguments(self) -> list[str]:
        """Arguments of `cm3_dist.train`."""
        config = [] if self.config is None else ["--config", str(self.config)]
        return [*config, *self.overrides]

    def state(self) -> State:
        """How far its run folder has come.

        Raises:
            InputError: the folder holds a run with other settings.
        """
        if not (self.folder / SETTINGS).exists():
            return "new"
        there, wanted = flat(load_settings(self.folder / SETTINGS, []).plain()), flat(self.settings.plain())
        for key, value in wanted.items():
            if not key.startswith(UNHELD) and there[key] != value:
                raise InputError(
                    f"{self.folder}: holds a run with {key}={there[key]}, the sweep asks for {value}; "
                    "choose another --into, or delete it"
                )
        return "done" if (self.folder / METRICS).exists() else "started"


def read_sweep(path: Path, into: Path | None = None, overrides: list[str] | None = None) -> list[Point]:
    """All points of a sweep file.

    Args:
        path: the file.
        into: folder of the points' run folders; by default `runs/` and the file's name.
        overrides: `key.sub=value` over every point.

    Raises:
        InputError: the file is not a sweep, a point has a wrong setting, or two points have one name.
    """
    tree = _read(path)
    into = Path("runs") / path.stem if into is None else into
    base, common = _file(path, tree.get("base")), _mapping(path, "settings", tree.get("settings"))
    variants = _variants(path, tree.get("points"), base)
    grid = _grid(path, tree.get("grid"))
    titles = _titles(list(grid))
    points: list[Point] = []
    for name, config, changes in variants:
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            parts = [name, *(f"{titles[key]}={_word(value)}" for key, value in chosen.items())]
            title = ",".join(part for part in parts if part)
            settings = {**common, **changes, **{key: value for keys, value in chosen.items() for key in _split(keys)}}
            texts = [*map(_override, settings.items()), *(overrides or []), f"run.dir={into / title}"]
            try:
                resolved = load_settings(config, texts)
            except InputError as error:
                raise InputError(f"{path}: point {title}: {error}") from None
            points.append(Point(len(points), title, config, tuple(texts), resolved))
    twice = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if twice:
        raise InputError(f"{path}: two points are named {twice[0]!r}; their run folders would be one")
    return points


def pick(points: list[Point], path: Path, index: int) -> Point:
    """Point `index`.

    Raises:
        InputError: there is none.
    """
    if not 0 <= index < len(points):
        raise InputError(f"{path}: no point {index}; there are {len(points)}, from 0")
    return points[index]


def _read(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "sweep file")
    if not isinstance(tree, dict) or not (tree.get("points") or tree.get("grid")):
        raise InputError(f"{path}: not a sweep file: expected `points` or `grid`, besides `base` and `settings`")
    wrong = [str(key) for key in tree if key not in KEYS]
    if wrong:
        raise InputError(f"{path}: unknown key {wrong[0]!r}; a sweep file has {', '.join(KEYS)}")
    return tree


def _file(path: Path, value: Any) -> Path | None:
    """A job file named in the sweep file, as seen from here."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{path}: {value!r}: expected the name of a job file")
    folder, name = path.parent, Path(value)
    while name.parts and name.parts[0] == ".." and folder.name not in ("", ".."):  # jobs/sweeps/../x.yaml reads badly
        folder, name = folder.parent, Path(*name.parts[1:])
    return folder / name


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where}: expected settings, as in {{train.epochs: 20}}")
    return flat(value)


def _variants(path: Path, points: Any, base: Path | None) -> list[tuple[str, Path | None, dict[str, Any]]]:
    """(name, job file, settings) of every entry of `points`."""
    if points is None:
        return [("", base, {})]
    if not isinstance(points, dict):
        raise InputError(f"{path}: points: expected names with settings or a job file, as in full: {{}}")
    found: list[tuple[str, Path | None, dict[str, Any]]] = []
    for key, value in points.items():
        name = str(key)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"{path}: points: {name!r}: a name has letters, digits, '.', '_' and '-' only")
        if isinstance(value, str):
            found.append((name, _file(path, value), {}))
        else:
            found.append((name, base, _mapping(path, f"points: {name}", value)))
    return found


def _grid(path: Path, grid: Any) -> dict[str, list[Any]]:
    if grid is None:
        return {}
    if not isinstance(grid, dict):
        raise InputError(f"{path}: grid: expected settings with lists of values, as in train.seed: [1, 2]")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: {key}: expected a list of values")
    return {str(key): values for key, values in grid.items()}


def _titles(keys: list[str]) -> dict[str, str]:
    """What a point's name calls a key: its last word, or all of it where two keys end alike."""
    last = {keys: _split(keys)[0].rsplit(".", 1)[-1] for keys in keys}
    count = Counter(last.values())
    return {keys: short if count[short] == 1 else _split(keys)[0] for keys, short in last.items()}


def _split(keys: str) -> list[str]:
    return [key.strip() for key in keys.split(",")]


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list):
        return "-".join(map(_word, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text.rstrip("/").rsplit("/", 1)[-1])


def _override(setting: tuple[str, Any]) -> str:
    key, value = setting
    plain = isinstance(value, str) and yaml.safe_load(value) == value
    return f"{key}={value if plain else json.dumps(value)}"
