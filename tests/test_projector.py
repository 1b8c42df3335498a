"""From the backbone's features to what is compared: which layers, how wide, and what their file tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress_ssl.projector import (
    About,
    ProjectorConfig,
    Shape,
    choose_projector,
    load_projectors,
    save_projector,
    shape,
)
from compress_ssl.refusal import Refusal

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("options", "space", "expected"),
    [
        ({}, "teacher", Shape((5, 9))),
        ({}, "own", Shape((5,))),
        ({"kind": "linear"}, "own", Shape((5, 5))),
        ({"kind": "linear", "width": 3}, "own", Shape((5, 3))),
        ({"kind": "mlp"}, "teacher", Shape((5, 9, 9), batch_norm=True)),
        ({"kind": "mlp", "layers": 4, "hidden_width": 7}, "teacher", Shape((5, 7, 7, 7, 9), batch_norm=True)),
        ({"kind": "mlp", "layers": 3, "batch_norm": False, "width": 2}, "own", Shape((5, 5, 5, 2))),
    ],
)
def test_the_options_say_which_layers_there_are(options: dict[str, Any], space: Any, expected: Shape) -> None:
    """1q would not end in the teacher's space, or 2q's delivered embedding would not be what was compared."""
    assert shape(ProjectorConfig(**options), width=5, target_width=9, space=space) == expected


def test_an_mlp_is_linear_batch_norm_relu_linear() -> None:
    """Another order of the layers is another method under the same name."""
    torch.manual_seed(0)
    rows = torch.randn(11, 5)
    module = Shape((5, 7, 3), batch_norm=True).build().train()
    first, norm, _, last = module  # type: ignore[misc]
    hidden = rows @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(module(rows), hidden.clamp(min=0) @ last.weight.T + last.bias, rtol=1e-4, atol=1e-5)


def test_without_a_projector_only_an_equally_wide_student_learns_the_teachers_space() -> None:
    """Rows of 5 numbers would be compared with rows of 9, hours after the start or not at all."""
    none = ProjectorConfig(kind="none")
    assert shape(none, width=9, target_width=9, space="teacher") == Shape((9,))
    with pytest.raises(Refusal, match=r"--projector.kind none expected a student as wide as the teacher.* got 5 and 9"):
        shape(none, width=5, target_width=9, space="teacher")
    with pytest.raises(Refusal, match=r"--projector.width expected a student as wide as the teacher.* got 4 and 9"):
        shape(ProjectorConfig(kind="linear", width=4), width=5, target_width=9, space="teacher")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "mlp", "layers": 1}, "--projector.layers expected 2 to 4, got 1"),
        ({"kind": "mlp", "layers": 5}, "--projector.layers expected 2 to 4, got 5"),
        ({"kind": "mlp", "hidden_width": 0}, "--projector.hidden-width expected at least 1"),
        ({"kind": "linear", "layers": 3}, "--projector.layers expected --projector.kind mlp, got linear"),
        ({"batch_norm": False}, "--projector.batch-norm expected --projector.kind mlp, got auto"),
        ({"layers": 3}, "--projector.layers expected --projector.kind mlp, got auto: add --projector.kind mlp"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(options: dict[str, Any], told: str) -> None:
    """Someone would compare an MLP of three layers with one linear layer, and both would be the same."""
    with pytest.raises(Refusal, match=told):
        ProjectorConfig(**options)


def test_a_linear_projector_of_before_there_were_others_still_opens(tmp_path: Path) -> None:
    """Every student trained until now would lose its way into its teacher's space."""
    layer = nn.Linear(5, 9)
    save_file(layer.state_dict(), tmp_path / "projector.safetensors")
    (kept,) = load_projectors(tmp_path)
    assert (kept.about, kept.name, kept.width) == (About(Shape((5, 9)), "teacher"), "teacher", 9)
    rows = torch.randn(3, 5)
    assert torch.equal(kept.module(rows), layer(rows))


def test_the_projector_of_a_teacher_is_found_by_number_and_by_name(tmp_path: Path) -> None:
    """An index of one teacher would be searched with rows in the space of the other, of the same width or not."""
    specs = ["runs/dino", "timm/vit_tiny", *(f"runs/{number}" for number in range(3, 12))]  # 11: not in text order
    for number, spec in enumerate(specs, 1):
        about = About(Shape((5, number)), "teacher", spec)
        save_projector(about.shape.build(), tmp_path / f"projector_{number}.safetensors", about)
    kept = load_projectors(tmp_path)
    assert [one.name for one in kept] == [f"teacher_{number}" for number in range(1, 12)]
    for asked in ("2", "teacher_2", "timm/vit_tiny", "vit_tiny"):
        assert choose_projector(kept, asked, option="--space", student="s").width == 2, asked
    for asked, told in (("teacher", "got teacher: say which"), ("teacher_20", "did you mean 'teacher_2'")):
        with pytest.raises(Refusal, match=f"expected one of the teachers of s, .*{told}"):
            choose_projector(kept, asked, option="--space", student="s")


def test_two_teachers_with_one_last_name_are_told_apart(tmp_path: Path) -> None:
    """Tables are often called alike: of moco/table and dino/table the first would be taken, without a word."""
    for number, spec in enumerate(("moco/table", "dino/table"), 1):
        about = About(Shape((5, number)), "teacher", spec)
        save_projector(about.shape.build(), tmp_path / f"projector_{number}.safetensors", about)
    kept = load_projectors(tmp_path)
    assert choose_projector(kept, "dino/table", option="--space", student="s").width == 2
    with pytest.raises(Refusal, match=r"teacher_1 \(moco/table\), teacher_2 \(dino/table\), got table: say which"):
        choose_projector(kept, "table", option="--space", student="s")


def test_a_projector_into_a_space_of_its_own_is_no_teachers(tmp_path: Path) -> None:
    """2q's rows behind a projector would be written as rows of the teacher's space."""
    about = About(Shape((5, 9)), "own", "runs/dino")
    save_projector(about.shape.build(), tmp_path / "projector.safetensors", about)
    with pytest.raises(Refusal, match=r"expected a student with a projector .* leads to a space of its own"):
        choose_projector(load_projectors(tmp_path), "teacher", option="--space", student="s")
