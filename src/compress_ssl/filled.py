"""A backbone by name with its weights in it: from a published checkpoint, a plain state dict, or its authors' own.

What the format of a file knows beside the tensors (the input its authors publish, how the backbone must be built) goes
with them, and one line says what was taken from the file and what was left.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from compress_ssl import formats
from compress_ssl.backbones import build_own
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing
from compress_ssl.weights import backbone_part, fetch, fit_weights, plain_state, read_checkpoint

SMALL = 100  # pixels; below, a backbone is for small pictures, which are shown whole


@dataclass(frozen=True)
class Filled:
    """backbone: with its weights and its input; arguments: what it was built with; told: one line about its file;
    size: of its input, if it is not the backbone's own."""

    backbone: nn.Module
    arguments: dict[str, Any] = field(default_factory=dict)
    told: str = ""
    size: int | None = None


def open_weights(architecture: str, source: str | Path, *, format: str | None, size: int | None) -> Filled:
    """Build a backbone and fill it.

    Args:
        source: a file, an address, or "pretrained".
        format: the name of the file's format; None to recognise it.
        size: side of the square input in pixels; None for the backbone's own.
    Raises: Refusal if the weights cannot be had, are of another backbone, or are of no format and do not fit.
    """
    if source == "pretrained":
        backbone = build(architecture, weights="pretrained", size=size)
        if architecture.startswith("compress/"):
            raise Refusal(
                f"expected weights for {architecture}, got none, for our own backbones have no published ones: "
                f"give a run folder, {architecture}@FILE or {architecture}@random."
            )
        return Filled(backbone)
    file = source if isinstance(source, Path) else fetch(source)
    content = read_checkpoint(file)
    if format is None and not formats.candidates(content, named=False):
        return _plain(architecture, content, file, size)
    if format is None:
        format, found = formats.recognise(content, source=str(file))
    else:
        found = formats.read_as(format, content, source=str(file))
    return _published(architecture, content, found, format, file, size)


def fill(
    architecture: str,
    state: Callable[[nn.Module], Mapping[str, Tensor]],
    *,
    size: int | None,
    made_for: int | None,
    source: str,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a backbone for `size` and fill it with weights of that size, or else interpolate those `made_for` another.

    The result is always what `build` makes of the same arguments, so that a saved copy can be rebuilt.

    Args:
        state: backbone -> the tensors under its names.
    """
    backbone = build(architecture, weights="random", size=size, arguments=arguments)
    part, own = state(backbone), backbone.state_dict()
    if size != made_for and any(part[name].shape != own[name].shape for name in part.keys() & own.keys()):
        original = build(architecture, weights="random", size=made_for, arguments=arguments)
        fit_weights(original, state(original), source=source)
        assert size is not None
        _resize(architecture, original, size)
        part = original.state_dict()
    fit_weights(backbone, part, source=source)
    return backbone


def build(
    architecture: str,
    *,
    weights: Literal["pretrained", "random"],
    size: int | None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A backbone of timm, torchvision or ours by `FAMILY/NAME`."""
    family, _, name = architecture.partition("/")
    if family == "timm":
        from compress_ssl.backbones import from_timm

        return from_timm.build(name, weights=weights, size=size, **(arguments or {}))
    if arguments:
        raise Refusal(
            f"expected a backbone of timm, which can be built with {', '.join(arguments)} as these weights need, got "
            f"{architecture}: name a model of timm that they fit."
        )
    if family == "torchvision":
        from compress_ssl.backbones import from_torchvision

        return from_torchvision.build(name, weights=weights, size=size)
    backbone: Any = build_own(name)
    if size is not None:
        backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=size)
    return backbone


def _resize(architecture: str, backbone: nn.Module, size: int) -> None:
    """Interpolate the position embeddings of a backbone that has its weights; none of our own has any."""
    if architecture.startswith("timm/"):
        from compress_ssl.backbones import from_timm

        from_timm.resize(backbone, size)
    elif architecture.startswith("torchvision/"):
        from compress_ssl.backbones import from_torchvision

        from_torchvision.resize(backbone, size)


def _published(
    architecture: str, content: Any, found: formats.Found, format: str, file: Path, size: int | None
) -> Filled:
    reader = formats.open_format(format)
    fit = getattr(reader, "fit", lambda found, _: found.tensors)
    note = getattr(reader, "note", lambda *_: "")
    published = found.preprocessing or reader.PREPROCESSING
    tensors = len(found.tensors) + sum(found.dropped.values())
    if size is None:
        size = getattr(reader, "SIZE", None)
    try:
        backbone: Any = fill(
            architecture,
            lambda one: fit(found, one),
            size=size,
            made_for=None,
            source=str(file),
            arguments=found.arguments,
        )
    except Refusal as refusal:
        if found.architecture is None or found.architecture.partition(".")[0] == architecture.partition(".")[0]:
            raise
        raise Refusal(
            f"expected the weights of {architecture} in {str(file)!r}, got {reader.TITLE}'s of {found.architecture}: "
            f"write {found.architecture}@{format}:{file}."
        ) from refusal
    if reader.EMBEDDING and backbone.embedding != reader.EMBEDDING:
        raise Refusal(
            f"expected a backbone that gives the embedding that {reader.TITLE} publishes, {reader.EMBEDDING!r}, got "
            f"{architecture}, which gives {backbone.embedding!r}: name another that these weights fit."
        )
    backbone.preprocessing = _input(backbone.preprocessing, published)
    told = _line(reader.TITLE, tensors - sum(found.dropped.values()), file, found.dropped)  # `fit` may drop, too
    notes = [note(found, backbone), _doubt(_others(content, format, backbone))]
    return Filled(backbone, dict(found.arguments), "; ".join([told, *filter(None, notes)]), size)


def _plain(architecture: str, content: Any, file: Path, size: int | None) -> Filled:
    """A file of no format: a state dict whose names are the backbone's own, or a refusal that says what it is.

    A file that could as well be of authors who normalise otherwise is refused: its rows would be wrong, unnoticed.
    """
    own = build(architecture, weights="random", size=size)
    if _others(content, "", own):
        formats.recognise(content, source=str(file))
    state = plain_state(content, source=str(file))
    part = backbone_part(state, own)
    if not part.keys() & own.state_dict().keys():
        formats.recognise(content, source=str(file))
    backbone = fill(architecture, lambda one: backbone_part(state, one), size=size, made_for=None, source=str(file))
    taken = {id(tensor) for tensor in part.values()}
    left = Counter(name.split(".")[0] for name, tensor in state.items() if id(tensor) not in taken)
    return Filled(backbone, told=_line(f"a state dict of {architecture}", len(part), file, left))


def _line(title: str, taken: int, file: Path, dropped: Mapping[str, int]) -> str:
    left = ", ".join(f"{what} {count}" for what, count in dropped.items())
    return f"weights: {title}, {taken} tensors from {file.name}; {f'dropped: {left}' if left else 'nothing dropped'}"


def _is_small(own: Preprocessing) -> bool:
    return own.size < SMALL and own.crop_fraction == 1


def _input(own: Preprocessing, published: Preprocessing | None) -> Preprocessing:
    """What a format's authors evaluate with, at the backbone's own size."""
    if published is None:
        return own
    if _is_small(own):
        return dataclasses.replace(own, mean=published.mean, std=published.std)
    return dataclasses.replace(published, size=own.size)


def _others(content: Any, format: str, backbone: nn.Module) -> dict[str, str]:
    """Formats that the file could also be of, whose authors normalise otherwise than the backbone -> their titles."""
    mine: Any = backbone.preprocessing
    found = {}
    for name in formats.candidates(content, named=True):
        reader = formats.open_format(name)
        other = reader.PREPROCESSING
        if name != format and other is not None and (other.mean, other.std) != (mine.mean, mine.std):
            found[name] = reader.TITLE
    return found


def _doubt(others: Mapping[str, str]) -> str:
    told = [f"@{name}: if it is {title}'s" for name, title in others.items()]
    return f"write {' or '.join(told)}, whose mean and std are others" if told else ""
