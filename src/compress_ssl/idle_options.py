"""Options that nothing would read, such as those of another task: they are refused, or a wish goes unheard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compress_ssl.refusal import Refusal


def refuse_idle(
    config: Any, names: Iterable[str], *, prefix: str = "", expected: str, without: str, instead: Mapping[str, str] = {}
) -> None:
    """Refuse what was set of some fields, groups of options among them, whose values nothing is to read.

    An option that was given the value it has anyway cannot be told from one that was not given, and does no harm.

    Args:
        config: a dataclass with a default for each of these fields.
        names: of the fields.
        prefix: of the flags: protocols.few_labels.
        expected: what would make them count: --task detection.
        without: what came instead: with --task classification.
        instead: field -> what to write; otherwise the advice is to leave it out.
    Raises: Refusal naming the first one.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name in names:
        field = fields[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for flag, value in _changed(getattr(config, name), default, f"{prefix}{name}"):
            told = " ".join(map(str, value)) if isinstance(value, tuple) else value
            advice = instead.get(name, "leave it out")
            raise Refusal(f"--{flag.replace('_', '-')} expected {expected}, got {told} {without}: {advice}")


def _changed(value: Any, default: Any, flag: str) -> Iterator[tuple[str, Any]]:
    """Flag and value of every option that is not as it was, in the order of the fields."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _changed(getattr(value, field.name), getattr(default, field.name), f"{flag}.{field.name}")
    elif value != default:
        yield flag, value
