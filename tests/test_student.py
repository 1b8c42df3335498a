"""The trained model and the folder it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress_ssl.encoder import Encoder, load_encoder, open_encoder
from compress_ssl.projector import About, Shape, load_projectors
from compress_ssl.refusal import Refusal
from compress_ssl.student import Student, save_student

pytestmark = pytest.mark.filterwarnings("error")


class Flatten(nn.Module):
    """(B, 3, 1, 2) uint8 -> (B, 6)."""

    width = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


def real_encoder() -> Encoder:
    torch.manual_seed(0)
    return open_encoder("compress/resnet10_small_w8", weights="random", size=8)


def test_rows_are_the_encoder_s_at_length_one() -> None:
    """Similarities would depend on how bright an image is."""
    images = torch.randint(1, 256, (5, 3, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student = Student(Flatten())  # type: ignore[arg-type]
    rows = student(images)
    expected = [[value / sum(v * v for v in row) ** 0.5 for value in row] for row in images.flatten(1).tolist()]
    torch.testing.assert_close(rows, torch.tensor(expected))
    assert rows.shape == (5, 6)


def test_a_projector_is_one_linear_layer_to_the_width_asked_for() -> None:
    """1q's student could not be compared with the teacher's anchors."""
    images = torch.randint(1, 256, (5, 3, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student = Student(Flatten(), nn.Linear(6, 9))  # type: ignore[arg-type]
    projected = images.flatten(1).float() @ student.projector.weight.T + student.projector.bias  # type: ignore
    torch.testing.assert_close(student(images), projected / projected.norm(dim=1, keepdim=True))
    assert sum(parameter.numel() for parameter in student.parameters()) == 9 * 6 + 9


def test_a_zero_row_stays_zero_and_its_gradient_finite() -> None:
    """One black picture early in training would turn every weight into NaN."""
    student = Student(Flatten(), nn.Linear(6, 9))  # type: ignore[arg-type]
    nn.init.zeros_(student.projector.bias)  # type: ignore[arg-type]
    rows = student(torch.zeros(2, 3, 1, 2, dtype=torch.uint8))
    rows.square().sum().backward()
    assert torch.equal(rows, torch.zeros(2, 9))
    assert torch.isfinite(student.projector.weight.grad).all()  # type: ignore[union-attr]


def test_rows_are_float32_under_autocast() -> None:
    """Similarities divided by 0.04 would be those of rows with 8 bits."""
    student = Student(Flatten(), nn.Linear(6, 9))  # type: ignore[arg-type]
    images = torch.randint(1, 256, (5, 3, 1, 2), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = student(images)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


SHAPES = {
    "without": (),
    "linear": (Shape((64, 13)),),
    "mlp": (Shape((64, 17, 5, 13), batch_norm=True),),
    "mlp without batch norm": (Shape((64, 17, 13)),),
    "two teachers": (Shape((64, 13)), Shape((64, 17, 11), batch_norm=True)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_a_saved_student_comes_back_the_same(tmp_path: Path, shapes: tuple[Shape, ...]) -> None:
    """What is evaluated and shipped would not be what was trained."""
    student = Student(real_encoder(), *(shape.build() for shape in shapes)).train()
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    student(images)  # batch norm has seen something
    save_student(student.eval(), tmp_path, [About(shape, "teacher", "runs/a") for shape in shapes])
    encoder, kept = load_encoder(tmp_path).eval(), load_projectors(tmp_path)
    assert torch.equal(encoder(images), student.encoder(images))
    assert [one.about.shape for one in kept] == list(shapes)
    assert not any(weight.requires_grad or one.module.training for one in kept for weight in one.module.parameters())
    projections = [one.module(encoder(images)) for one in kept] or [encoder(images)]
    assert torch.equal(torch.cat([nn.functional.normalize(rows) for rows in projections], dim=1), student(images))


def test_saving_leaves_the_student_in_training(tmp_path: Path) -> None:
    """Scoring in the middle of a run would stop its batch norm or its gradients."""
    into = About(Shape((64, 5, 13), batch_norm=True), "teacher")
    student = Student(real_encoder(), into.shape.build()).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    save_student(student, tmp_path, [into])
    assert all(module.training for module in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())
    torch.testing.assert_close(dict(student.state_dict()), before, rtol=0, atol=0)


def test_a_projector_is_not_lost_for_want_of_a_word(tmp_path: Path) -> None:
    """A student would be saved without the layer that an index needs, and nobody would notice until it is asked."""
    with pytest.raises(ValueError, match="1 projectors, got it of 0"):
        save_student(Student(real_encoder(), nn.Linear(64, 13)), tmp_path)


def test_a_damaged_projector_is_refused_with_its_path(tmp_path: Path) -> None:
    """A stack trace from inside safetensors says nothing about which file to restore."""
    file = tmp_path / "projector.safetensors"
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(Refusal, match=r"projector\.safetensors, got .*: restore the file"):
        load_projectors(tmp_path)
    for state in (
        {"bias": torch.zeros(3)},
        {"weight": torch.zeros(3, 5), "bias": torch.zeros(4)},
        {"weight": torch.zeros(3), "bias": torch.zeros(3)},
    ):
        save_file(state, file)
        with pytest.raises(Refusal, match=r"projector\.safetensors, got .*: restore the file"):
            load_projectors(tmp_path)
