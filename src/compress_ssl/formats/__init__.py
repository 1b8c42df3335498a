"""Formats: how people publish checkpoints; one file a format, found by being here.

A checkpoint is whatever its authors saved: the encoder under a prefix, beside a slow copy, a queue, heads and the
optimizer. A format knows one such layout: which tensors are the backbone's, and what each of the others is. Every file
here has

    TITLE           as people call it
    SIGNS           parts of names by which a reader knows it; for "closest formats" in a refusal, nothing else
    PREPROCESSING   what its authors evaluate with, or None for what the named backbone publishes itself. Its size is
                    the backbone's (CLIP's towers have several); one for small pictures shows them whole, and keeps
                    its crop, too
    SIZE            optional: the size in pixels that its authors evaluate at, where the backbone's own is another
    EMBEDDING       the embedding its authors publish ("cls", "mean", ...); "" for the backbone's own
    find(content, *, named) -> Found | None
                    `named` says that the user wrote the format's name: only then a file counts that could as well be
                    of another format, such as a bare ResNet. Without it, no two formats may claim one file.
    fit(found, backbone) -> dict[str, Tensor]
                    optional: the tensors under the backbone's names; left out, they are the backbone's already
    note(found, backbone) -> str
                    optional: what else a user should know of this file in this backbone

A format never judges whether the tensors fit: what it cannot explain it leaves among `Found.tensors`, where
`weights.fit_weights` refuses it. So every tensor of a file is the backbone's, or named in `Found.dropped`, or refused.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.architecture import resnet
from compress_ssl.refusal import Refusal, nearest

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from compress_ssl.transforms import Preprocessing

SHOWN = 4  # names that a refusal lists
RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
# what training scripts keep beside the model, by the beginning of its key; the first that fits counts
BESIDE = {
    "optimizer": "optimizer state",
    "opt": "optimizer state",
    "lr_scheduler": "optimizer state",
    "scheduler": "optimizer state",
    "scaler": "optimizer state",
    "fp16_scaler": "optimizer state",
    "loss_scaler": "optimizer state",
    "amp": "optimizer state",
    "callbacks": "training state",
    "loops": "training state",
    "hyper_parameters": "training state",
    "hparams": "training state",
    "MixedPrecision": "training state",
    "rng": "training state",
    "epoch": "training state",
    "best_": "training state",
}


@dataclass(frozen=True)
class Found:
    """What a file holds, once its format is known.

    tensors: the backbone's, prefixes off, under its authors' names; and those that nobody can explain.
    dropped: what else there is -> the number of its tensors ("projection head" -> 4).
    architecture: the backbone that these shapes are of, as one writes it (`torchvision/resnet50`), if that is known.
    arguments: what a backbone of timm must be built with beside its name (`{"pooling": "token"}`): `from_timm.build`.
    preprocessing: of this file, where the format's files differ; None for the format's.
    """

    tensors: dict[str, Tensor]
    dropped: dict[str, int] = field(default_factory=dict)
    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None


def names() -> list[str]:
    """The formats, in alphabetical order; imports none of them."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__))


def open_format(name: str) -> ModuleType:
    """Raises: Refusal with the nearest name if there is no such format."""
    if name not in names():
        raise Refusal(f"expected a checkpoint format before the ':', got {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def recognise(content: Any, *, source: str = "the file") -> tuple[str, Found]:
    """Which format a file is of, by its keys, nesting and shapes.

    Args:
        content: the file as `weights.read_checkpoint` returns it.
        source: what the file is called in an error.
    Returns: the name of the format, and what the file holds.
    Raises: Refusal if no format knows the file, with what was found and the closest formats; or if several could.
    """
    certain = candidates(content, named=False)
    if len(certain) == 1:
        return next(iter(certain.items()))
    possible = certain or candidates(content, named=True)
    if possible:
        titles = ", ".join(f"{open_format(name).TITLE} (@{name}:)" for name in possible)
        raise Refusal(
            f"expected a checkpoint of one format in {source!r}, got {describe(content)}, which could be any of "
            f"{titles}: say which as BACKBONE@FORMAT:{source}."
        )
    close = closest(content)
    told = f"the closest formats are {', '.join(close)}" if close else "no format has names like these"
    raise Refusal(
        f"expected a published checkpoint in {source!r}, got {describe(content)}: {told}; name the backbone that these "
        f"tensors fit as BACKBONE@{source}, or save that backbone's state_dict() alone."
    )


def read_as(name: str, content: Any, *, source: str = "the file") -> Found:
    """Read a file as the format that its user names.

    Raises: Refusal if it is of another format, with the name of that one; or of none.
    """
    format = open_format(name)
    found = format.find(content, named=True) if isinstance(content, Mapping) else None
    if found is not None:
        return found
    wanted = f"expected a checkpoint of {format.TITLE} in {source!r}, got"
    others = candidates(content, named=False) or candidates(content, named=True)
    if not others:
        raise Refusal(f"{wanted} {describe(content)}: give such a checkpoint, or leave out `{name}:`.")
    other, found = next(iter(others.items()))
    parts = ", ".join([first_name(content), *(f"{count} of {what}" for what, count in found.dropped.items())])
    titles = " or ".join(open_format(one).TITLE for one in others)
    raise Refusal(f"{wanted} one of {titles} ({parts}): write @{other}:{source}, or give another file.")


def candidates(content: Any, *, named: bool) -> dict[str, Found]:
    """Every format that claims the file -> what the file holds in its eyes."""
    if not isinstance(content, Mapping):
        return {}
    found = {name: open_format(name).find(content, named=named) for name in names()}
    return {name: one for name, one in found.items() if one is not None}


def closest(content: Any) -> list[str]:
    """Formats with the largest share of their signs among the file's names, at most three."""
    found = [name for name, _ in tensors_of(content)] if isinstance(content, Mapping) else []
    shares = {}
    for name in names():
        signs = open_format(name).SIGNS
        shares[name] = sum(any(sign in one for one in found) for sign in signs) / max(1, len(signs))
    best = max(shares.values(), default=0)
    return [name for name, share in shares.items() if share == best][:3] if best >= 0.5 else []


def sort(
    content: Mapping[str, Any],
    *,
    under: tuple[str, ...] = (),
    backbone: str = "",
    drop: Mapping[str, str] | None = None,
    architecture: str | None = None,
) -> Found:
    """Sort the tensors of a file into the backbone's and the others'; counted, so that none is lost.

    Args:
        under: keys that lead to the state dict. Tensors elsewhere are called `KEY/...` after their own way from the
            top; what training scripts usually keep beside a model (`BESIDE`) is known, and dropped.
        backbone: prefix of the backbone's names, taken off.
        drop: beginning of a name, before the prefix is taken off -> what it is; asked before the prefix, the longest
            beginning first.
    Returns: tensors that are neither of the backbone nor explained are kept under their whole name, to be refused.
    """
    path = "/".join((*under, ""))
    order = sorted((drop or {}).items(), key=lambda item: -len(item[0]))
    kept: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    for place, tensor in tensors_of(content):
        name = place.removeprefix(path)
        what = next((what for start, what in order if name.startswith(start)), None)
        if what is None and not place.startswith(path):
            what = next((what for start, what in BESIDE.items() if place.startswith(start)), None)
        if what is not None:
            dropped[what] += 1
        elif place.startswith(path) and name.startswith(backbone):
            kept[name.removeprefix(backbone)] = tensor
        else:
            kept[name] = tensor
    return Found(kept, dict(dropped), architecture)


def momentum_contrast(content: Mapping[str, Any], *, head: str) -> Found | None:
    """A file of MoCo's training script, v1 or v2, which differ in the head of the query encoder.

    Args:
        head: the name of a tensor of that head.
    """
    for under, state in states(content, ("state_dict",), ()):
        for prefix in ("module.", ""):
            query = f"{prefix}encoder_q."
            if {f"{query}conv1.weight", f"{query}{head}"} <= state.keys():
                drop = {
                    f"{query}fc.": "projection head",
                    f"{prefix}encoder_k.": "key encoder",
                    f"{prefix}queue": "queue",
                }
                return sort(content, under=under, backbone=query, drop=drop, architecture=resnet(state, query))
    return None


def bare(content: Mapping[str, Any]) -> tuple[tuple[str, ...], str, Mapping[str, Any]] | None:
    """The state dict of one network: the keys that lead to it, the prefix of all its names that says nothing about
    them ("module." of several processes, ...; or none), and the state dict. None if there is none.
    """
    for under, state in states(content, (), ("state_dict",), ("model",), ("network",)):
        plain = ("module.", "_orig_mod.")
        return under, next((one for one in plain if all(name.startswith(one) for name in state)), ""), state
    return None


def bare_resnet(content: Mapping[str, Any], *, head: str = "") -> Found | None:
    """A file that holds a ResNet alone and nothing that tells whose; what a format reads only when it is named.

    Args:
        head: what its authors have in the place of torchvision's `fc`; "" if they publish none.
    """
    place = bare(content)
    if place is None:
        return None
    under, prefix, state = place
    names = [name.removeprefix(prefix) for name in state]
    parts = RESNET + (("fc.",) if head else ())
    if not all(name.startswith(parts) for name in names) or not {"conv1.weight", "layer4.0.conv1.weight"} <= set(names):
        return None
    drop = {f"{prefix}fc.": head}
    return sort(content, under=under, backbone=prefix, drop=drop, architecture=resnet(state, prefix))


def bare_vit(content: Mapping[str, Any], *, pattern: str) -> Found | None:
    """A file that holds a ViT alone and nothing that tells whose; what a format reads only when it is named.

    Args:
        pattern: how timm calls such a ViT, as in `vit.Trunk.name`.
    """
    place = bare(content)
    if place is None:
        return None
    under, prefix, state = place
    trunk = vit.trunk(state, prefix)
    if trunk is None or not vit.is_bare(state, prefix):
        return None
    return sort(content, under=under, backbone=prefix, architecture=trunk.name(pattern))


# Where torchvision's ResNet keeps its parts when it is taken apart and put together by number, as many tutorials do:
# nn.Sequential(*list(resnet.children())[:-1])
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def named_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ResNet put together by number under torchvision's names; all others as they are."""
    renamed = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        renamed[f"{NUMBERED[number]}.{rest}" if number in NUMBERED and "4.0.conv1.weight" in tensors else name] = tensor
    return renamed


def state_of(content: Mapping[str, Any], *under: str) -> Mapping[str, Any] | None:
    """The mapping at the end of these keys, if there is one with tensors in it."""
    from torch import Tensor

    inner: Any = content
    for key in under:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not any(isinstance(value, Tensor) for value in inner.values()):
        return None
    return inner


def states(content: Mapping[str, Any], *places: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The keys that lead to it and the state dict, for each of these places where one lies."""
    for under in places:
        state = state_of(content, *under)
        if state is not None:
            yield under, state


def tensors_of(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file with the keys that lead to it, `optimizer/state/0/momentum_buffer`."""
    from torch import Tensor

    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{path}{key}", value
        elif isinstance(value, Mapping):
            yield from tensors_of(value, f"{path}{key}/")
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(dict(enumerate(value)), f"{path}{key}/")


def first_name(content: Mapping[str, Any]) -> str:
    """The first tensor's name, without the keys that lead to it."""
    return next((name.rpartition("/")[2] for name, _ in tensors_of(content)), "no tensor")


def describe(content: Any) -> str:
    """What is in a file, for a refusal: its top-level keys, its first tensors and their shapes."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    found = list(tensors_of(content))
    if not found:
        keys = list(map(str, content))
        return f"no tensor but {', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''}" if keys else "nothing"
    shown = ", ".join(
        f"{name.rpartition('/')[2]} {'×'.join(map(str, one.shape)) or 'scalar'}" for name, one in found[:SHOWN]
    )
    nested = [str(key) for key, value in content.items() if not hasattr(value, "shape")]
    keys_told = f" under {', '.join(nested[:SHOWN])}{', …' if len(nested) > SHOWN else ''}" if nested else ""
    return f"{len(found)} tensors{keys_told} ({shown}{', …' if len(found) > SHOWN else ''})"
