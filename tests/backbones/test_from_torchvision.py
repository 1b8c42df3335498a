"""torchvision's classifiers, cut before the last layer."""

from __future__ import annotations

import urllib.error

import pytest
import torch
from torch import nn
from torchvision import models

from compress_ssl.backbones import from_torchvision, publish
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import Preprocessing
from compress_ssl.weights import fit_weights

LAST_LAYER = {  # written by hand from torchvision's source: the layer that gives the 1000 scores
    "resnet18": ("fc", 40),
    "regnet_x_400mf": ("fc", 64),
    "shufflenet_v2_x0_5": ("fc", 64),
    "googlenet": ("fc", 64),
    "mobilenet_v2": ("classifier.1", 64),
    "mobilenet_v3_small": ("classifier.3", 64),
    "efficientnet_b0": ("classifier.1", 64),
    "mnasnet0_5": ("classifier.1", 64),
    "convnext_tiny": ("classifier.2", 64),
    "alexnet": ("classifier.6", 67),
    "densenet121": ("classifier", 64),
    "swin_t": ("head", 64),
}


@pytest.mark.parametrize("name", LAST_LAYER)
def test_the_embedding_is_what_the_last_layer_would_see(name: str) -> None:
    """Otherwise ResNet-18 would not give the paper's 512 numbers but scores, maps or a dropped-out copy."""
    torch.manual_seed(1)
    layer, size = LAST_LAYER[name]
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    original = models.get_model(name, weights=None, **options).eval()
    seen: list[torch.Tensor] = []
    original.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone = from_torchvision.build(name, weights="random").eval()
    weights = {key: value for key, value in original.state_dict().items() if not key.startswith(f"{layer}.")}
    fit_weights(backbone, weights, source="the original")
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        original(images)
        assert torch.equal(backbone(images), seen[0])
    assert backbone.width == seen[0].shape[1]
    assert layer in backbone.head_names


def test_squeezenet_gives_the_mean_of_what_its_last_convolution_would_see() -> None:
    """Otherwise the one family that classifies by a convolution would answer with scores."""
    torch.manual_seed(1)
    original = models.squeezenet1_1(weights=None).eval()
    backbone = from_torchvision.build("squeezenet1_1", weights="random").eval()
    backbone.load_state_dict({key: value for key, value in original.state_dict().items() if "classifier" not in key})
    images = torch.randn(2, 3, 71, 71)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), original.features(images).mean(dim=(2, 3)))
    assert backbone.width == 512


def test_no_dropout_is_left_at_the_end() -> None:
    """Otherwise a student in train mode would lose a fifth of its embedding in each step."""
    torch.manual_seed(1)
    for name, width in {"mobilenet_v2": 1280, "mobilenet_v3_small": 1024}.items():
        backbone = from_torchvision.build(name, weights="random").train()
        images = torch.randn(3, 3, 33, 33)
        with torch.no_grad():
            assert torch.equal(backbone(images), backbone(images))
        assert backbone.width == width


def test_googlenet_and_inception_keep_their_input_when_torchvision_downloads_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the saved copy of a pretrained GoogLeNet would normalise differently from the one that was scored."""
    torch.manual_seed(3)
    theirs = models.googlenet(weights=None, aux_logits=True, init_weights=False, transform_input=True).eval()
    published = models.GoogLeNet_Weights.DEFAULT
    monkeypatch.setattr(type(published), "get_state_dict", lambda *_, **__: theirs.state_dict())
    backbone = from_torchvision.build("googlenet", weights="pretrained").eval()
    assert backbone.aux_logits is False
    seen: list[torch.Tensor] = []
    theirs.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    view, ours = published.transforms(), backbone.preprocessing
    image = torch.rand(2, 3, 64, 64)

    def normalise(mean, std):
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        theirs(normalise(view.mean, view.std))
        torch.testing.assert_close(backbone(normalise(ours.mean, ours.std)), seen[0], rtol=1e-4, atol=1e-5)
    assert ours == from_torchvision.build("googlenet", weights="random").preprocessing


def test_pretrained_weights_bring_the_input_they_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the newer weights, made for a crop of 224 out of 232, would be scored on another crop."""
    state = models.mobilenet_v2(weights=None).state_dict()
    monkeypatch.setattr(models.MobileNet_V2_Weights, "get_state_dict", lambda *_, **__: state)
    backbone = from_torchvision.build("mobilenet_v2", weights="pretrained", size=96)
    assert backbone.preprocessing == Preprocessing(size=96, interpolation="bilinear", crop_fraction=224 / 232)
    assert torch.equal(backbone.features[0][0].weight, state["features.0.0.weight"])


def test_a_vision_transformer_takes_another_size_with_its_weights() -> None:
    """Otherwise its position embeddings would be refused, or read in the wrong order."""
    torch.manual_seed(4)
    vit = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=6, mlp_dim=5, num_classes=7
    )
    vit.heads = nn.Sequential()
    backbone = publish(vit, width=6, preprocessing=Preprocessing(size=32))
    slope = torch.linspace(0, 1, 4).view(4, 1).expand(4, 4).reshape(16, 1)  # grows from the top row to the bottom one
    vit.encoder.pos_embedding.data[0, 1:] = slope.expand(16, 6)
    from_torchvision.resize(backbone, 56)
    grid = vit.encoder.pos_embedding.data[0, 1:].view(7, 7, 6)
    assert backbone(torch.randn(3, 3, 56, 56)).shape == (3, 6)
    assert backbone.preprocessing.size == 56
    torch.testing.assert_close(grid, grid[:, :1].expand(7, 7, 6))
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()
    with pytest.raises(Refusal, match="multiple of the 8-pixel patch, got 60"):
        from_torchvision.resize(backbone, 60)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet19", "did you mean 'resnet18'?"),
        ("fcn_resnet50", "which does not classify images"),
        ("quantized_resnet18", "which does not classify images"),
        ("r3d_18", "which does not classify images"),
    ],
)
def test_what_is_no_image_classifier_is_refused(name: str, told: str) -> None:
    """Otherwise a segmentation network would be cut at some linear layer, or fail inside."""
    with pytest.raises(Refusal, match="expected an image classifier of torchvision") as refusal:
        from_torchvision.build(name, weights="random")
    assert told in str(refusal.value)


def test_pretrained_weights_out_of_reach_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise someone without a network reads a traceback of urllib and does not learn of `@FILE`."""

    def unreachable(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(Refusal) as refusal:
        from_torchvision.build("resnet18", weights="pretrained")
    assert "resnet18-f37072fd.pth" in str(refusal.value)
    assert "torchvision/resnet18@FILE" in str(refusal.value)
