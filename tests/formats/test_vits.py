"""MoCo v3, DINO, iBOT, MAE, MSN: a ViT in timm's names, each in the layout that its authors save.

The judge is the published computation written out: patches, class token, positions, pre-norm blocks with attention and
a GELU MLP, the last norm, its class token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import models

from compress_ssl.encoder import Encoder, load_encoder, open_encoder, save_encoder
from compress_ssl.refusal import Refusal

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
Content = dict[str, Any]


def vit_state(width: int, *, grid: int = 2, patch: int = 16, depth: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """A trained-looking ViT: no bias is zero, no scale is one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, spread: float = 0.1, centre: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * spread + centre

    def linear(name: str, out: int, inner: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(out, inner, spread=inner**-0.5), f"{name}.bias": draw(out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(width, centre=1.0), f"{name}.bias": draw(width)}

    state = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + grid * grid, width, spread=0.5)}
    state["patch_embed.proj.weight"] = draw(width, 3, patch, patch, spread=(3 * patch * patch) ** -0.5)
    state["patch_embed.proj.bias"] = draw(width)
    for index in range(depth):
        block = f"blocks.{index}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * width, width)
        state |= linear(f"{block}.attn.proj", width, width) | norm(f"{block}.norm2")
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return {name: one.half().float() for name, one in (state | norm("norm")).items()}  # files hold half of the bytes


def reference(state: dict[str, Tensor], images: Tensor, *, heads: int, positions: Tensor | None = None) -> Tensor:
    """Pixels (B, 3, S, S) uint8 -> class tokens (B, D)."""
    x = (images / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    kernel = state["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[2]
    x = functional.conv2d(x, kernel, state["patch_embed.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + (state["pos_embed"] if positions is None else positions)
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))):
        w = {
            name.removeprefix(f"blocks.{index}."): one
            for name, one in state.items()
            if name.startswith(f"blocks.{index}.")
        }
        y = functional.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"], eps=1e-6)
        q, k, v = functional.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"]).chunk(3, dim=-1)
        outputs = []
        for one in range(heads):
            part = slice(one * width // heads, (one + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (width // heads) ** 0.5
            outputs.append(scores.softmax(dim=-1) @ v[..., part])
        x = x + functional.linear(torch.cat(outputs, dim=-1), w["attn.proj.weight"], w["attn.proj.bias"])
        y = functional.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"], eps=1e-6)
        y = functional.gelu(functional.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        x = x + functional.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return functional.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], eps=1e-6)[:, 0]


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": one for name, one in state.items()}


def small(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(3, 5) for name in names}


OPTIMIZER = {"state": {0: {"step": 7, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}, "param_groups": []}
DINO_HEAD = ("head.mlp.0.weight", "head.mlp.0.bias", "head.mlp.2.weight", "head.last_layer.weight_g")
MOCO_HEAD = ("0.weight", "1.weight", "1.bias", "1.running_mean", "3.weight")


def moco_v3(state: dict[str, Tensor], arch: str, head: str) -> Content:
    heads = small(*(f"{head}.{name}" for name in MOCO_HEAD))
    encoders = under("module.base_encoder.", state | heads) | under("module.momentum_encoder.", state | heads)
    weights = encoders | under("module.predictor.", small("0.weight", "1.weight"))
    return {"epoch": 300, "arch": arch, "state_dict": weights, "optimizer": OPTIMIZER, "scaler": {"scale": 1.0}}


def dino_full(state: dict[str, Tensor], *, teacher: str = "") -> Content:
    whole = under("backbone.", state) | small(*DINO_HEAD, "head.last_layer.weight_v")
    return {
        "student": under("module.", {name: one + 1 for name, one in whole.items()}),
        "teacher": under(teacher, whole),
        "optimizer": OPTIMIZER,
        "epoch": 100,
        "dino_loss": {"center": torch.zeros(1, 5)},
        "fp16_scaler": {"scale": 1.0},
    }


def ibot_full(state: dict[str, Tensor]) -> Content:
    whole = under("backbone.", state) | small(*DINO_HEAD, "head.last_layer.weight_v", "head.last_layer2.weight_v")
    student = under("module.", whole | {"backbone.masked_embed": torch.zeros(1, 5)})
    loss = {"center": torch.zeros(1, 5), "center2": torch.zeros(1, 1, 5)}
    return {"student": student, "teacher": whole, "optimizer": OPTIMIZER, "epoch": 800, "ibot_loss": loss}


def mae_full(state: dict[str, Tensor]) -> Content:
    decoder = small("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    return {"model": state | decoder | small("decoder_pred.weight"), "optimizer": OPTIMIZER, "epoch": 799}


def msn(state: dict[str, Tensor]) -> Content:
    whole = under("module.", state | small("fc.fc1.weight", "fc.bn1.running_mean", "fc.fc3.weight"))
    online = {name: one + 1 for name, one in whole.items()}
    return {"encoder": online, "opt": OPTIMIZER, "prototypes": torch.randn(5, 3), "target_encoder": whole, "epoch": 800}


def tiny() -> dict[str, Tensor]:
    return vit_state(192, depth=1, patch=2)


def resnet50() -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = models.resnet50(width_per_group=1).state_dict()
    return {name: one for name, one in state.items() if not name.startswith("fc.")}


def layouts() -> dict[str, Callable[[], Any]]:
    return {
        "moco_v3: ViT": lambda: moco_v3(tiny(), "vit_small", "head"),
        "moco_v3: ResNet-50": lambda: moco_v3(resnet50(), "resnet50", "fc"),
        "dino: full checkpoint, ViT": lambda: dino_full(tiny()),
        "dino: full checkpoint, ResNet-50": lambda: dino_full(resnet50(), teacher="module."),
        "ibot: full checkpoint": lambda: ibot_full(tiny()),
        "ibot: with its mask token": lambda: {"state_dict": tiny() | {"masked_embed": torch.zeros(1, 192)}},
        "mae: whole autoencoder": lambda: mae_full(tiny()),
        "msn: training's own": lambda: msn(tiny()),
        "timm: training script's": lambda: {
            "epoch": 7,
            "arch": "vit_tiny_patch16_224",
            "state_dict": tiny() | small("head.weight"),
            "state_dict_ema": tiny() | small("head.weight"),
            "optimizer": OPTIMIZER,
            "version": 2,
            "args": {},
            "metric": 71.0,
        },
    }


def plain_layouts() -> dict[str, Callable[[], Any]]:
    return {
        "dino: pretrain file": tiny,
        "dino: ResNet-50's pretrain file": resnet50,
        "ibot: teacher's backbone": lambda: {"state_dict": tiny()},
        "mae: encoder alone": lambda: {"model": tiny()},
        "timm: without its classifier": tiny,
    }


def opened(
    content: Content, format: str, folder: Path, *, name: str = "vit_tiny_patch16_224", size: int = 32
) -> Encoder:
    torch.save(content, folder / "weights.pth")
    return open_encoder(f"timm/{name}@{format}:{folder / 'weights.pth'}", weights="pretrained", size=size)


def pixels(size: int) -> Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def close(encoder: Encoder, expected: Tensor, size: int = 32) -> None:
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels(size)), expected, rtol=1e-4, atol=1e-4)


MAKERS: dict[str, Callable[[dict[str, Tensor]], Content]] = {
    "dino": dict,
    "ibot": lambda state: {"state_dict": state},
    "mae": lambda state: {"model": state},
    "msn": msn,
    "moco_v3": lambda state: moco_v3(state, "vit_tiny", "head"),
}


@pytest.mark.parametrize("format", MAKERS)
def test_features_are_the_published_computations(format: str, tmp_path: Path) -> None:
    """Otherwise a teacher would be some other function than the one whose accuracy was published."""
    state = vit_state(192)
    encoder = opened(MAKERS[format](state), format, tmp_path)
    close(encoder, reference(state, pixels(32), heads=3))
    assert encoder.embedding == "cls"
    assert encoder.preprocessing.mean == pytest.approx(MEAN.tolist())


@pytest.mark.parametrize(("format", "make"), [("dino", dino_full), ("ibot", ibot_full), ("mae", mae_full)])
def test_of_a_whole_training_the_published_part_is_taken(
    format: str, make: Callable[[dict[str, Tensor]], Content], tmp_path: Path
) -> None:
    """Otherwise the student's or the decoder's weights would be taken for the teacher's, unnoticed."""
    state = vit_state(192)
    torch.save(make(state), tmp_path / "whole.pth")
    encoder = open_encoder(f"timm/vit_tiny_patch16_224@{tmp_path / 'whole.pth'}", weights="pretrained", size=32)
    close(encoder, reference(state, pixels(32), heads=3))
    assert "decoder" in encoder.told if format == "mae" else "student" in encoder.told


def test_moco_v3s_small_vit_has_twelve_heads(tmp_path: Path) -> None:
    """Otherwise each head would be twice as wide as trained: same shapes, other features, and no error."""
    state = vit_state(384)
    encoder = opened(moco_v3(state, "vit_small", "head"), "moco_v3", tmp_path, name="vit_small_patch16_224")
    expected = reference(state, pixels(32), heads=12)
    close(encoder, expected)
    assert (reference(state, pixels(32), heads=6) - expected).abs().max() > 0.01
    save_encoder(encoder, tmp_path / "run")
    close(load_encoder(tmp_path / "run"), expected)
    assert load_encoder(tmp_path / "run").preprocessing == encoder.preprocessing


@pytest.mark.parametrize("patch", [4, 7])
def test_msns_small_patches_are_computed_though_timm_has_no_name_for_them(patch: int, tmp_path: Path) -> None:
    """Otherwise its most accurate ViTs could not be opened: the shapes fit no backbone that can be written."""
    state, size = vit_state(192, patch=patch), 2 * patch
    encoder = opened(msn(state), "msn", tmp_path, size=size)
    save_encoder(encoder, tmp_path / "run")
    for one in (encoder, load_encoder(tmp_path / "run")):
        close(one, reference(state, pixels(size), heads=3), size=size)


@pytest.mark.parametrize(("format", "offset"), [("dino", 0.1), ("ibot", 0.1), ("mae", 0), ("moco_v3", 0), ("msn", 0)])
def test_positions_at_another_size_are_interpolated_as_the_authors_do(
    format: str, offset: float, tmp_path: Path
) -> None:
    """Otherwise a teacher at another resolution would be shifted against the published one by part of a patch."""
    state = vit_state(192, grid=5)
    plane = state["pos_embed"][:, 1:].reshape(1, 5, 5, 192).permute(0, 3, 1, 2)
    scale = (3 + offset) / 5
    plane = functional.interpolate(plane, scale_factor=(scale, scale), mode="bicubic")
    positions = torch.cat([state["pos_embed"][:, :1], plane.permute(0, 2, 3, 1).reshape(1, 9, 192)], dim=1)
    encoder = opened(MAKERS[format](state), format, tmp_path, size=48)
    close(encoder, reference(state, pixels(48), heads=3, positions=positions), size=48)


@pytest.mark.parametrize("format", ["dino", "moco_v3"])
def test_a_resnet_gives_its_pooled_map(format: str, tmp_path: Path) -> None:
    """Otherwise the papers' ResNet-50s would need other code than their ViTs."""
    torch.manual_seed(3)
    original = models.resnet50().half().float().eval()
    state = {name: one for name, one in original.state_dict().items() if not name.startswith("fc.")}
    original.fc = torch.nn.Identity()
    content = dino_full(state, teacher="module.") if format == "dino" else moco_v3(state, "resnet50", "fc")
    for part in ("student",) if format == "dino" else ():
        content[part] = {name: one for name, one in content[part].items() if one.numel() < 100}
    torch.save(content, tmp_path / "weights.pth")
    encoder = open_encoder(f"torchvision/resnet50@{tmp_path / 'weights.pth'}", weights="pretrained", size=64)
    with torch.no_grad():
        expected = original((pixels(64) / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))
    close(encoder, expected, size=64)
    assert encoder.embedding == "pooled"


@pytest.mark.parametrize("backbone", ["timm/vit_tiny_patch16_224", "torchvision/resnet18"])
def test_a_bare_vit_is_refused_until_somebody_says_whose_it_is(backbone: str, tmp_path: Path) -> None:
    """Otherwise DINO's file would be read with timm's mean of 0.5 and nobody would know."""
    torch.save(vit_state(192), tmp_path / "bare.pth")
    told = r"could be any of DINO \(@dino:\), iBOT \(@ibot:\), MAE \(@mae:\), timm \(@timm:\)"
    with pytest.raises(Refusal, match=told) as refusal:
        open_encoder(f"{backbone}@{tmp_path / 'bare.pth'}", weights="pretrained", size=32)
    assert "\n" not in str(refusal.value)


def test_a_bare_vit_is_read_where_all_who_publish_such_normalise_alike(tmp_path: Path) -> None:
    """Otherwise timm's own files without classifier, of DeiT and its kin, could not be opened by their name."""
    torch.save(vit_state(192), tmp_path / "bare.pth")
    encoder = open_encoder(f"timm/deit_tiny_patch16_224@{tmp_path / 'bare.pth'}", weights="pretrained", size=32)
    close(encoder, reference(vit_state(192), pixels(32), heads=3))


@pytest.mark.parametrize("head", [True, False])
def test_timms_own_file_is_read_with_the_input_of_its_name(head: bool, tmp_path: Path) -> None:
    """Otherwise the one who has timm's weights in a file would get DINO's input, or nothing at all."""
    classes = {"head.weight": torch.ones(5, 192), "head.bias": torch.ones(5)} if head else {}
    torch.save(vit_state(192) | classes, tmp_path / "weights.pth")
    file = f"{'' if head else 'timm:'}{tmp_path / 'weights.pth'}"
    encoder = open_encoder(f"timm/vit_tiny_patch16_224@{file}", weights="pretrained", size=32)
    assert encoder.preprocessing.mean == encoder.preprocessing.std == (0.5, 0.5, 0.5)
    assert ("; dropped: classifier 2" in encoder.told) == head
    assert " 150 tensors from " in encoder.told


@pytest.mark.parametrize("format", ["dino", "ibot", "mae", "timm"])
def test_a_bare_vit_is_the_same_one_behind_a_prefix_of_several_processes(format: str, tmp_path: Path) -> None:
    """Otherwise it would be taken for a file of no format, and read with the input of whatever name was written."""
    content = {"state_dict": under("module.", vit_state(192))}
    torch.save(content, tmp_path / "bare.pth")
    with pytest.raises(Refusal, match=rf"could be any of .*\(@{format}:\)"):
        open_encoder(f"timm/vit_tiny_patch16_224@{tmp_path / 'bare.pth'}", weights="pretrained", size=32)
    assert " 150 tensors " in opened(content, format, tmp_path).told


def test_timms_resnet_may_be_called_timms(tmp_path: Path) -> None:
    """Otherwise who names the library that the file is from would be told that it is torchvision's."""
    torch.manual_seed(3)
    torch.save(models.resnet18(num_classes=5).state_dict(), tmp_path / "weights.pth")
    encoder = open_encoder(f"timm/resnet18@timm:{tmp_path / 'weights.pth'}", weights="pretrained", size=32)
    assert encoder.told.startswith("weights: timm, 120 tensors from weights.pth; dropped: classifier 2")


def test_a_backbone_of_another_size_is_refused_with_the_right_one(tmp_path: Path) -> None:
    """Otherwise someone would have to guess which of a thousand names the file belongs to."""
    with pytest.raises(Refusal, match="write timm/vit_tiny_patch16_224@dino:") as refusal:
        opened(vit_state(192), "dino", tmp_path, name="vit_small_patch16_224")
    assert "\n" not in str(refusal.value)


def test_timms_averaged_weights_are_taken_and_its_classifier_is_not(tmp_path: Path) -> None:
    """Otherwise a timm training would be scored by the weights that its own validation does not use."""
    state, head = vit_state(192), {"head.weight": torch.ones(5, 192), "head.bias": torch.ones(5)}
    content = {"arch": "vit_tiny_patch16_224", "version": 2, "args": {}, "state_dict_ema": state | head}
    content["state_dict"] = {name: one + 1 for name, one in (state | head).items()}
    torch.save(content, tmp_path / "weights.pth")
    encoder = open_encoder(f"timm/vit_tiny_patch16_224@{tmp_path / 'weights.pth'}", weights="pretrained", size=32)
    assert "classifier 2" in encoder.told
    images = (pixels(32) / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = reference(state, images * STD.view(3, 1, 1) * 255 + MEAN.view(3, 1, 1) * 255, heads=3)
    close(encoder, expected)
