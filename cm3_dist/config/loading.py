"""Loads settings: defaults, then a YAML file, then `key.sub=value` overrides. Wrong keys and values are refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError

# Settings that were removed but may occur in the files of earlier runs, and the value of each that changes nothing.
REMOVED: dict[str, Any] = {
    "model.fused_channel": "fused",
    "model.collaborative_channel": False,
    "model.curve_centre": "middle",
    "model.layer_weights": None,
    "model.learn_layer_weights": False,
    "model.item_graph_weight": 1.0,
    "model.user_init": "random",
    "loss.gamma_warmup": 0.0,
}


def load_settings(config: Path | None, overrides: list[str]) -> Settings:
    """Merges defaults, the YAML file `config` (if any) and `key.sub=value` overrides, in this order.

    Raises:
        InputError: the file is missing or not a YAML mapping, a key is unknown (the error names the nearest known key),
            or a value is wrong.
    """
    tree: dict[str, Any] = {} if config is None else _read_tree(config)
    where = {key: str(config) for key in flat(tree)}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{text!r}: expected key.sub=value, for example train.epochs=5", "settings.syntax")
        try:
            _put(tree, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError:
            raise InputError(f"{text!r}: the value is not valid YAML", "settings.syntax") from None
        where[key] = "command line"
    drop_removed(tree, where)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _refused(error, where) from None


def drop_removed(tree: dict[str, Any], where: Mapping[str, str]) -> None:
    """Deletes removed settings from nested settings, in place.

    Args:
        tree: settings by section.
        where: dotted key -> its source, for messages.

    Raises:
        InputError: a removed setting has a value that changed the model.
    """
    for key, value in flat(tree).items():
        if key not in REMOVED:
            continue
        if value != REMOVED[key]:
            raise InputError(
                f"{where.get(key, 'settings')}: {key} = {value!r}: this setting was removed because it did not help "
                "(docs/findings-model.md); commit ddff57f is the last with it",
                "settings.removed",
            )
        section, _, name = key.partition(".")
        if isinstance(tree.get(section), dict):  # else the key itself has a dot, which is refused as unknown
            del tree[section][name]


def read_yaml(path: Path, what: str) -> Any:
    """Reads a YAML file.

    Args:
        path: of the file.
        what: kind of file, named in the error if it is missing.

    Raises:
        InputError: it is missing, unreadable or not valid YAML (the error names the line).
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}", "settings.missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "settings.syntax") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML", "settings.syntax") from None


def _read_tree(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "settings file")
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"{path}: expected a mapping of settings at the top level", "settings.syntax")
    return tree


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            child = tree[name] = {}
        tree = child
    tree[path[-1]] = value


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted key -> value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def known_keys(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Every dotted key, in the order of the classes in `settings`."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _refused(error: ValidationError, where: dict[str, str]) -> InputError:
    """The first error of a validation, in one line that names the key and where it was set."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    place = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden" and (known := ".".join(place[:2])) in known_keys():
        place = known.split(".")  # the rest names the member of a union that was tried
    key = ".".join(place)
    if not key:  # sections that do not fit each other: the message begins with the key
        return InputError(f"{where.get(message.partition(':')[0], 'settings')}: {message}", "settings.value")
    source = where.get(key) or next((place for name, place in where.items() if name.startswith(key)), "settings")
    if first["type"] == "extra_forbidden":
        key = next((name for name in where if name.startswith(f"{key}.")), key)  # in an unknown section: the whole key
        return InputError(f"{source}: unknown setting {key!r}{_suggestion(key)}", "settings.unknown")
    value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    return InputError(f"{source}: {key}{value}: {message}", "settings.value")


def _suggestion(key: str) -> str:
    names = known_keys()
    near = difflib.get_close_matches(key, names, 1, 0.5)
    near += [name for name in names if name.split(".")[-1] == key.split(".")[-1]]
    return f"; did you mean {near[0]!r}?" if near else ""
