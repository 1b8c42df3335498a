"""Views at 224 pixels against lightly's own transforms: crops, flips, colours, grey, blur, solarisation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightly.transforms import DINOTransform, MoCoV2Transform, SimCLRTransform, SwaVTransform
from torchvision.transforms import v2

from compress_ssl import colour, crops, pretrain, pretraining
from compress_ssl.cli import FAMILIES
from compress_ssl.encoder import open_encoder
from compress_ssl.loader import Batch
from compress_ssl.settings import build, gather

FABRIC = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1)
RECIPES = Path(__file__).parents[2] / "configs"


def lightly_s(transform: Any) -> dict[str, Any]:
    """One view, as its transform would make it."""
    found: dict[str, Any] = {"solarise": 0.0}
    todo = [transform]
    while todo:
        part = todo.pop()
        if hasattr(part, "__self__"):  # SwAV's are bound methods
            part = part.__self__
        name = type(part).__name__
        if name == "RandomResizedCrop":
            found |= {"size": part.size[0], "scale": tuple(part.scale), "ratio": tuple(part.ratio)}
        elif name == "RandomHorizontalFlip":
            found["flip"] = part.p
        elif name == "RandomApply":
            found["probability"] = part.p
            todo += part.transforms
        elif name == "ColorJitter":
            if part.brightness is not None:  # SwAV has an idle one besides
                found["brightness"], found["contrast"], found["saturation"], found["hue"] = (
                    round(float(bounds[1]) - middle, 6)
                    for bounds, middle in (
                        (part.brightness, 1),
                        (part.contrast, 1),
                        (part.saturation, 1),
                        (part.hue, 0),
                    )
                )
        elif name == "RandomGrayscale":
            found["grey"] = part.p
        elif name == "GaussianBlur":
            found["blur"] = part.prob
            assert tuple(part.sigmas) == (0.1, 2), "ours is fixed to it, in colour.py"
        elif name == "RandomSolarization":
            found["solarise"] = part.prob
        elif isinstance(part, v2.Compose) or hasattr(part, "transforms"):
            todo += part.transforms
        elif isinstance(getattr(part, "transform", None), v2.Compose):
            todo.append(part.transform)
    return found


def ours(config: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every view of a picture, as the loader cuts it and the device changes its colours; global ones first."""
    family, size = pretraining.find(config.name), 224
    cutting = family.make_view(config, size)
    whole = {"size": size, "scale": cutting.view.scale, "ratio": cutting.view.ratio, "flip": cutting.view.flip}
    boxes, batch = [whole, whole], Batch(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), torch.arange(1), [])
    if cutting.local is not None:
        view, count = cutting.local.view_at(size, cutting.view), cutting.local.views
        small = {"size": cutting.local.size_at(size), "scale": view.scale, "ratio": view.ratio, "flip": view.flip}
        boxes += [small] * count
        batch.local = torch.zeros(1, count, 3, 8, 8, dtype=torch.uint8)
    changes: list[dict[str, Any]] = []
    draw = colour.draw

    def recorded(count: int, drawn: colour.Config, generator: torch.Generator) -> colour.Change:
        changes.extend([{name: getattr(drawn, name) for name in drawn.__dataclass_fields__}] * count)
        return draw(count, drawn, generator)

    monkeypatch.setattr(crops.colour, "draw", recorded)
    encoder = open_encoder("compress/resnet10_small_w8", weights="random", size=size)
    learner = family.make_learner(config, encoder, ranks=1)
    family.Method(config, learner, images=100, fabric=FABRIC).views(batch, torch.Generator())
    return [box | change for box, change in zip(boxes, changes, strict=True)]


def recipe(name: str) -> Any:
    files = [str(RECIPES / f"pretrain_imagenet_{name}.yaml")]
    return build(pretrain.Config, gather(pretrain.Config, files, FAMILIES), FAMILIES).method


VIEWS = {
    "simclr": SimCLRTransform(),
    "moco_v2": MoCoV2Transform(),
    "swav": SwaVTransform(),
    "dino": DINOTransform(),
    # the authors' for 800 epochs
    "dino of 10 local views": DINOTransform(
        global_crop_scale=(0.25, 1.0), local_crop_scale=(0.05, 0.25), n_local_views=10
    ),
}


@pytest.mark.parametrize(
    ("judge", "config"),
    [
        ("simclr", recipe("simclr")),
        ("moco_v2", recipe("moco_v2")),
        ("moco_v2", pretraining.find("moco_v2").Config()),
        ("swav", recipe("swav")),
        ("swav", pretraining.find("swav").Config()),
        ("dino", pretraining.find("dino").Config()),
        ("dino of 10 local views", recipe("dino")),
    ],
    ids=["simclr recipe", "moco_v2 recipe", "moco_v2", "swav recipe", "swav", "dino", "dino recipe"],
)
def test_views_are_lightly_s(judge: str, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a jitter or another crop scale costs points of accuracy, under the method's name."""
    expected = [lightly_s(transform) for transform in VIEWS[judge].transforms]
    found = ours(config, monkeypatch)
    assert len(expected) == len(found)
    for its, mine in zip(expected, found, strict=True):
        assert its.keys() == mine.keys()
        for name, value in its.items():
            assert mine[name] == pytest.approx(value), name


def test_small_images_get_simclr_s_half_strength_and_no_blur(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' command for CIFAR-10 has --color_jitter_strength=0.5 and --use_blur=False; at full strength the
    colours of 32 pixels say little."""
    (full, *_), (half, *_) = (
        ours(config, monkeypatch) for config in (recipe("simclr"), pretraining.find("simclr").Config())
    )
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert half[name] == full[name] / 2
    assert crops.usual_blur(32) == 0
    assert crops.usual_blur(224) == full["blur"]
