"""Experiment configs: a Python file, overrides from the command line, checks, and JSON for the record."""

import ast
import difflib
import importlib.util
import json
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict, FrozenConfigDict

from kosmos_jax.checks import nearest_key
from kosmos_jax.config_checks import ConfigError, dotted_keys, flat, validate

__all__ = ["ConfigError", "apply_overrides", "from_json", "load_config", "to_json", "validate"]

PREFIX = "--config."
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", tuple: "values such as (1, 2) or a,b"}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> FrozenConfigDict:
    """Reads a config file, applies overrides and checks the result.

    Args:
      path: a Python file with `get_config()`, such as configs/demo.py; `FILE:ARGUMENT`, such as
        configs/kosmos1_sizes.py:7b, calls `get_config("7b")`; or the config.json of a workdir.
      overrides: "training.steps=500" or "--config.training.steps=500".

    Returns:
      The complete config, which cannot be changed any more: it is hashable, as jax.jit wants static arguments to be.

    Raises:
      ConfigError: no such file or key, a value of the wrong type, or values that do not fit each other.
    """
    file, separator, argument = str(path).partition(".py:")
    file += ".py" if separator else ""
    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist{_nearest_file(Path(file))}")
    if file.endswith(".json"):
        config = from_json(Path(file).read_text())
    else:
        config = _call_get_config(file, [argument] if separator else [])
    config = apply_overrides(config, overrides, where=str(path))
    validate(config, str(path))
    return config


def apply_overrides(config: Mapping, overrides: Iterable[str], where: str = "the config") -> FrozenConfigDict:
    """A config with some values replaced; a value is read as the type of the one that it replaces.

    Args:
      config: any mapping with the keys.
      overrides: "training.steps=500", with or without "--config.".
      where: the config's name, for messages.

    Raises:
      ConfigError: no such key, or a value of the wrong type.
    """
    tree = _plain(config)
    for override in overrides:
        key, separator, text = override.removeprefix(PREFIX).partition("=")
        if not separator:
            raise ConfigError(f"{PREFIX}{key} has no value; write {PREFIX}{key}=VALUE")
        *sections, name = key.split(".")
        section = tree
        for step in sections:
            section = section.get(step) if isinstance(section, dict) else None
        if not isinstance(section, dict) or name not in section:
            nearest = nearest_key(key, dotted_keys(tree))
            hint = f"; did you mean {PREFIX}{nearest}?" if nearest else ""
            raise ConfigError(f"{PREFIX}{key}: {where} has no such key{hint}")
        section[name] = _parsed(text, section[name], key, where)
    return FrozenConfigDict(tree)


def to_json(config: Mapping) -> str:
    """The config as indented JSON, keys in alphabetic order, tuples as lists."""
    return json.dumps(_plain(config), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> FrozenConfigDict:
    """The config that `to_json` wrote; equal to it, since all sequences in a config are tuples."""
    return FrozenConfigDict(_plain(json.loads(text)))


def differences(before: Mapping, now: Mapping) -> list[str]:
    """What changed from one config to another: "training.optimizer.learning_rate 0.0002, now 0.0001"."""
    before, now = flat(_plain(before)), flat(_plain(now))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key} {before.get(key, 'absent')}, now {now.get(key, 'absent')}" for key in changed]


def _plain(value):
    """Nested dictionaries of a config, nothing shared, sequences as tuples."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _call_get_config(file: str, arguments: list[str]):
    spec = importlib.util.spec_from_file_location("kosmos_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(*arguments)
    except ConfigError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
        place = f"{file}, line {lines[-1]}" if lines else file
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error


def _parsed(text: str, old, key: str, where: str):
    """`text` as a value of the type of `old`."""
    if isinstance(old, dict):
        inside = ", ".join(f"{PREFIX}{key}.{name}" for name in list(old)[:3])
        raise ConfigError(f"{PREFIX}{key} is a section and takes no value; in it there is {inside}")
    kind = type(old)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return _whole_number(text)
        if kind is float:
            return float(text)
        return _sequence(text, old) if kind is tuple else text
    except (KeyError, ValueError):
        given = f"{PREFIX}{key} is {text!r}"
        raise ConfigError(f"{given}; {where} has {old!r} there, so it must be {EXPECTED[kind]}") from None


def _whole_number(text: str) -> int:
    """The number in a text such as "500", "300_000" or "3e5"."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _sequence(text: str, old: tuple) -> tuple:
    """Reads "(0.8, 1)", "1,2" or, for strings, "caption,sum"; items must be of the kind of the items of `old`."""
    try:
        items = ast.literal_eval(text)
        items = tuple(items) if isinstance(items, list | tuple) else (items,)
    except (SyntaxError, ValueError):
        items = tuple(item.strip() for item in text.split(",") if item.strip())
    if not old:
        return items
    kind = type(old[0])
    if kind is float:
        return tuple(float(item) for item in items)
    if not all(isinstance(item, kind) for item in items):
        raise ValueError(text)
    return items


def _nearest_file(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".py"] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
