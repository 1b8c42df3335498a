"""Pixels to embeddings, and encoders in folders."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from compress_ssl.backbones import publish
from compress_ssl.encoder import Encoder, load_encoder, multiply_adds, open_encoder, parameter_count, save_encoder
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Seen(nn.Module):
    """A backbone that answers with the pixels it was given, in the dtype of its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.contiguous().flatten(1)


def seeing(size: int, interpolation: str = "bilinear") -> Encoder:
    preprocessing = Preprocessing(size=size, mean=MEAN, std=STD, interpolation=interpolation)
    return Encoder(publish(Seen(), width=3 * size * size, preprocessing=preprocessing), spec="seen")


def pixels(*shape: int, seed: int = 5) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def grey_levels(row: Tensor) -> np.ndarray:
    """Undo the normalisation of one image that `Seen` answered with: (3, 11, 11)."""
    return (
        (row.detach().view(3, 11, 11) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    ).numpy()


def student(seed: int = 1) -> Encoder:
    torch.manual_seed(seed)
    encoder = open_encoder("compress/resnet10_small_w3", weights="random")
    for module in encoder.modules():  # statistics as after some training, so that losing them would show
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(11)
    return encoder


def test_normalisation_equals_the_naive_one_in_float64() -> None:
    """Otherwise every embedding would be a little wrong, and differ from the authors'."""
    every_value = torch.arange(3 * 16 * 16).remainder(256).to(torch.uint8).view(1, 3, 16, 16)
    got = seeing(16)(every_value).view(3, 16, 16)
    for channel in range(3):
        for value, normalised in zip(every_value[0, channel].flatten(), got[channel].flatten(), strict=True):
            expected = (int(value) / 255 - MEAN[channel]) / STD[channel]
            assert abs(float(normalised) - expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_encoder_still_normalises_in_float32(dtype: torch.dtype) -> None:
    """Otherwise a mean rounded to eight bits would shift each image by up to a grey level."""
    encoder, images = seeing(5), pixels(2, 3, 5, 5)
    expected = encoder(images).to(dtype)
    assert torch.equal(encoder.to(dtype)(images), expected)
    inside = nn.ModuleList([encoder]).half().float()
    assert torch.equal(inside[0](images).to(dtype), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(41, 57), (7, 5)])
def test_images_of_another_size_are_resized_as_pillow_does(interpolation: str, shape: tuple[int, int]) -> None:
    """Otherwise a teacher with another resolution than the view would see aliased pixels."""
    encoder = seeing(11, interpolation)
    images = pixels(1, 3, *shape) // 3 + 80  # no overshoot: Pillow would cut it off after each axis, we at the end
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    resized = picture.resize((11, 11), Image.Resampling[interpolation.upper()])
    expected = np.asarray(resized, dtype=np.float64).transpose(2, 0, 1)
    assert np.abs(grey_levels(encoder(images)) - expected).max() < 1.01  # Pillow rounds after each axis


def test_resizing_stays_within_black_and_white() -> None:
    """Otherwise a bicubic resize would show the backbone pixels that no image can have."""
    checks = (torch.arange(9 * 7).view(1, 1, 9, 7) % 2 * 255).to(torch.uint8).expand(2, 3, 9, 7)
    levels = grey_levels(seeing(11, "bicubic")(checks)[:1])
    assert levels.min() == pytest.approx(0, abs=1e-4)
    assert levels.max() == pytest.approx(255, abs=1e-4)


def test_channels_last_pixels_give_the_same_input() -> None:
    """Otherwise a loader that hands out (H, W, C) memory would train another function."""
    encoder, images = seeing(7), pixels(3, 3, 7, 7)
    assert torch.equal(encoder(images.contiguous(memory_format=torch.channels_last)), encoder(images))
    kept: list[Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    encoder(images.contiguous(memory_format=torch.channels_last))
    assert kept[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("images", [torch.rand(2, 3, 5, 5), pixels(3, 5, 5), pixels(2, 1, 5, 5), pixels(2, 5, 5, 3)])
def test_anything_but_rgb_pixels_is_refused(images: Tensor) -> None:
    """Otherwise images that are already normalised would be normalised again, unnoticed."""
    with pytest.raises(ValueError, match="expected uint8 images") as error:
        seeing(5)(images)
    assert str(tuple(images.shape)) in str(error.value)


def test_the_state_holds_the_backbone_and_nothing_else() -> None:
    """Otherwise a student's file would not load into timm or torchvision without surgery."""
    encoder = student()
    assert {f"backbone.{name}" for name in encoder.backbone.state_dict()} == encoder.state_dict().keys()


def test_only_random_weights_draw_from_the_generator(tmp_path: Path) -> None:
    """Otherwise the student would start differently with a live teacher than with a stored one."""
    save_encoder(student(), tmp_path / "run" / "student")
    file = tmp_path / "run" / "student" / "model.safetensors"
    torch.manual_seed(4)
    before = torch.get_rng_state()
    open_encoder(str(tmp_path / "run"), weights="pretrained")
    open_encoder(str(tmp_path / "run"), weights="pretrained", size=24)
    open_encoder(f"compress/resnet10_small_w3@{file}", weights="pretrained")
    assert torch.equal(torch.get_rng_state(), before)
    first = open_encoder("compress/resnet10_small_w3@random", weights="pretrained")
    second = open_encoder("compress/resnet10_small_w3", weights="random")
    torch.manual_seed(4)
    again = open_encoder("compress/resnet10_small_w3", weights="random")
    assert torch.equal(first.backbone.conv1.weight, again.backbone.conv1.weight)
    assert not torch.equal(second.backbone.conv1.weight, again.backbone.conv1.weight)


def test_a_saved_encoder_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise statistics or the input size would be lost, or a machine without a network could not load it."""
    encoder = student()
    save_encoder(encoder, tmp_path / "student")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for folder in (tmp_path, tmp_path / "student"):
        loaded = load_encoder(folder)
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        images = pixels(3, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded(images), encoder(images))
        assert (loaded.spec, loaded.architecture) == (str(folder), "compress/resnet10_small_w3")
    described = json.loads((tmp_path / "student" / "model.json").read_text())
    assert described.keys() == {"format", "backbone", "arguments", "width", "preprocessing", "embedding"}
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["model.json", "model.safetensors"]


def test_an_encoder_in_train_mode_and_half_precision_is_saved_as_it_will_be_used(tmp_path: Path) -> None:
    """Otherwise saving in the middle of a training would change its mode, or write weights nobody can widen."""
    encoder = student().train().bfloat16()
    save_encoder(encoder, tmp_path)
    assert encoder.training
    loaded = load_encoder(tmp_path)
    assert not loaded.training
    assert loaded.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.backbone.conv1.weight, encoder.backbone.conv1.weight.float())


def test_an_input_size_of_ones_own_is_kept(tmp_path: Path) -> None:
    """Otherwise a student trained at 48 pixels would be scored at 32."""
    encoder = open_encoder("compress/resnet10_small_w3", weights="random", size=48)
    save_encoder(encoder, tmp_path)
    assert load_encoder(tmp_path).preprocessing == Preprocessing(size=48, crop_fraction=1.0)
    again = open_encoder(str(tmp_path), weights="random", size=20)
    assert again.preprocessing.size == 20
    assert torch.equal(again.backbone.conv1.weight, encoder.backbone.conv1.weight)


def test_weights_of_the_published_size_are_interpolated_for_another_and_saved_as_such(tmp_path: Path) -> None:
    """Otherwise a transformer's file could not be used on small images, or its student not be loaded again."""
    torch.manual_seed(3)
    published = open_encoder("timm/test_vit", weights="random")
    save_encoder(published, tmp_path / "published")
    file = tmp_path / "published" / "model.safetensors"
    small = open_encoder(f"timm/test_vit@timm:{file}", weights="pretrained", size=64)
    assert torch.equal(small.backbone.patch_embed.proj.weight, published.backbone.patch_embed.proj.weight)
    assert small.backbone.pos_embed.shape[1] == 1 + 16
    from_run = open_encoder(str(tmp_path / "published"), weights="pretrained", size=64)
    assert torch.equal(from_run.backbone.pos_embed, small.backbone.pos_embed)
    save_encoder(small, tmp_path / "small")
    images = pixels(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "small")(images), small(images))
    back = open_encoder(str(tmp_path / "small"), weights="pretrained", size=96)
    assert back.backbone.pos_embed.shape[1] == 1 + 36
    fits = tmp_path / "small" / "model.safetensors"
    direct = open_encoder(f"timm/test_vit@timm:{fits}", weights="pretrained", size=64)
    assert torch.equal(direct.backbone.pos_embed, small.backbone.pos_embed)


def test_pretrained_weights_are_asked_for_only_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a student would start pretrained, or a teacher random, without anyone having said so."""
    filled: list[str] = []

    def fill(model: nn.Module, *_: object, **__: object) -> None:
        filled.append(type(model).__name__)
        nn.init.constant_(model.bn1.bias, 0.25)

    monkeypatch.setattr("timm.models._builder.load_pretrained", fill)
    bias = [
        float(open_encoder(spec, weights=weights, size=33).backbone.bn1.bias.detach()[0])
        for spec, weights in [
            ("timm/resnet10t", "pretrained"),
            ("timm/resnet10t@pretrained", "random"),
            ("timm/resnet10t", "random"),
            ("timm/resnet10t@random", "pretrained"),
        ]
    ]
    assert bias == [0.25, 0.25, 0, 0]
    assert len(filled) == 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("resnet18", "did you mean 'torchvision/resnet18'?"),
        ("tim/resnet10t", "did you mean 'timm/resnet10t'?"),
        ("resnet10_smal", "did you mean 'compress/resnet10_small'?"),
        ("compress/resnet10_smal", "did you mean 'resnet10_small'?"),
        ("compress/alexnett@pretrained", "did you mean 'alexnet'?"),
        ("timm/resnet_18", "did you mean 'resnet18'?"),
        ("torchvision/resnet19", "did you mean 'resnet18'?"),
        ("runs/nothing-of-the-kind", "check the path."),
        ("compress/resnet10_small_w9@pretrained", "our own backbones have no published ones"),
        ("compress/resnet10_small_w9@none.pth", "which is not a file"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_a_way_out(spec: str, told: str) -> None:
    """Otherwise a typing error would end in a traceback, or in another model."""
    with pytest.raises(Refusal) as refusal:
        open_encoder(spec, weights="random")
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_or_a_file_that_is_no_run_is_told_what_was_looked_for(tmp_path: Path) -> None:
    """Otherwise a run that never finished would look like a wrong name."""
    with pytest.raises(Refusal, match=r"neither student/model\.json nor model\.json"):
        open_encoder(str(tmp_path), weights="random")
    with pytest.raises(Refusal, match=r"without student/model\.json or model\.json"):
        load_encoder(tmp_path)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(Refusal, match="weights need the backbone they are for"):
        open_encoder(str(tmp_path / "weights.pth"), weights="random")


@pytest.mark.parametrize(
    ("spec", "size", "told"),
    [
        ("compress/alexnet", 31, "got 31 pixels (Given input size"),
        ("torchvision/vit_b_32", 33, "got 33 pixels"),
        ("timm/test_vit", 40, "multiple of its 16-pixel patch"),
        ("compress/resnet10_small_w3", 0, "at least 1 pixel, got 0"),
    ],
)
def test_a_size_that_a_backbone_cannot_take_is_refused(spec: str, size: int, told: str) -> None:
    """Otherwise the first batch of a training would end in a traceback from inside a pooling layer."""
    with pytest.raises(Refusal) as refusal:
        open_encoder(spec, weights="random", size=size)
    assert told in str(refusal.value)


def test_a_model_that_does_not_pool_is_refused() -> None:
    """Otherwise the objective would meet maps of tokens where it expects rows."""
    encoder = seeing(5)
    encoder.backbone.forward = lambda images: images
    from compress_ssl import encoder as file

    with pytest.raises(Refusal, match=r"one embedding of 75 numbers per image from 'seen', got \(1, 3, 5, 5\)"):
        file._check_width(encoder)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    """Otherwise a half-copied student would load with random layers, or end in a traceback."""
    whole = tmp_path / "whole"
    save_encoder(student(), whole)
    described = json.loads((whole / "model.json").read_text())

    def broken(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    def refused(folder: Path, told: str) -> None:
        with pytest.raises(Refusal) as refusal:
            load_encoder(folder)
        assert told in str(refusal.value)
        assert "\n" not in str(refusal.value)

    for name, changed, told in [
        ("newer", described | {"format": 2}, "got format 2"),
        ("foreign", described | {"backbone": "elsewhere/net"}, "'elsewhere/net'"),
        ("wider", described | {"width": 25}, "to be 24 wide as built here, got 25"),
        ("other", described | {"backbone": "compress/resnet18_small_w3"}, "missing (layer1.1.conv1.weight"),
        ("unknown", described | {"backbone": "compress/resnet11_small_w3"}, "did you mean"),
        ("short", {key: described[key] for key in ("format", "backbone")}, "cannot be read (KeyError"),
        ("list", [described], "cannot be read (TypeError"),
        ("options", described | {"preprocessing": described["preprocessing"] | {"gamma": 2}}, "gamma"),
    ]:
        folder = broken(name)
        (folder / "model.json").write_text(json.dumps(changed))
        refused(folder, told)
    folder = broken("torn description")
    (folder / "model.json").write_text((whole / "model.json").read_text()[:-20])
    refused(folder, "cannot be read (JSONDecodeError")
    folder = broken("torn weights")
    (folder / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:-7])
    refused(folder, "cannot be read")
    folder = broken("no weights")
    (folder / "model.safetensors").unlink()
    refused(folder, "which is not a file")


def test_an_encoder_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    """Otherwise a folder would be written that nothing can load."""
    with pytest.raises(ValueError, match="architecture"):
        save_encoder(seeing(5), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_multiply_adds_equal_a_count_by_hand() -> None:
    """Otherwise the compression in a report would be another one than the model's."""
    encoder = student()
    assert encoder.preprocessing.size == 32
    stem = 32 * 32 * 3 * 9 * 3
    first = 2 * 32 * 32 * 3 * 9 * 3
    later = sum(
        side * side * width * (9 * width // 2 + 9 * width + width // 2) for side, width in [(16, 6), (8, 12), (4, 24)]
    )
    assert multiply_adds(encoder) == stem + first + later


def test_multiply_adds_count_attention() -> None:
    """Otherwise a transformer would look cheaper than it is, by more the larger the image."""
    encoder = open_encoder("timm/vit_tiny_patch16_224", weights="random", size=48)
    tokens, width, depth = 9 + 1, 192, 12
    block = tokens * (4 * width * width + 8 * width * width) + 2 * tokens * tokens * width
    assert multiply_adds(encoder) == 9 * 3 * 16 * 16 * width + depth * block


def test_counting_leaves_no_trace() -> None:
    """Otherwise writing a report in the middle of a training would change the training."""
    encoder = student().train()
    encoder.backbone.layer2.eval()
    modes = [module.training for module in encoder.modules()]
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    multiply_adds(encoder)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, kind) for module in encoder.modules() for kind in hooks)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_parameters_are_counted_without_buffers() -> None:
    """Otherwise batch norm's statistics would be counted as learned."""
    expected = 3 * (3 * 3 * 9) + 3 * (2 * 3)  # stem and first stage: three convolutions, each with its norm
    for width in (6, 12, 24):  # two convolutions and the shortcut, each with its norm
        expected += width * (width // 2) * 9 + width * width * 9 + width * (width // 2) + 3 * (2 * width)
    assert parameter_count(student()) == expected
