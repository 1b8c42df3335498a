"""Configuration files: YAML of plain values -> the dataclass that is the configuration.

A file holds only what differs from the defaults. An unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from compress_ssl.refusal import Refusal, nearest

_Config = TypeVar("_Config")
# a group of options without a prefix of its own: `--epochs`, not `--training.epochs`; the same in files
Flat = Annotated[_Config, tyro.conf.arg(name="")]


def read(file: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises: Refusal if the file is missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(file).read_text())
    except FileNotFoundError:
        raise Refusal(f"expected a configuration file, got {file}, which does not exist: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as trouble:
        told = " ".join(str(trouble).split())
        raise Refusal(f"expected YAML in {file}, got {told}: mend the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise Refusal(f"expected option: value lines in {file}, got a {type(values).__name__}: mend the file")
    return values


def build(kind: type, values: dict[str, Any], families: dict[str, str], *, prefix: str = "", base: Any = None) -> Any:
    """An instance of the dataclass `kind` with these values over its defaults (or over `base`).

    Fields without default and value are left for the command line.

    Args:
        families: field -> folder of modules; such a field is chosen by its `name`, see objectives/.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = _grouped(values, hints)
    known = {key.replace("-", "_"): key for key in values}
    for key, given in known.items():
        if key not in fields:
            names = [name for name in fields if not _is_flat(hints[name])]
            names += [field.name for name in fields if _is_flat(hints[name]) for field in _parts(hints[name])]
            raise Refusal(f"expected an option of this command, got {prefix}{given}: {nearest(key, names)}")
    result = {}
    for name, field in fields.items():
        if base is not None:
            default = getattr(base, name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = tyro.MISSING
        if name not in known:
            result[name] = default
            continue
        value, where = values[known[name]], f"{prefix}{name}"
        if name in families and not prefix:
            if not isinstance(value, dict):
                value = {"name": value}
            package = importlib.import_module(f"compress_ssl.{families[name]}")
            module = package.find(value.get("name", getattr(default, "name", "")))
            result[name] = build(module.Config, value, {}, prefix=f"{where}.")
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            if not isinstance(value, dict):
                raise Refusal(f"expected options under {where}, got {value!r}: write them as `name: value` lines")
            result[name] = build(type(default), value, {}, prefix=f"{where}.", base=default)
        else:
            result[name] = _fit(value, hints[name], where)
    return kind(**result)


def _is_flat(hint: Any) -> bool:
    return any(getattr(extra, "name", None) == "" for extra in getattr(hint, "__metadata__", ()))


def _parts(hint: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(typing.get_args(hint)[0])


def _grouped(values: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Options of a flat group moved under the group's name, where a run folder's config.yaml already has them."""
    owner = {field.name: name for name, hint in hints.items() if _is_flat(hint) for field in _parts(hint)}
    grouped = {key: value for key, value in values.items() if key.replace("-", "_") not in owner}
    for key, value in values.items():
        if key.replace("-", "_") in owner:
            group = owner[key.replace("-", "_")]
            grouped[group] = {**grouped.get(group, {}), key: value}
    return grouped


def _fit(value: Any, hint: Any, where: str) -> Any:
    """The value as the type that the field declares; YAML knows no tuples, paths or whole floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fit(value, arguments[0], where)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            if option is types.NoneType:
                if value is None or value in ("none", "None"):
                    return None
                continue
            try:
                return _fit(value, option, where)
            except Refusal:
                continue
        raise Refusal(f"expected {hint} for {where}, got {value!r}: correct the value")
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise Refusal(f"expected one of {', '.join(map(str, arguments))} for {where}, got {value!r}: choose one")
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_fit(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is Any or (isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    elif hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except ValueError:
            pass
    name = getattr(hint, "__name__", str(hint))
    raise Refusal(f"expected {name} for {where}, got {value!r}: correct the value")
