"""Sweep files: job files times named variants times a grid, expanded to points in a stable order with stable names.

A sweep file::

    base: ../baby.yaml              # job file, relative to this file; or a list of them
    settings: {train.epochs: 20}    # over the base, in every point
    points:                         # named variants: settings over the base, or a job file to use instead of it
      full: {}
      plain_uniformity: {loss.item_uniformity: plain}
      cold: {data.path: "prepared/{base}_cold"}   # {base}: the base's name without .yaml
    grid:                           # every combination, the last key varies fastest; `a, b` sets both keys
      train.seed: [1, 2, 3]

A point is named after its variant and its grid values: `full,seed=2`. With several bases, its base comes first, as a
folder: `baby/full,seed=2`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from cm3_dist.config.loading import flat, load_settings, read_yaml
from cm3_dist.config.run_files import METRICS, SETTINGS
from cm3_dist.config.settings import Settings
from partition.errors import InputError

KEYS = ("base", "settings", "points", "grid")
NOT_COMPARED = ("run.dir", "machine.")  # may differ between a point and the run in its folder
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
        """Returns whether the point's run is finished, begun or not begun.

        Raises:
            InputError: the folder holds a run with other settings.
        """
        if not (self.folder / SETTINGS).exists():
            return "new"
        found = flat(load_settings(self.folder / SETTINGS, []).plain())
        for key, wanted in flat(self.settings.plain()).items():
            if not key.startswith(NOT_COMPARED) and found[key] != wanted:
                raise InputError(
                    f"{self.folder}: holds a run with {key}={found[key]}, but the sweep sets {wanted}; "
                    "choose another --into, or delete it",
                    "sweep.other-run",
                )
        return "done" if (self.folder / METRICS).exists() else "started"


class _Variant(NamedTuple):
    name: str
    config: Path | None  # a job file to use instead of the base
    settings: dict[str, Any]


def sweep_folder(path: Path, into: Path | None) -> Path:
    """Returns the folder of a sweep's run folders: `into`, or by default `runs/` and the sweep file's name."""
    return Path("runs") / path.stem if into is None else into


def read_sweep(path: Path, into: Path | None = None, overrides: list[str] | None = None) -> list[Point]:
    """Returns all points of a sweep file.

    Args:
        path: the sweep file.
        into: folder of the points' run folders; see `sweep_folder`.
        overrides: `key.sub=value` over every point.

    Raises:
        InputError: the file is not a sweep, a point has a wrong setting, or two points have the same name.
    """
    tree = _read(path)
    folder = sweep_folder(path, into)
    bases = _bases(path, tree.get("base"))
    common = _mapping(path, "settings", tree.get("settings"))
    variants = _variants(path, tree.get("points"))
    grid = _grid(path, tree.get("grid"))
    titles = _titles(list(grid))
    points: list[Point] = []
    for base, variant, values in product(bases, variants, product(*grid.values())):
        chosen = {keys: _fill_in(value, base) for keys, value in zip(grid, values, strict=True)}
        words = [variant.name, *(f"{titles[keys]}={_word(value)}" for keys, value in chosen.items())]
        name = ",".join(word for word in words if word)
        if base is not None and len(bases) > 1:
            name = f"{base.stem}/{name}"
        settings = {**common, **variant.settings}
        settings |= {key: value for keys, value in chosen.items() for key in _split(keys)}
        texts = [_override(key, _fill_in(value, base)) for key, value in settings.items()]
        texts += [*(overrides or []), f"run.dir={folder / name}"]
        config = variant.config or base
        try:
            resolved = load_settings(config, texts)
        except InputError as error:
            raise InputError(f"{path}: point {name}: {error}", error.code) from None
        points.append(Point(len(points), name, config, tuple(texts), resolved))
    repeated = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: two points are named {repeated[0]!r} and would share a run folder", "sweep.names")
    return points


def pick(points: list[Point], path: Path, index: int) -> Point:
    """Returns point `index`.

    Raises:
        InputError: there is no such point.
    """
    if not 0 <= index < len(points):
        raise InputError(f"{path}: no point {index}; there are {len(points)}, from 0", "sweep.index")
    return points[index]


def _read(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "sweep file")
    if not isinstance(tree, dict) or not (tree.get("points") or tree.get("grid")):
        raise InputError(
            f"{path}: not a sweep file: expected `points` or `grid`, besides `base` and `settings`", "sweep.file"
        )
    wrong = [str(key) for key in tree if key not in KEYS]
    if wrong:
        raise InputError(f"{path}: unknown key {wrong[0]!r}; a sweep file has {', '.join(KEYS)}", "sweep.key")
    return tree


def _bases(path: Path, value: Any) -> list[Path | None]:
    if value is None:
        return [None]
    if value == []:
        raise InputError(f"{path}: base: the list is empty", "sweep.base")
    return [_job_file(path, name) for name in (value if isinstance(value, list) else [value])]


def _job_file(path: Path, value: Any) -> Path:
    """A job file named in the sweep file, relative to the current directory."""
    if not isinstance(value, str):
        raise InputError(f"{path}: {value!r}: expected the name of a job file", "sweep.base")
    folder, name = path.parent, Path(value)
    while name.parts and name.parts[0] == ".." and folder.name not in ("", ".."):  # jobs/sweeps/../x.yaml: jobs/x.yaml
        folder, name = folder.parent, Path(*name.parts[1:])
    return folder / name


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where}: expected settings, as in {{train.epochs: 20}}", "sweep.settings")
    return flat(value)


def _variants(path: Path, points: Any) -> list[_Variant]:
    if points is None:
        return [_Variant("", None, {})]
    if not isinstance(points, dict):
        raise InputError(
            f"{path}: points: expected names with settings or a job file, as in full: {{}}", "sweep.points"
        )
    return list(_named_variants(path, points))


def _named_variants(path: Path, points: dict[Any, Any]) -> Iterator[_Variant]:
    for key, value in points.items():
        name = str(key)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(
                f"{path}: points: {name!r}: a name has letters, digits, '.', '_' and '-' only", "sweep.point-name"
            )
        if isinstance(value, str):
            yield _Variant(name, _job_file(path, value), {})
        else:
            yield _Variant(name, None, _mapping(path, f"points: {name}", value))


def _grid(path: Path, grid: Any) -> dict[str, list[Any]]:
    if grid is None:
        return {}
    if not isinstance(grid, dict):
        raise InputError(
            f"{path}: grid: expected settings with lists of values, as in train.seed: [1, 2]", "sweep.grid"
        )
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: {key}: expected a list of values", "sweep.grid")
    return {str(key): values for key, values in grid.items()}


def _titles(keys: list[str]) -> dict[str, str]:
    """How a point's name shortens each grid key: to its last word, or not at all where two keys end alike."""
    last = {keys: _split(keys)[0].rsplit(".", 1)[-1] for keys in keys}
    count = Counter(last.values())
    return {keys: short if count[short] == 1 else _split(keys)[0] for keys, short in last.items()}


def _split(keys: str) -> list[str]:
    return [key.strip() for key in keys.split(",")]


def _fill_in(value: Any, base: Path | None) -> Any:
    """The value with the name of the base in place of `{base}`."""
    if isinstance(value, str) and base is not None:
        return value.replace("{base}", base.stem)
    return value


def _word(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list):
        return "-".join(map(_word, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text.rstrip("/").rsplit("/", 1)[-1])


def _override(key: str, value: Any) -> str:
    is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    return f"{key}={value if is_plain else json.dumps(value)}"
