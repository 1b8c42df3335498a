"""What every backbone promises; a file in backbones/ is tested here by existing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress_ssl.backbones import own_names, read_spec
from compress_ssl.encoder import Encoder, load_encoder, open_encoder, save_encoder
from compress_ssl.refusal import Refusal

ALEXNET = {"compress/alexnet": 67}  # its published 224 pixels only cost time here
OTHERS = {
    "timm/resnet10t": 40,
    "timm/mobilenetv4_conv_small": 41,
    "timm/mobilenetv3_small_050": 43,
    "timm/vit_tiny_patch16_224": 32,
    "timm/test_vit": 48,
    "timm/test_byobnet": 35,
    "timm/regnety_002": 37,
    "timm/convnext_atto": 33,
    "timm/efficientnet_b0": 37,
    "timm/mobilenetv3_large_075": 39,
    "timm/mobilenetv4_conv_medium": 43,
    "timm/efficientvit_b0": 64,
    "timm/efficientvit_m0": 64,
    "timm/fastvit_t8": 64,
    "timm/repvit_m0_9": 47,
    "timm/swin_tiny_patch4_window7_224": 56,
    "timm/mixer_s32_224": 64,
    "timm/efficientvim_m1": 64,  # a parameter of it belongs to the classifier, and timm freezes it
    "torchvision/resnet18": 37,
    "torchvision/mobilenet_v2": 41,
    "torchvision/mobilenet_v3_small": 43,
    "torchvision/squeezenet1_1": 39,
}
# the published wide ResNets have up to 586 million parameters; these are the same code
WIDE = {"compress/resnet50_w1": 40, "compress/resnet50_w1_tf": 41, "compress/resnet50_w1_same": 43}
OWN = [name for name in own_names() if not re.match(r"resnet\d+_w", name)]
SIZES = {f"compress/{name}": None for name in OWN} | WIDE | ALEXNET | OTHERS


@pytest.fixture(scope="module", params=SIZES, ids=str)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(7)
    return open_encoder(request.param, weights="random", size=SIZES[request.param])


def pixels(encoder: Encoder, count: int) -> torch.Tensor:
    size = encoder.preprocessing.size
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_an_embedding_is_one_finite_row_of_the_published_width(encoder: Encoder) -> None:
    """Otherwise the objective would compare maps, or rows of a width that the bank was not made for."""
    with torch.no_grad():
        rows = encoder(pixels(encoder, 3))
    assert rows.shape == (3, encoder.width)
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    assert (rows[0] - rows[1]).abs().max() > 0


def test_the_memory_format_does_not_change_an_embedding(encoder: Encoder) -> None:
    """Otherwise training in channels_last, which is faster, would train for another function."""
    images = pixels(encoder, 3)
    with torch.no_grad():
        plain = encoder(images)
        last = encoder(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_in_eval_mode_an_embedding_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    """Otherwise stored embeddings would differ from live ones with the batch size."""
    images = pixels(encoder, 5)
    with torch.no_grad():
        together, alone = encoder(images)[2:3], encoder(images[2:3])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


def test_every_parameter_receives_a_gradient(encoder: Encoder) -> None:
    """Otherwise a part of the student would stay random, and several processes would wait for it for ever."""
    encoder.train()
    try:
        generator = torch.Generator().manual_seed(3)
        rows = encoder(pixels(encoder, 3))
        (rows * torch.randn(rows.shape, generator=generator)).sum().backward()
        learning = {name: one for name, one in encoder.named_parameters() if one.requires_grad}
        assert [name for name, parameter in learning.items() if parameter.grad is None] == []
    finally:
        encoder.zero_grad(set_to_none=True)
        encoder.eval()


def test_saved_and_loaded_it_gives_the_same_bits(encoder: Encoder, tmp_path: Path) -> None:
    """Otherwise the student that is delivered is not the one that was scored."""
    save_encoder(encoder, tmp_path / "student")
    loaded = load_encoder(tmp_path)
    images = pixels(encoder, 3)
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder(images))
    assert loaded.preprocessing == encoder.preprocessing
    assert loaded.architecture == encoder.architecture
    assert not loaded.training


@pytest.mark.parametrize(
    ("text", "kind", "name", "weights"),
    [
        ("timm/resnet18.a1_in1k", "timm", "resnet18.a1_in1k", None),
        ("torchvision/resnet50@files/moco@v2.pth", "torchvision", "resnet50", Path("files/moco@v2.pth")),
        ("compress/alexnet@random", "compress", "alexnet", "random"),
        ("timm/resnet50@moco_v2:files/a:b.pth", "timm", "resnet50", Path("files/a:b.pth")),
        ("torchvision/resnet50@https://a.org/b.pth", "torchvision", "resnet50", "https://a.org/b.pth"),
        ("torchvision/resnet50@swav:https://a.org/b.pth", "torchvision", "resnet50", "https://a.org/b.pth"),
        ("timm/vit_tiny_patch16_224@pretrained", "timm", "vit_tiny_patch16_224", "pretrained"),
        ("nowhere/at/all", "missing", "nowhere/at/all", None),
    ],
)
def test_a_name_says_family_model_and_weights(text: str, kind: str, name: str, weights: object) -> None:
    """Otherwise `NAME@FILE` would open another model, or the right one with random weights."""
    spec = read_spec(text)
    assert (spec.kind, spec.name, spec.weights) == (kind, name, weights)


def test_the_format_of_a_file_stands_before_a_colon(tmp_path: Path) -> None:
    """Otherwise a bare file could not be given its authors' preprocessing, or a typing error would be a file's name."""
    assert read_spec("timm/resnet50@moco_v2:a.pth").format == "moco_v2"
    assert read_spec("timm/resnet50@swav:https://a.org/b.pth").format == "swav"
    assert read_spec("timm/resnet50@https://a.org/b.pth").format is None
    for text, told in [
        ("timm/resnet50@moco2:a.pth", "did you mean 'moco_v2'?"),
        ("timm/resnet50@moco_v2:", "write the file of moco_v2's format after the colon"),
        ("timm/resnet50@http://a.org/b.pth", "begins with https://"),
    ]:
        with pytest.raises(Refusal) as refusal:
            read_spec(text)
        assert told in str(refusal.value)
    (tmp_path / "day:1.pth").touch()
    assert read_spec(f"timm/resnet50@{tmp_path}/day:1.pth").weights == tmp_path / "day:1.pth"


def test_a_path_is_told_by_what_lies_there(tmp_path: Path) -> None:
    """Otherwise a run and an embeddings table, both folders, could not be told apart without opening them."""
    run, table, file = tmp_path / "run", tmp_path / "table", tmp_path / "rows.npy"
    (run / "student").mkdir(parents=True)
    (run / "student" / "model.json").write_text("{}")
    table.mkdir()
    file.touch()
    found = [read_spec(str(path)).kind for path in (run, run / "student", table, file, tmp_path / "none")]
    assert found == ["run", "run", "folder", "file", "missing"]


@pytest.mark.parametrize("text", ["timm/", "torchvision/@random", "compress/alexnet@"])
def test_half_a_name_is_refused(text: str) -> None:
    """Otherwise a forgotten file after the `@` would mean random weights."""
    with pytest.raises(Refusal, match="write the missing part"):
        read_spec(text)


def test_reading_a_name_imports_no_model_library() -> None:
    """Otherwise `--help` and every error about a path would take seconds."""
    code = (
        "import sys; from compress_ssl.backbones import read_spec; assert read_spec('timm/resnet18').kind == 'timm';"
        "heavy = {'torch', 'timm', 'torchvision'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
