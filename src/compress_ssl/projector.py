"""What leads from the backbone's features to the rows that an objective compares: nothing, one linear layer, or an MLP.

It is left out of the delivered encoder, whose embedding is the backbone's own. One that leads into the teacher's space
stays beside it: with it, an index of teacher rows can be queried (`embed --space teacher`, asymmetric evaluation).
Source: linear and dropped after training in CompRess-1q (NeurIPS 2020, Sec. 3); the MLP with batch norm is that of
SimCLR v2 and BYOL (Chen et al., Grill et al., NeurIPS 2020): a linear layer, batch norm, ReLU, …, a linear layer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from compress_ssl.refusal import Refusal, nearest
from compress_ssl.run_folder import write_atomically

Space = Literal["teacher", "own"]  # in which the student's rows are compared with anchors


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """From the backbone's features to what is compared; dropped from the delivered encoder."""

    # auto: linear where students learn the teacher's own space (1q, regression), which has a width, else none (2q)
    kind: Literal["auto", "none", "linear", "mlp"] = "auto"
    layers: int = 2  # of an mlp: 2 to 4 linear layers
    hidden_width: int | None = None  # between an mlp's layers; none: the wider of its two ends
    batch_norm: bool = True  # of an mlp, before each ReLU; over the images of one process
    width: int | None = None  # of what comes out; none: the teacher's in its space, else the backbone's

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= 4:
            raise Refusal(
                f"--projector.layers expected 2 to 4, got {self.layers}: one layer is --projector.kind linear"
            )
        for name in ("hidden_width", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise Refusal(f"--projector.{flag} expected at least 1, got {value}: leave it out")
        if self.kind != "mlp":
            for name in ("layers", "hidden_width", "batch_norm"):
                if getattr(self, name) != getattr(ProjectorConfig, name):
                    flag = name.replace("_", "-")
                    advice = "add --projector.kind mlp" if self.kind == "auto" else "leave one out"
                    raise Refusal(f"--projector.{flag} expected --projector.kind mlp, got {self.kind}: {advice}")


@dataclass(frozen=True)
class Shape:
    """What rebuilds a projector: the widths from one end to the other, of which a linear layer joins each two."""

    widths: tuple[int, ...]  # of one width alone: the rows as they are
    batch_norm: bool = False

    def build(self) -> nn.Module:
        """With random weights, by torch's own rule."""
        pairs = list(pairwise(self.widths))
        if not pairs:
            return nn.Identity()
        if len(pairs) == 1:
            return nn.Linear(*pairs[0])
        layers: list[nn.Module] = []
        for here, there in pairs[:-1]:
            layers.append(nn.Linear(here, there, bias=not self.batch_norm))  # batch norm has a bias of its own
            layers += [nn.BatchNorm1d(there)] if self.batch_norm else []
            layers.append(nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(*pairs[-1]))


def shape(config: ProjectorConfig, *, width: int, target_width: int, space: Space) -> Shape:
    """The projector that the options ask for.

    Args:
        width: of the backbone's features.
        target_width: of the teacher's rows.
        space: `teacher` where what comes out is compared with the teacher's own rows, and must be as wide.
    Raises: Refusal if it cannot end in the teacher's space.
    """
    kind = ("linear" if space == "teacher" else "none") if config.kind == "auto" else config.kind
    if kind == "none":
        if config.width not in (None, width):
            raise Refusal(f"--projector.width expected {width}, the backbone's, without a projector, got "
                          f"{config.width}: leave it out, or use --projector.kind linear")  # fmt: skip
        end = width
    else:
        end = config.width or (target_width if space == "teacher" else width)
    if space == "teacher" and end != target_width:
        option = "--projector.kind none" if kind == "none" else "--projector.width"
        raise Refusal(f"{option} expected a student as wide as the teacher, whose space it learns, got {end} and "
                      f"{target_width}: use --projector.kind linear or mlp without a width, or --objective "
                      "compress_2q")  # fmt: skip
    if kind == "none":
        return Shape((width,))
    hidden = config.hidden_width or max(width, end)
    between = (hidden,) * (config.layers - 1) if kind == "mlp" else ()
    return Shape((width, *between, end), batch_norm=kind == "mlp" and config.batch_norm)


@dataclass(frozen=True)
class About:
    """A projector as its file tells of it."""

    shape: Shape
    space: Space
    teacher: str = ""  # as it was named in the training; "" where nobody wrote it down


@dataclass(frozen=True)
class Kept:
    """A projector that was kept beside its student, in eval mode, without gradient."""

    module: nn.Module
    about: About
    name: str  # as results.json names its teacher: teacher, or teacher_1, teacher_2, …

    @property
    def width(self) -> int:
        return self.about.shape.widths[-1]


def save_projector(module: nn.Module, file: Path, about: About) -> None:
    """Weights and what rebuilds them in one file, so that a kill cannot part them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomically(file, save(state, metadata={"projector": json.dumps(asdict(about))}))


def load_projectors(folder: Path) -> list[Kept]:
    """The projectors of a student's folder in the order of its teachers; none if it was trained without.

    Raises: Refusal if a file is damaged.
    """
    alone = folder / "projector.safetensors"
    several = sorted(folder.glob("projector_*.safetensors"), key=lambda file: (len(file.name), file.name))
    files = {"teacher": alone} if alone.exists() else {f"teacher{file.stem.removeprefix('projector')}": file
                                                       for file in several}  # fmt: skip
    return [_load(file, name) for name, file in files.items()]


def choose_projector(kept: list[Kept], asked: str, *, option: str, student: str) -> Kept:
    """The projector into the space of the teacher that is asked for.

    Args:
        asked: `teacher` (where there is one), `teacher_2` or `2`, or the teacher as the training named it.
        option, student: for the refusal.
    Raises: Refusal if there is none, or which one is meant is not said.
    """
    into = [one for one in kept if one.about.space == "teacher"]
    if not into:
        why = "its projector leads to a space of its own" if kept else "without"
        raise Refusal(f"{option} {asked} expected a student with a projector into its teacher's space (trained by "
                      f"compress, compress_1q, regression …), got {student}, {why}: use --space own")  # fmt: skip
    if asked == "teacher" and len(into) == 1:
        return into[0]
    by_number = [one for number, one in enumerate(into, 1) if asked in (str(number), f"teacher_{number}")]
    by_path = [one for one in into if one.about.teacher and _same_path(asked, one.about.teacher)]
    by_last = [one for one in into if one.about.teacher and asked == Path(one.about.teacher).name]
    found = by_number or by_path or by_last
    if len(found) == 1:  # a/table and b/table have one last name
        return found[0]
    names = [one.name for one in into]
    told = ", ".join(f"{one.name} ({one.about.teacher})" if one.about.teacher else one.name for one in into)
    advice = "say which" if asked == "teacher" or found else nearest(asked, names)
    raise Refusal(f"{option} expected one of the teachers of {student}, {told}, got {asked}: {advice}")


def _same_path(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _load(file: Path, name: str) -> Kept:
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {}).get("projector")
        state = load_file(file)
        if told is None:  # as it was written when every projector was one linear layer into the teacher's space
            about = About(Shape((state["weight"].shape[1], state["weight"].shape[0])), "teacher")
        else:
            read = json.loads(told)
            widths = tuple(map(int, read["shape"]["widths"]))
            about = About(Shape(widths, bool(read["shape"]["batch_norm"])), read["space"], read["teacher"])
        module = about.shape.build()
        module.load_state_dict(state)
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as trouble:
        told = " ".join(str(trouble).split())  # torch lists what does not fit on lines of their own
        raise Refusal(f"expected a projector in {file}, got {told}: restore the file") from trouble
    return Kept(module.eval().requires_grad_(False), about, name)
