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


def test_the_crop_mode_is_the_one_of_the_tag() -> None:
    """Otherwise a model that was made for squashed pictures would be shown their middle."""
    squashed = from_timm.build("convnext_tiny.in12k_ft_in1k_384", weights="random").preprocessing
    assert (squashed.crop, squashed.crop_fraction) == ("squash", 1.0)
    assert from_timm.build("resnet10t", weights="random").preprocessing.crop == "center"


@pytest.mark.parametrize(
    ("name", "embedding", "width"),
    [
        ("resnet10t", "pooled", 512),
        ("vit_tiny_patch16_224", "cls", 192),
        ("test_vit2", "mean", 64),
        ("vit_base_patch32_siglip_256", "attention", 768),
        ("vit_base_patch32_clip_224.openai", "projected", 512),
        ("vit_base_patch32_clip_224.laion2b_ft_in1k", "cls", 768),
        ("resnet50_clip.openai", "projected", 1024),
        ("resnet50_clip_gap.openai", "pooled", 2048),
        ("convnext_base.clip_laion2b", "projected", 640),
        ("convnext_base.fb_in1k", "pooled", 1024),
        ("vit_tiny_patch16_dinov3_qkvb", "cls", 192),
        ("eva02_base_patch16_clip_224", "projected", 512),
        ("fastvit_mci0", "projected", 512),
    ],
)
def test_the_embedding_is_called_by_its_name(name: str, embedding: str, width: int) -> None:
    """Otherwise CLIP would lose its projection like a classifier, or a fine-tuned classifier pass for one."""
    with torch.device("meta"):
        backbone = from_timm.build(name, weights="random")
    assert (backbone.embedding, backbone.width) == (embedding, width)


def test_every_last_layer_that_is_kept_is_a_projection() -> None:
    """Otherwise a classifier of as many classes as a projection is wide would be kept, and called a shared space."""
    kept = {
        name
        for name in timm.list_models(pretrained=True)
        if timm.get_pretrained_cfg(name).num_classes in from_timm.PROJECTIONS
    }
    assert len(kept) > 90
    trained_with_text = ("clip", "openai", "cc12m", "yfcc15m", "laion", "datacomp", "dfn", "metaclip", "_pe_")
    assert not [name for name in kept if not any(word in name for word in trained_with_text)]


def test_dinov3_gives_its_class_token() -> None:
    """Otherwise its neighbours would be those of the patches' mean, which timm gives and nobody published."""
    backbone = from_timm.build("vit_tiny_patch16_dinov3_qkvb", weights="random", size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone.forward_features(images)[:, 0])


def test_what_only_a_checkpoint_knows_can_be_asked_for() -> None:
    """Otherwise MoCo v3's twelve heads, or a projection of one's own width, could not be built from a saved run."""
    assert from_timm.build("test_vit", weights="random", heads=4).blocks[0].attn.num_heads == 4
    assert from_timm.build("test_convnext", weights="random", projection=33)(torch.randn(1, 3, 64, 64)).shape == (1, 33)
    assert from_timm.build("test_vit", weights="random", pooling="avg").embedding == "mean"
    with pytest.raises(Refusal, match="rotary positions, got VisionTransformer"):
        from_timm.build("test_vit", weights="random", periods="bfloat16")


def test_rounded_periods_stay_rounded_in_half_precision() -> None:
    """Otherwise a DINOv3 teacher in bfloat16 would quietly compute with other periods than in float32."""
    backbone = from_timm.build("vit_tiny_patch16_dinov3_qkvb", weights="random", periods="bfloat16")
    periods = backbone.rope.periods.clone()
    assert torch.equal(periods, periods.bfloat16().float())
    assert torch.equal(backbone.bfloat16().rope.periods.float(), periods)


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
