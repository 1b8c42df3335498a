"""A configuration -> the command that has it: what someone types to do one cell of a table again."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from typing import Any

from compress_ssl.settings import is_flat


def command(verb: str, config: Any) -> str:
    """`compress-ssl VERB --option value …`, with the options that are not at their defaults."""
    return shlex.join(["compress-ssl", verb, *_words(config, _defaults(config), "")])


def _words(config: Any, usual: dict[str, Any], prefix: str) -> list[str]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    words: list[str] = []
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        default = usual.get(field.name, dataclasses.MISSING)
        flag = f"--{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(type(value)):
            other = type(value) is not type(default)  # another file of a family, which has other defaults
            if other:
                words += [flag, value.name]
            inner = _defaults(value) if other else _values(default)
            words += _words(value, inner, prefix if is_flat(hints[field.name]) else f"{prefix}{field.name}.")
        elif value != default:
            words += _option(flag, value)
    return words


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, dot, name = flag.rpartition(".")
        return [flag if value else f"{head}{dot}no-{name}" if dot else f"--no-{flag[2:]}"]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, "none" if value is None else str(value)]


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _defaults(config: Any) -> dict[str, Any]:
    """Field -> default, of those that have one."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found
