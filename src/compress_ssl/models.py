"""What can be teacher or student, and what a file is: the library's models by a part of their name, or one thing alone.

Sizes are computed, not remembered: each model is built without memory for its weights (torch's meta device) and its
multiply-adds are counted at its own input size. Nothing is downloaded. Each line appears as soon as it is known.

`--json` prints one object a line: {name, parameters, multiply_adds, width, input_size, embedding, weights (timm's tag;
"published" for torchvision; null), licence (of those weights; null where none is stated), use ("both"; "student": a
teacher with weights of yours alone, as NAME@FILE; "teacher"), trouble (why it cannot be used, else null)}. Of a
checkpoint: {name, format, title, architecture, tensors, dropped: {what: tensors}, embedding, preprocessing, spec (to be
written as a model; null where the architecture is not known), candidates (only where the file does not say whose it is:
{format: spec})}.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from compress_ssl.backbones import AS_THEY_ARE, EXTERNAL, FAMILIES, ONNX_FILE, own_names, read_spec
from compress_ssl.refusal import Refusal

if TYPE_CHECKING:
    from compress_ssl.formats import Found

COLUMNS = {"parameters": 10, "multiply_adds": 9, "width": 6, "input_size": 6, "embedding": 10, "use": 8}  # characters
HEADINGS = {
    **{key: key for key in COLUMNS},
    "multiply_adds": "mult-adds",
    "input_size": "input",
    "weights": "weights (licence)",
}
NAMES = {"multiply_adds": "multiply-adds", "spec": "write"}
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl", ".npz", ".onnx", ".torch", ".th")
UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


@dataclass(frozen=True, kw_only=True)
class Config:
    """List models that can be teacher or student; or say what a checkpoint, an ONNX file, a folder or a run is."""

    # part of a name (resnet18), a shell pattern ('timm/vit_tiny*'; 'resnet18.*' lists timm's weights by their tags),
    # or a checkpoint file, a run, FILE.onnx, python/MODULE:FUNCTION (its attributes: size, 224 pixels without it, and
    # width); left out: the families
    pattern: Annotated[str, tyro.conf.Positional] = ""
    limit: int = 40  # models to list at most, for each is built; 0: all
    json: bool = False  # print one JSON object a line

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise Refusal(f"--limit expected 0 (all) or more, got {self.limit}: 40 is usual")


def run(config: Config) -> None:
    """Print what was asked for, line by line; whoever has seen enough (`| head`) may end it."""
    try:
        _tell(config)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(config: Config) -> None:
    if config.pattern and (found := _one_thing(config.pattern)) is not None:
        _print_one(found, as_json=config.json)
        return
    names = _matching(config.pattern) if config.pattern else []
    if not config.pattern:
        if not config.json:
            print(_families())
            return
        names = [name for family in _all_names().values() for name in family]
    shown = names[: config.limit or None]
    column = max(map(len, shown))
    if not config.json:
        print(_line(column, "model", HEADINGS))
    for name in shown:
        about = describe(name)
        print(json.dumps(about) if config.json else _line(column, name, _written(about)), flush=True)
    if len(shown) < len(names) and not config.json:
        print(f"{len(names) - len(shown)} more match: write more of the name, or give --limit 0 for all")


def describe(name: str) -> dict[str, Any]:
    """Sizes, weights and use of a model of a family, by `FAMILY/NAME`; takes no memory for its weights."""
    import torch

    from compress_ssl.encoder import Encoder, costs
    from compress_ssl.filled import build

    keys = ("parameters", "multiply_adds", "width", "input_size", "embedding", "weights", "licence", "use", "trouble")
    about: dict[str, Any] = {"name": name, **dict.fromkeys(keys)}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's, of random numbers that are not drawn
            backbone = build(name, weights="random", size=None)
            encoder = Encoder(backbone, spec=name, architecture=name).eval().requires_grad_(False)
            about |= costs(encoder)
    except Exception as trouble:  # the list goes on: what somebody else's model raises is told in its line
        reason = str(trouble) if isinstance(trouble, Refusal) else f"{type(trouble).__name__}: {trouble}"
        return about | {"trouble": reason.splitlines()[0]}
    about |= {"width": encoder.width, "input_size": encoder.preprocessing.size, "embedding": encoder.embedding}
    about["weights"], about["licence"] = _published(name)
    return about | {"use": "student" if about["weights"] is None else "both"}


def recognised(file: Path) -> dict[str, Any]:
    """What a checkpoint is, by its format.

    Raises: Refusal if no format knows it, or several do.
    """
    from compress_ssl import formats
    from compress_ssl.weights import read_checkpoint

    content = read_checkpoint(file)
    possible = {} if formats.candidates(content, named=False) else formats.candidates(content, named=True)
    if len(possible) > 1:
        return _undecided(file, possible)
    name, found = formats.recognise(content, source=str(file))
    reader = formats.open_format(name)
    published = found.preprocessing or reader.PREPROCESSING
    return {
        "name": str(file),
        "format": name,
        "title": reader.TITLE,
        "architecture": found.architecture,
        "tensors": len(found.tensors),
        "dropped": dict(found.dropped),
        "embedding": reader.EMBEDDING or None,
        "preprocessing": None if published is None else dataclasses.asdict(published),
        "spec": found.architecture and f"{found.architecture}@{name}:{file}",
    }


def _undecided(file: Path, possible: dict[str, Found]) -> dict[str, Any]:
    """Of a file that does not say whose it is: whose it could be, and what to write for each."""
    from compress_ssl import formats

    found = next(iter(possible.values()))
    ways = {name: f"{one.architecture or 'BACKBONE'}@{name}:{file}" for name, one in possible.items()}
    keys = ("format", "title", "architecture", "tensors", "dropped", "embedding", "preprocessing", "spec")
    return {
        "name": str(file),
        **dict.fromkeys(keys),
        "title": f"could be of {', '.join(formats.open_format(name).TITLE for name in possible)}: it does not say",
        "tensors": len(found.tensors),
        "dropped": {},
        "candidates": ways,
    }


def _one_thing(pattern: str) -> dict[str, Any] | None:
    """What lies at a path, or a backbone with a weights file; None for a part of a name.

    Raises: Refusal if it lies there and is no model, or could only be had from the network.
    """
    spec = read_spec(pattern)
    if spec.kind == "missing" and not any(sign in pattern for sign in "*?[") and _is_like_a_path(pattern):
        raise Refusal(f"expected a file, a folder or a part of a model's name, got {pattern!r}, where nothing lies: "
                      "check the path.")  # fmt: skip
    graph = ONNX_FILE.fullmatch(pattern) if spec.kind == "onnx" else None
    if graph and not any(Path(path).is_file() for path in (pattern, graph[1])):
        raise Refusal(f"expected an ONNX file, got {pattern!r}, where nothing lies: check the path.")
    remote = isinstance(spec.weights, str) and "://" in spec.weights
    if remote or (spec.kind == "transformers" and not Path(spec.name).is_dir()):
        raise Refusal(f"expected something on this machine, got {pattern!r}, for which the network would be asked: "
                      "name a file or a folder.")  # fmt: skip
    if spec.kind == "file":
        return recognised(Path(pattern))
    opened = spec.kind in EXTERNAL or spec.kind in ("run", "folder") or isinstance(spec.weights, Path)
    return _opened(pattern, teacher_only=spec.kind in EXTERNAL) if opened else None


def _is_like_a_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text.lower().endswith(SUFFIXES)


def _opened(spec: str, *, teacher_only: bool) -> dict[str, Any]:
    from compress_ssl.encoder import costs, open_encoder

    encoder = open_encoder(spec, weights="pretrained")
    return {
        "name": spec,
        **costs(encoder),
        "width": encoder.width,
        "input_size": encoder.preprocessing.size,
        "embedding": encoder.embedding,
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "use": "teacher" if teacher_only else "both",
        "told": encoder.told or None,
    }


def _all_names() -> dict[str, list[str]]:
    from compress_ssl.backbones import from_timm, from_torchvision

    return {
        "timm": [f"timm/{name}" for name in from_timm.names()],
        "torchvision": [f"torchvision/{name}" for name in from_torchvision.names()],
        "compress": [f"compress/{name}" for name in own_names()],
    }


def _matching(pattern: str) -> list[str]:
    """Models whose name is, contains or matches the pattern; an exact one first.

    Raises: Refusal with the nearest name if there is none.
    """
    families = _all_names()
    names = [name for family in families.values() for name in family]
    family, slash, rest = pattern.partition("/")
    bare = rest if slash and family in FAMILIES else pattern
    if "." in bare:  # a tag of timm's weights
        names = _tagged()
    if any(sign in pattern for sign in "*?["):
        found = [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(_bare(name), pattern)]
    else:
        found = [name for name in names if pattern in name]
        found.sort(key=lambda name: pattern not in (name, _bare(name)))
    if not found and family == "compress" and slash:
        from compress_ssl.backbones import build_own

        build_own(rest)  # or a Refusal with the nearest: names with a number in them are more than are listed
        return [pattern]
    if not found:
        known = {_bare(name) for name in names}
        close = difflib.get_close_matches(bare.partition(".")[0].strip("*?"), known, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]!r}?" if close else "write less of the name."
        raise Refusal(f"expected a model's name, a part of one or a file, got {pattern!r}, which matches none: {hint}")
    return found


def _tagged() -> list[str]:
    import timm

    return [f"timm/{name}" for name in timm.list_models(pretrained=True)]


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _published(name: str) -> tuple[str | None, str | None]:
    """The weights that `NAME@pretrained` means, and their licence where their publisher states one."""
    family, _, bare = name.partition("/")
    if family == "timm":
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(bare)
        if found is None or not found.has_weights:
            return None, None
        return found.tag or "published", found.license
    if family == "torchvision":
        from torchvision import models

        return "published", models.get_model_weights(bare).DEFAULT.meta.get("license")
    return None, None


def _families() -> str:
    names = _all_names()
    about = {
        "timm": "PyTorch Image Models; teacher with published weights, or student",
        "torchvision": "its classifiers; teacher with published weights, or student",
        "compress": "our own; student, or teacher with @FILE",
    }
    lines = [f"  {f'{family}/NAME':<32} {len(names[family]):>5}  {told}" for family, told in about.items()]
    lines += [
        f"  {written:<32}        {told}"
        for written, told in {
            "transformers/FOLDER_OR_HUB_NAME": "vision models of Hugging Face transformers; teacher",
            "FILE.onnx": "an ONNX graph; teacher",
            "python/MODULE:FUNCTION": "a function of yours, images -> rows; teacher",
            "a run folder": "of pretrain or distill; teacher, or student to go on with",
        }.items()
    ]
    from compress_ssl import formats

    return "\n".join([
        "Models are written as", *lines, "",
        "Weights are written behind the name: NAME@FILE, NAME@FORMAT:FILE, NAME@pretrained, NAME@random, with FORMAT",
        *_wrapped(formats.names()), "",
        "compress-ssl models resnet18          sizes of all models whose name holds that",
        "compress-ssl models 'timm/vit_tiny*'  or matches that, as a shell matches names",
        "compress-ssl models FILE              what a checkpoint is, and how to write it",
    ])  # fmt: skip


def _wrapped(words: list[str], width: int = 100) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(
        ", ".join(words), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def _written(about: dict[str, Any]) -> dict[str, str]:
    if about["trouble"]:
        return {"weights": about["trouble"]}
    cells = {key: "–" if about[key] is None else str(about[key]) for key in (*COLUMNS, "weights")}
    for key in ("parameters", "multiply_adds"):
        cells[key] = _rounded(about[key])
    if about["licence"]:
        cells["weights"] += f" ({about['licence']})"
    return cells


def _line(column: int, name: str, cells: dict[str, str]) -> str:
    parts = [f"{name:<{column}}"]
    if len(cells) > 1:
        numbers = ("parameters", "multiply_adds", "width", "input_size")
        parts += [
            f"{cells[key]:>{size}}" if key in numbers else f"{cells[key]:<{size}}" for key, size in COLUMNS.items()
        ]
    return "  ".join([*parts, cells["weights"]])


def _rounded(count: int | None) -> str:
    if count is None:
        return "–"
    return next((f"{count / size:.3g} {unit}" for unit, size in UNITS if count >= size), str(count))


def _print_one(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        if value in (None, {}):
            continue
        if key == "candidates":
            for way in value.values():
                print(f"{'write':<14} {way}")
            continue
        if key == "preprocessing":
            if all(tuple(value[name]) == numbers for name, numbers in AS_THEY_ARE.items()):
                value = {name: part for name, part in value.items() if name not in AS_THEY_ARE}
                value["pixels"] = "as they are"
            value = ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
        elif key == "dropped":
            value = ", ".join(f"{what} {count}" for what, count in value.items())
        elif key in ("parameters", "multiply_adds"):
            value = _rounded(value)
        print(f"{NAMES.get(key, key.replace('_', ' ')):<14} {value}")


def _plain(value: Any) -> str:
    return " ".join(f"{part:.4g}" for part in value) if isinstance(value, tuple | list) else f"{value}"
