"""Configuration files: YAML of plain values -> the dataclass that is the configuration.

A file holds only what differs from the defaults; of several files, a later one overrides an earlier one. Keys may be
written with dashes, as on the command line. An unknown key is refused with the nearest known one.
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
    """The mapping that a YAML file holds, keys with underscores.

    Raises: Refusal if the file is missing, not YAML, or not a mapping of names.
    """
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"expected a configuration file, got {file}, which does not exist: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as trouble:
        told = " ".join(str(trouble).split())
        raise Refusal(f"expected YAML in {file}, got {told}: mend the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise Refusal(f"expected option: value lines in {file}, got a {type(values).__name__}: mend the file")
    return _underscored(values, file)


def _underscored(values: dict[Any, Any], file: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise Refusal(f"expected names of options as keys in {file}, got {key!r}: mend the file")
        name = key.replace("-", "_")
        if name in named:
            raise Refusal(f"expected every option once in {file}, got {name} as {key!r} too: remove one")
        named[name] = _underscored(value, file) if isinstance(value, dict) else value
    return named


def gather(kind: type, files: list[str], families: dict[str, str]) -> dict[str, Any]:
    """The values of all files together, for the dataclass `kind`; a later file overrides an earlier one."""
    return layered(kind, [read(file) for file in files], families)


def layered(kind: type, layers: list[dict[str, Any]], families: dict[str, str]) -> dict[str, Any]:
    """The values of all layers together, for the dataclass `kind`; a later layer overrides an earlier one."""
    whole: dict[str, Any] = {}
    for layer in layers:
        values = grouped(kind, layer)
        for name in families.keys() & values.keys():
            if isinstance(values[name], str):
                values[name] = {"name": values[name]}
            whole[name] = choose(whole.get(name), values[name].get("name") if isinstance(values[name], dict) else None)
        whole = merged(whole, values)
    return whole


def choose(given: Any, name: str | None) -> dict[str, Any]:
    """The options of a family's file, as far as they still hold when `name` is chosen: another file has others."""
    if not isinstance(given, dict):
        given = {}
    return given if name is None or given.get("name", name) == name else {}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, group by group; where both have a value, the new one."""
    both = dict(old)
    for key, value in new.items():
        groups = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if groups else value
    return both


def build(kind: type, values: dict[str, Any], families: dict[str, str], *, prefix: str = "", base: Any = None) -> Any:
    """An instance of the dataclass `kind` with these values over its defaults (or over `base`).

    Fields without default and value are left for the command line.

    Args:
        families: field -> folder of modules; such a field is chosen by its `name`, see objectives/.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = grouped(kind, values)
    for key in values:
        if key not in fields:
            names = [name for name in fields if not is_flat(hints[name])]
            names += [field.name for name in fields if is_flat(hints[name]) for field in _parts(hints[name])]
            inside = [option for option in _grouped_options(kind) if option.endswith(f".{key}")]
            advice = f"did you mean {inside[0]!r}?" if inside else nearest(key, names)
            raise Refusal(f"expected an option of this command, got {prefix}{key}: {advice}")
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
        if name not in values:
            result[name] = default
            continue
        value, where = values[name], f"{prefix}{name}"
        if name in families and not prefix:
            if not isinstance(value, dict):
                value = {"name": value}
            package = importlib.import_module(f"compress_ssl.{families[name]}")
            module = package.find(_fit(value.get("name", getattr(default, "name", "")), str, f"{where}.name"))
            result[name] = build(module.Config, value, {}, prefix=f"{where}.")
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            if not isinstance(value, dict):
                raise Refusal(f"expected options under {where}, got {value!r}: write them as `name: value` lines")
            result[name] = build(type(default), value, {}, prefix=f"{where}.", base=default)
        else:
            result[name] = _fit(value, hints[name], where)
    return kind(**result)


def _grouped_options(kind: type) -> list[str]:
    """Dotted names of the options in the groups that are there unasked: objective.temperature."""
    found = []
    for field in dataclasses.fields(kind):
        value = field.default_factory() if callable(field.default_factory) else field.default
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)]
    return found


def is_flat(hint: Any) -> bool:
    """Whether the options of this field, a dataclass, are written without its name."""
    return any(getattr(extra, "name", None) == "" for extra in getattr(hint, "__metadata__", ()))


def _parts(hint: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(typing.get_args(hint)[0])


def grouped(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Options of a flat group moved under the group's name, where a run folder's config.yaml already has them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    owner = {field.name: name for name, hint in hints.items() if is_flat(hint) for field in _parts(hint)}
    found = {key: value for key, value in values.items() if key not in owner}
    for key, value in values.items():
        if key in owner:
            group = found.get(owner[key], {})
            if not isinstance(group, dict):
                raise Refusal(f"expected options under {owner[key]}, got {group!r}: write them as `name: value` lines")
            found[owner[key]] = {**group, key: value}
    return found


def options(kind: type, default: Any, *, prefix: str = "") -> dict[str, Any]:
    """Every option of a command, dotted and with underscores -> the type that it takes; positional ones are left out.

    Args:
        default: an instance, which says what the families' options are.
    """
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        value = getattr(default, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= options(type(value), value, prefix=prefix if is_flat(hint) else f"{prefix}{name}.")
        elif not {tyro.conf.Positional, tyro.conf.Suppress} & set(getattr(hint, "__metadata__", ())):
            found[f"{prefix}{name}"] = hint
    return found


def fit_words(words: list[str], hint: Any, where: str) -> Any:
    """What follows an option on the command line, as the type that it takes; the judge of what tyro has refused.

    Raises: Refusal if the words are no such value.
    """
    if typing.get_origin(hint) is typing.Annotated:
        return fit_words(words, typing.get_args(hint)[0], where)
    if typing.get_origin(hint) is tuple:
        return _fit([_plain(word) for word in words], hint, where)
    if not words:
        raise Refusal(f"expected {_told(hint)} after {where}, got nothing: write it there")
    try:
        return _fit(words[0], hint, where)
    except Refusal:
        return _fit(_plain(words[0]), hint, where)


def _plain(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


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
    elif origin is typing.Literal:
        for option in arguments:
            if option == value or (type(value) is int and option == str(value)):  # YAML reads 32 as a number
                return option
        hint_at = nearest(value, map(str, arguments)) if isinstance(value, str) else "choose one"
        raise Refusal(f"expected one of {', '.join(map(str, arguments))} for {where}, got {value!r}: {hint_at}")
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_fit(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is Any or (
        isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    ):
        return value
    elif hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except ValueError:
            pass
    raise Refusal(f"expected {_told(hint)} for {where}, got {value!r}: correct the value")


def _told(hint: Any) -> str:
    """A type in a reader's words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _told(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_told(option) for option in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments == (Any, Ellipsis):
        return "a list"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of which each is {_told(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_told(arguments[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        types.NoneType: "none",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))
