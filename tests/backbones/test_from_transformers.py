"""Models of transformers: rows as the library itself computes them, its image processor included, on a real picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress_ssl.backbones.from_transformers import processor_of
from compress_ssl.encoder import Encoder, costs, open_encoder
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import evaluation_view

transformers = pytest.importorskip("transformers")
TINY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
# the published ways to make a square: stretched; the short side, then the centre; ConvNeXt's share
STRETCHED = {"size": {"height": 40, "width": 40}, "resample": 2}
CUT = {"size": {"shortest_edge": 56}, "crop_size": {"height": 40, "width": 40}, "resample": 3}


def first(found: Any) -> Tensor:
    return found.last_hidden_state[:, 0]


def pooled(found: Any) -> Tensor:
    return found.pooler_output.flatten(1)


def vit() -> Any:
    config = transformers.ViTConfig(**TINY, image_size=40, num_labels=3)
    return transformers.ViTForImageClassification(config)  # as most are published: a classifier on top, no pooler


def of(name: str, **given: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**given))


def towers(name: str, **more: Any) -> Callable[[], Any]:
    return of(name, vision_config=TINY | {"image_size": 40}, text_config=TEXT, **more)


# kind: model, its image processor, the embedding, and what its authors take of the output
MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, Callable[[Any], Tensor]]] = {
    "vit": (vit, lambda: transformers.ViTImageProcessor(**STRETCHED), "cls", first),
    "deit": (of("DeiT", **TINY, image_size=40),
             lambda: transformers.DeiTImageProcessor(**CUT | {"size": {"height": 48, "width": 48}}), "cls", first),
    "dinov2": (of("Dinov2", **TINY, image_size=56, mlp_ratio=2),  # its positions are those of another size
               lambda: transformers.BitImageProcessor(**CUT, image_mean=MEAN, image_std=STD), "cls", first),
    "clip": (towers("CLIP", projection_dim=12), lambda: transformers.CLIPImageProcessor(**CUT), "projected", pooled),
    "siglip": (towers("Siglip"), lambda: transformers.SiglipImageProcessor(**STRETCHED | {"resample": 3}), "attention",
               pooled),
    "vit_mae": (of("ViTMAE", **TINY, image_size=40, decoder_hidden_size=16, decoder_num_hidden_layers=1,
                   decoder_num_attention_heads=2, decoder_intermediate_size=24),
                lambda: transformers.ViTImageProcessor(**STRETCHED), "cls", first),
    "beit": (of("Beit", **TINY, image_size=40, use_mean_pooling=True),
             lambda: transformers.BeitImageProcessor(**CUT | {"size": {"height": 48, "width": 48}}), "mean", pooled),
    "resnet": (of("ResNet", embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
               lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 40}, crop_pct=0.8), "pooled", pooled),
    "convnext": (of("ConvNext", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], image_size=40),
                 lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}), "pooled", pooled),
    "swin": (of("Swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=5, image_size=40, patch_size=4),
             lambda: transformers.ViTImageProcessor(**STRETCHED), "pooled", pooled),
    "mobilevit": (of("MobileViT", image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 12],
                     num_attention_heads=2),
                  lambda: transformers.MobileViTImageProcessor(size={"shortest_edge": 72},
                                                               crop_size={"height": 64, "width": 64}),
                  "pooled", pooled),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder as `save_pretrained` writes it, once for each kind."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            torch.manual_seed(len(made))
            model = MODELS[kind][0]().eval()
            with torch.no_grad():  # as after a training: no two channels alike
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
            model.save_pretrained(made[kind])
            MODELS[kind][1]().save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A photograph, wider than high."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")[:200, :331]


def by_the_library(folder: Path, kind: str, picture: np.ndarray) -> Tensor:
    """As its own documentation has it: processor, model, output."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    inputs = processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    options = {"mask_ratio": 0.0} if kind == "vit_mae" else {}
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, **options).eval()
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            return MODELS[kind][3](model.get_image_features(pixel_values=inputs))
        return MODELS[kind][3](model(pixel_values=inputs))


@pytest.mark.parametrize("kind", MODELS)
def test_rows_are_those_of_the_library_on_a_real_picture(kind: str, folders, picture: np.ndarray) -> None:
    """A wrong token, crop, mean or filter makes a teacher that is a little worse, and nobody sees it."""
    encoder = open_encoder(f"transformers/{folders(kind)}", weights="pretrained")
    view = evaluation_view(picture, encoder.preprocessing)
    with torch.no_grad():
        ours = encoder(view[None])
    expected = by_the_library(folders(kind), kind, picture)
    assert ours.shape == expected.shape == (1, encoder.width)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert encoder.embedding == MODELS[kind][2]
    assert f"{kind} of transformers, embedding {MODELS[kind][2]}" in encoder.told


def test_what_the_processors_do_is_written_as_preprocessing(folders) -> None:
    """It is what a table of embeddings records, and what a student is told."""
    found = {kind: processor_of(folders(kind))[0] for kind in MODELS}
    assert (found["vit"].size, found["vit"].crop, found["vit"].crop_fraction) == (40, "squash", 1.0)
    assert found["vit"].mean == pytest.approx((0.5,) * 3)
    assert (found["clip"].size, found["clip"].crop, found["clip"].interpolation) == (40, "center", "bicubic")
    assert found["clip"].crop_fraction == pytest.approx(40 / 56)
    assert found["dinov2"].mean == pytest.approx(MEAN)
    assert (found["deit"].crop, found["deit"].crop_fraction) == ("squash", pytest.approx(40 / 48))
    assert (found["convnext"].size, found["convnext"].crop) == (384, "squash")
    assert found["resnet"].crop_fraction == 0.8
    assert found["mobilevit"].mean == pytest.approx((0, 0, 0))


def test_text_towers_and_heads_are_dropped_and_named(folders) -> None:
    """They would be paid for in memory, and counted as the teacher's size."""
    encoder = open_encoder(f"transformers/{folders('clip')}", weights="pretrained")
    assert not [name for name, _ in encoder.named_parameters() if "text" in name or "logit" in name]
    assert "text tower" in encoder.told
    vit = open_encoder(f"transformers/{folders('vit')}", weights="pretrained")
    assert "classifier 2 tensors dropped" in vit.told
    found = costs(vit)
    assert found["parameters"] == sum(parameter.numel() for parameter in vit.parameters())
    assert found["multiply_adds"]


def test_another_size_is_taken_where_the_model_can(folders) -> None:
    """Small images would otherwise have to be enlarged for a teacher whose positions can be interpolated."""
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for kind in ("vit", "dinov2", "clip", "siglip", "resnet", "vit_mae"):
        encoder = open_encoder(f"transformers/{folders(kind)}", weights="pretrained", size=24)
        assert encoder.preprocessing.size == 24
        with torch.no_grad():
            assert encoder(images).isfinite().all(), kind
    for kind in ("vit", "clip"):
        with pytest.raises(Refusal, match="multiple of its 8-pixel patch, got 27"):
            open_encoder(f"transformers/{folders(kind)}", weights="pretrained", size=27)


def test_a_teacher_of_transformers_gives_the_same_row_alone_and_in_a_batch(folders) -> None:
    """Masks and the order of patches are drawn anew by some of them."""
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for kind in ("vit_mae", "siglip"):
        encoder: Encoder = open_encoder(f"transformers/{folders(kind)}", weights="pretrained")
        with torch.no_grad():
            assert torch.equal(encoder(images), encoder(images))
            moved = dict(encoder.backbone.named_buffers())
            assert ("noise" in moved) == (kind == "vit_mae"), "it goes to the device once, not in every step"
            torch.testing.assert_close(encoder(images[2:3]), encoder(images)[2:3], rtol=1e-4, atol=1e-5)


def test_weights_that_are_missing_are_not_made_up(folders, tmp_path: Path) -> None:
    """transformers fills them with random numbers and warns."""
    from safetensors.torch import load_file, save_file

    for file in folders("dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if name.endswith("norm1.weight"))
    save_file({name: value for name, value in state.items() if name != gone}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(Refusal, match=r"expected all weights of Dinov2Model in .*got none.*for 1 \(.*norm1.weight\)"):
        open_encoder(f"transformers/{tmp_path}", weights="pretrained")


def test_what_cannot_be_a_teacher_is_refused(folders, tmp_path: Path) -> None:
    """The library's own errors are pages long, or none at all."""
    with pytest.raises(Refusal, match=r"expected a folder that transformers saved, got './none', where none lies"):
        open_encoder("transformers/./none", weights="pretrained")
    transformers.BertConfig(hidden_size=8).save_pretrained(tmp_path / "bert")
    with pytest.raises(Refusal, match=r"whose embedding we know \(vit, .*got bert in .*python/MODULE:FUNCTION"):
        open_encoder(f"transformers/{tmp_path / 'bert'}", weights="pretrained")
    transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(
        tmp_path / "bare"
    )
    with pytest.raises(Refusal, match=r"an image processor beside the model in .* got no preprocessor_config.json"):
        open_encoder(f"transformers/{tmp_path / 'bare'}", weights="pretrained")
    with pytest.raises(Refusal, match="a model of transformers, whose layers are not ours to build and save: name it"):
        open_encoder(f"transformers/{folders('vit')}", weights="random")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"resample": 0}, "resamples by Pillow's filter 0"),
        ({"do_resize": False}, "leaves images at their size"),
        ({"size": {"height": 40, "width": 48}}, "whose size is"),
        ({"do_center_crop": True, "crop_size": {"height": 64, "width": 64}}, "which crops"),
    ],
    ids=str,
)
def test_a_processor_that_does_something_else_is_refused(said: dict, told: str, folders, tmp_path: Path) -> None:
    """Nearly the right input is a teacher nearly as good as it should be."""
    for file in folders("deit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(Refusal, match=told):
        open_encoder(f"transformers/{tmp_path}", weights="pretrained")


def test_a_hub_that_cannot_be_reached_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Half a minute of the library's attempts, each with a page of its own, ends in the same sentence."""
    asked: list[str] = []

    def refuse(request: Any, **_: object) -> None:
        asked.append(request.full_url)
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(Refusal, match=r"expected 'nobody/vit' in the local cache .*Network is unreachable.: connect"):
        open_encoder("transformers/nobody/vit", weights="pretrained")
    assert len(asked) == 1
    assert capfd.readouterr().err == ""


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: most people do not have it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Refusal, match=r"pip install 'compress-ssl\[transformers\]'"):
        open_encoder("transformers/facebook/dinov2-small", weights="pretrained")
