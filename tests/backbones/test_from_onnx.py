"""An ONNX graph gives the rows of the encoder that it was exported from, whatever of batch, size and dtype is fixed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_ssl.encoder import Encoder, costs, open_encoder
from compress_ssl.folded import folded
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import IMAGENET_MEAN
from compress_ssl.weights import weights_digest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE = 24


def pixels(count: int, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return open_encoder("compress/resnet10_small_w8", weights="random", size=SIZE).requires_grad_(False)


class FromPixels(nn.Module):
    """An encoder whose graph begins with uint8."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


class Two(nn.Module):
    """Two outputs: the embedding and a map."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean(dim=1, keepdim=True), self.backbone(images)


def export(module: nn.Module, file: Path, *, batch: int | None, example: Tensor, names: tuple[str, ...] = ("rows",)):
    """Weights inside the file; `batch` None leaves it open."""
    shapes: Any = None if batch else ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        module.eval(), (example,), str(file), dynamo=True, dynamic_shapes=shapes, input_names=["images"],
        output_names=list(names), external_data=False, verbose=False,
    )  # fmt: skip
    return file


@pytest.fixture(scope="module")
def files(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home, images = tmp_path_factory.mktemp("onnx"), torch.zeros(2, 3, SIZE, SIZE)
    halves = copy.deepcopy(encoder.backbone).half()
    made = {
        "open": export(encoder.backbone, home / "open.onnx", batch=None, example=images),
        "batch of two": export(encoder.backbone, home / "two.onnx", batch=2, example=images),
        "uint8": export(FromPixels(encoder), home / "pixels.onnx", batch=None, example=images.to(torch.uint8)),
        "float16": export(halves, home / "half.onnx", batch=None, example=images.half()),
        "two outputs": export(Two(encoder.backbone), home / "outputs.onnx", batch=None, example=images,
                              names=("map", "rows")),
    }  # fmt: skip
    torch.onnx.export(encoder.backbone, (images,), str(home / "outside.onnx"), dynamo=True, verbose=False)
    return made | {"weights outside": home / "outside.onnx"}


@pytest.mark.parametrize("kind", ["open", "batch of two", "uint8", "float16", "weights outside"])
def test_a_graph_gives_the_rows_of_the_encoder_it_was_exported_from(kind: str, encoder: Encoder, files) -> None:
    """The student would learn another teacher than the one in the file; a last batch of one would fail or be padded."""
    opened = open_encoder(str(files[kind]), weights="pretrained")
    assert opened.preprocessing.size == SIZE, "the file fixes it"
    assert opened.width == encoder.width
    expected, ours = encoder(pixels(5)), opened(pixels(5))
    assert ours.dtype == torch.float32
    tolerance = 5e-3 if kind == "float16" else 1e-5
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert opened(pixels(1)).shape == (1, encoder.width)


def test_larger_images_are_resized_as_for_any_encoder(encoder: Encoder, files) -> None:
    """Teacher and student look at one tensor, cut at the larger of their sizes."""
    for kind in ("open", "uint8"):
        ours = open_encoder(str(files[kind]), weights="pretrained")(pixels(3, 40))
        expected = encoder(pixels(3, 40))  # a uint8 graph is given whole numbers, where ours keeps the fractions
        tolerance = 1e-5 if kind == "open" else 1e-2
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_its_costs_are_those_of_the_encoder(encoder: Encoder, files) -> None:
    """`evaluate` would call the student infinitely larger than its teacher."""
    expected = costs(encoder)
    norms = sum(module.num_features for module in encoder.modules() if isinstance(module, nn.BatchNorm2d))
    for kind in ("open", "batch of two", "uint8", "weights outside"):
        found = costs(open_encoder(str(files[kind]), weights="pretrained"))
        assert found["multiply_adds"] == expected["multiply_adds"], kind
        assert found["parameters"] is not None
        assert expected["parameters"] is not None
        assert abs(found["parameters"] - expected["parameters"]) <= 4 * norms, "norms are folded by the exporter"


def test_another_file_is_another_identity(files, tmp_path: Path) -> None:
    """A run would be resumed, or a table gone on with, with other rows than it began with."""
    one, again, other = (weights_digest(open_encoder(str(files[kind]), weights="pretrained"))
                         for kind in ("open", "open", "batch of two"))  # fmt: skip
    assert one == again != other
    for name in ("outside.onnx", "outside.onnx.data"):
        (tmp_path / name).write_bytes((files["weights outside"].parent / name).read_bytes())
    before = weights_digest(open_encoder(str(tmp_path / "outside.onnx"), weights="pretrained"))
    with (tmp_path / "outside.onnx.data").open("r+b") as stream:
        stream.write(b"\x01\x02")
    assert weights_digest(open_encoder(str(tmp_path / "outside.onnx"), weights="pretrained")) != before


def test_a_copy_of_an_opened_graph_is_as_good(files) -> None:
    """Folding copies encoders; a session cannot be copied."""
    opened = open_encoder(str(files["open"]), weights="pretrained")
    assert torch.equal(copy.deepcopy(opened)(pixels(3)), opened(pixels(3)))
    assert folded(opened, pixels(2)) is opened


def test_one_of_several_outputs_is_chosen_by_name(encoder: Encoder, files) -> None:
    """A map or a class score would be distilled in place of the embedding, without a word."""
    file = files["two outputs"]
    with pytest.raises(
        Refusal, match=r"expected one output in .*, got map .*, rows .*: choose, as in .*outputs.onnx:map"
    ):
        open_encoder(str(file), weights="pretrained")
    chosen = open_encoder(f"{file}:rows", weights="pretrained")
    torch.testing.assert_close(chosen(pixels(2)), encoder(pixels(2)))
    assert chosen.embedding == "output rows"
    with pytest.raises(Refusal, match="got 'row': did you mean 'rows'"):
        open_encoder(f"{file}:row", weights="pretrained")
    with pytest.raises(Refusal, match=r"expected one row of floating-point numbers per image .*got \(1, 1, 24, 24\)"):
        open_encoder(f"{file}:map", weights="pretrained")


def test_preprocessing_is_that_of_the_file_or_of_its_neighbour(files, tmp_path: Path) -> None:
    """A wrong mean and std lowers every score a little and nobody sees why."""
    plain = open_encoder(str(files["open"]), weights="pretrained")
    assert plain.preprocessing.mean == IMAGENET_MEAN
    assert "ImageNet's, for neither the file nor open.json beside it says another" in plain.told
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "crop_fraction": 1.0}
    file = tmp_path / "mine.onnx"
    file.write_bytes(files["open"].read_bytes())
    (tmp_path / "mine.json").write_text(json.dumps({"preprocessing": said}))
    beside = open_encoder(str(file), weights="pretrained")
    assert beside.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (beside.preprocessing.interpolation, beside.preprocessing.crop_fraction) == ("bicubic", 1.0)
    assert "mine.json" in beside.told
    graph = onnx.load(str(file))
    onnx.helper.set_model_props(graph, {"preprocessing": json.dumps(said | {"mean": [0.5] * 3})})
    onnx.save(graph, str(file))
    assert open_encoder(str(file), weights="pretrained").preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"mean": [0, 0]}, "mean .*not three numbers"),
        ({"std": [0, 1, 1]}, "std .*not above 0"),
        ({"interpolation": "nearest"}, "interpolation 'nearest', not one of bilinear, bicubic"),
        ({"crop_fraction": 2}, "crop_fraction 2, not in"),
        ({"size": 48}, "expected 24 pixels, for which .* was made, got 48"),
        ({"men": [0, 0, 0]}, "got men: did you mean 'mean'"),
        ([1], "expected a JSON object"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(said: object, told: str, files, tmp_path: Path) -> None:
    """A slip in it would make other rows, or a traceback in the middle of a training."""
    file = tmp_path / "mine.onnx"
    file.write_bytes(files["open"].read_bytes())
    (tmp_path / "mine.json").write_text(json.dumps(said))
    with pytest.raises(Refusal, match=told):
        open_encoder(str(file), weights="pretrained")


def test_what_is_no_graph_of_one_image_encoder_is_refused(files, tmp_path: Path) -> None:
    """A protobuf's own words say nothing about what to do."""
    with pytest.raises(Refusal, match="which is not a file: check the path"):
        open_encoder(str(tmp_path / "none.onnx"), weights="pretrained")
    (tmp_path / "damaged.onnx").write_bytes(files["open"].read_bytes()[:1000])
    with pytest.raises(Refusal, match=r"expected an ONNX graph in .*damaged.onnx"):
        open_encoder(str(tmp_path / "damaged.onnx"), weights="pretrained")
    rows = export(nn.Linear(4, 2), tmp_path / "linear.onnx", batch=None, example=torch.zeros(2, 4))
    with pytest.raises(Refusal, match=r"expected images \(B, 3, H, W\).*got images"):
        open_encoder(str(rows), weights="pretrained")
    with pytest.raises(Refusal, match=r"expected 24 pixels, for which .* was made, got 32"):
        open_encoder(str(files["open"]), weights="pretrained", size=32)


def test_a_graph_is_no_student(files) -> None:
    """A training would run for hours and end with nothing that was trained."""
    with pytest.raises(Refusal, match=r"got .*open.onnx', an ONNX graph, which is computed as it is: name it as the"):
        open_encoder(str(files["open"]), weights="random")


def test_without_the_packages_a_sentence_says_what_to_install(files, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are extras: most people do not have them."""
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Refusal, match=r"pip install 'compress-ssl\[onnx\]'"):
        open_encoder(str(files["open"]), weights="pretrained")
