"""timm's models: the embedding and the input are timm's own."""

from __future__ import annotations

import pytest
import timm
import torch

from compress_ssl.backbones import from_timm
from compress_ssl.refusal import Refusal


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet10t", 40), ("mobilenetv4_conv_small", 41), ("test_vit", None), ("test_convnext", 64), ("test_vit2", None)],
)
def test_the_embedding_is_what_the_classifier_would_see(name: str, size: int | None) -> None:
    """Otherwise a teacher's neighbours would be those of some other layer than its authors publish."""
    torch.manual_seed(1)
    original = timm.create_model(name).eval()
    backbone = from_timm.build(name, weights="random", size=size).eval()
    head = tuple(f"{part}." for part in backbone.head_names)
    weights = {key: value for key, value in original.state_dict().items() if not key.startswith(head)}
    backbone.load_state_dict(weights, strict=True)
    size = backbone.preprocessing.size
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = original.forward_head(original.forward_features(images), pre_logits=True)
        assert torch.equal(backbone(images), expected)


def test_the_input_is_the_one_of_the_tag() -> None:
    """Otherwise a model trained with mean 0.5 would see images shifted by a third of their range."""
    clip = from_timm.build("resnet50.a1_in1k", weights="random").preprocessing
    cfg = timm.get_pretrained_cfg("resnet50.a1_in1k")
    assert (clip.size, clip.mean, clip.std) == (cfg.input_size[1], cfg.mean, cfg.std)
    assert (clip.interpolation, clip.crop_fraction) == (cfg.interpolation, cfg.crop_pct)
    vit = from_timm.build("vit_tiny_patch16_224", weights="random").preprocessing
    assert (vit.size, vit.mean, vit.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_vision_transformer_is_built_for_the_asked_size() -> None:
    """Otherwise small images would be blown up to 224 pixels and cost fifty times as much."""
    small = from_timm.build("vit_tiny_patch16_224", weights="random", size=48)
    assert small.pos_embed.shape == (1, 1 + 9, 192)
    assert small.preprocessing.size == 48


def test_resizing_keeps_the_weights_and_equals_a_model_built_for_that_size() -> None:
    """Otherwise a transformer's published weights could not be used at another resolution, or not be saved again."""
    torch.manual_seed(2)
    backbone = from_timm.build("test_vit", weights="random").eval()
    kernel = backbone.patch_embed.proj.weight.clone()
    before = backbone.pos_embed.clone()
    from_timm.resize(backbone, 96)
    assert torch.equal(backbone.patch_embed.proj.weight, kernel)
    assert torch.equal(backbone.pos_embed[:, 0], before[:, 0])  # the class token stands nowhere
    rebuilt = from_timm.build("test_vit", weights="random", size=96).eval()
    rebuilt.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), backbone(images))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet_18", "did you mean 'resnet18'?"),
        ("resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'?"),
        ("vit_tiny_patch16_244", "did you mean 'vit_tiny_patch16_224'?"),
    ],
)
def test_an_unknown_name_or_tag_is_refused_with_the_nearest(name: str, hint: str) -> None:
    """Otherwise a typing error would end in timm's traceback."""
    with pytest.raises(Refusal) as refusal:
        from_timm.build(name, weights="random")
    assert repr(name) in str(refusal.value)
    assert str(refusal.value).endswith(hint)


def test_a_size_that_leaves_half_a_patch_over_is_refused() -> None:
    """Otherwise timm would drop the border of every image without a word."""
    with pytest.raises(Refusal, match="multiple of its 16-pixel patch, got 40"):
        from_timm.build("vit_tiny_patch16_224", weights="random", size=40)


def test_a_model_that_cannot_change_its_size_says_so() -> None:
    """Otherwise weights for 224 pixels would meet an error about some tensor's shape."""
    backbone = from_timm.build("pit_ti_224", weights="random")
    with pytest.raises(Refusal, match="cannot change it"):
        from_timm.resize(backbone, 96)


def test_pretrained_weights_out_of_reach_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise someone without a network reads two pages about retries and does not learn of `@FILE`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Refusal) as refusal:
        from_timm.build("test_vit", weights="pretrained")
    assert "(timm/test_vit.r160_in1k)" in str(refusal.value)
    assert "timm/test_vit@FILE" in str(refusal.value)


def test_a_model_without_published_weights_says_so() -> None:
    """Otherwise a teacher would be random, or the message about a network that is not the reason."""
    published = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    name = next(name for name in timm.list_models("resnet*") if name not in published)
    with pytest.raises(Refusal, match=f"timm/{name} that has none"):
        from_timm.build(name, weights="pretrained")
