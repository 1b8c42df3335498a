"""A Python callable as a teacher: the pixels it is given, what is known again, and what is refused."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress_ssl.encoder import costs, open_encoder
from compress_ssl.folded import folded
from compress_ssl.refusal import Refusal
from compress_ssl.weights import weights_digest

GIVEN = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def encode(images):
        assert images.dtype == torch.uint8
        return model(images / 255)

    encode.size = 16

    def brightest(images):
        return images.double().flatten(2).amax(dim=2)

    class Encoder:
        size, width, crop_fraction = 12, 7, 1.0
        def __init__(self):
            self.model = model
        def __call__(self, images):
            return self.model(images.float()).bfloat16()

    encoder = Encoder()
    method = encoder.__call__
    PI = 3.14
"""


def pixels(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the current folder; returns its name, another for each text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    count = iter(range(100))

    def write(text: str, name: str | None = None) -> str:
        name = name or f"teacher_of_{tmp_path.name.replace('-', '_')}_{next(count)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        return name

    return write


def test_a_callable_is_given_the_pixels_and_its_rows_are_taken(module) -> None:
    """Pixels normalised on the way would be normalised twice, and no score says so."""
    name = module(GIVEN)
    opened = open_encoder(f"python/{name}:encode", weights="pretrained")
    own = sys.modules[name]
    assert opened.preprocessing.size == 16
    assert opened.width == 7
    with torch.no_grad():
        assert torch.equal(opened(pixels(5, 16)), own.encode(pixels(5, 16)))
        assert opened(pixels(5, 16)).dtype == torch.float32
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    seen: list[Tensor] = []
    opened.backbone.function = lambda images: (seen.append(images), own.encode(images))[1]  # type: ignore[assignment]
    opened(every)
    assert torch.equal(seen[0], every), "all 256 values arrive as they are"


def test_objects_methods_and_plain_functions_are_callables_too(module) -> None:
    """A person's encoder is often an object; another works in float64 and has no weights at all."""
    name = module(GIVEN)
    for written, size in (("encoder", 12), ("method", 16), ("brightest", 224)):
        opened = open_encoder(f"python/{name}:{written}", weights="pretrained", size=size)
        assert opened(pixels(3, size)).dtype == torch.float32, written
    assert open_encoder(f"python/{name}:encoder", weights="pretrained").preprocessing.crop_fraction == 1.0


def test_modules_that_it_names_are_frozen_counted_and_known_again(module) -> None:
    """A model left in training mode would make rows that depend on their batch; new weights would pass for the old."""
    name = module(GIVEN)
    opened = open_encoder(f"python/{name}:encode", weights="pretrained")
    own = sys.modules[name]
    assert not own.model.training
    assert costs(opened) == {"parameters": 3 * 7 * 9 + 3 * 7, "multiply_adds": 3 * 7 * 9 * 14 * 14}
    before = weights_digest(opened)
    with torch.no_grad():
        own.model[0].bias += 1
    assert weights_digest(opened) != before
    assert costs(open_encoder(f"python/{name}:brightest", weights="pretrained", size=8)) == {
        "parameters": None, "multiply_adds": None,
    }  # fmt: skip


def test_a_change_of_its_file_is_another_identity(module) -> None:
    """A run resumed with another line in the function would mix two teachers."""
    name = module(GIVEN)
    one = weights_digest(open_encoder(f"python/{name}:brightest", weights="pretrained", size=8))
    again = weights_digest(open_encoder(f"python/{name}:brightest", weights="pretrained", size=8))
    module(GIVEN.replace("amax(dim=2)", "amin(dim=2) + 1"), name)
    other = weights_digest(open_encoder(f"python/{name}:brightest", weights="pretrained", size=8))
    assert one == again != other


def test_folding_leaves_a_callable_as_it_is(module) -> None:
    """A copy of its modules is not what the function calls: folding half of it would be another teacher."""
    name = module(GIVEN)
    for written in ("encode", "encoder"):
        opened = open_encoder(f"python/{name}:{written}", weights="pretrained", size=16)
        with torch.no_grad():
            torch.testing.assert_close(folded(opened, pixels(2, 16))(pixels(3, 16)), opened(pixels(3, 16)))


def test_a_module_that_cannot_be_copied_is_a_teacher_all_the_same(module) -> None:
    """Locks and connections are what people's objects hold."""
    name = module("""
        import threading
        from torch import nn
        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.lock = nn.BatchNorm2d(3), threading.Lock()
            def forward(self, images):
                return self.norm(images.float()).mean(dim=(2, 3))
        encode = Encoder()
    """)
    opened = open_encoder(f"python/{name}:encode", weights="pretrained", size=8).requires_grad_(False)
    assert folded(opened, pixels(2, 8)) is opened


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def encode(images): return images.float()", r"got \(2, 3, 224, 224\) torch.float32: mend it"),
        ("def encode(images): return images.float().flatten(1).mean(0, keepdim=True)", r"got \(1, 150528\)"),
        ("def encode(images): return images.flatten(1)", "got .*torch.uint8"),
        ("def encode(images): return images.numpy()", "got ndarray: return a torch tensor"),
        ("def encode(images): return images.flatten(1) / 0.0", "got NaN or infinity: mend it$"),
        ("def encode(images): return 1 / 0", r"ZeroDivisionError in \S+\.py, line 1: division by zero: mend it$"),
        ("def encode(images): return images.float().flatten(1)\nencode.width = 5", "its attribute `width`, 5, got 15"),
        ("def encode(images): return images\nencode.size = 'big'", "whole number of pixels as the size"),
        ("def encod(images): return images", "got 'encode': did you mean 'encod'"),
        ("encode = 3", "got encode of type int: write"),
        ("class encode: pass", "got the class encode: write `encode = encode"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all': mend it"),
        ("def encode(images:", "SyntaxError"),
    ],
    ids=lambda value: value.splitlines()[0][:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_cannot_embed_is_refused_at_once(body: str, told: str, module) -> None:
    """It would fail, or worse not fail, after the images were read and an hour was spent."""
    with pytest.raises(Refusal, match=told):
        open_encoder(f"python/{module(body)}:encode", weights="pretrained")


@pytest.mark.usefixtures("module")
def test_where_a_module_is_looked_for_is_said() -> None:
    """`compress-ssl` is a program: nobody knows which folder it imports from."""
    with pytest.raises(Refusal, match="No module named 'nobody': run from its folder, or put that on PYTHONPATH"):
        open_encoder("python/nobody.here:encode", weights="pretrained")
    for half in ("python/nobody", "python/:encode", "python/nobody:"):
        with pytest.raises(Refusal, match=r"expected python/MODULE.PATH:FUNCTION, got .*write the missing part"):
            open_encoder(half, weights="pretrained")


def test_a_callable_is_no_student(module) -> None:
    """Nothing could write it into the run folder."""
    with pytest.raises(Refusal, match="a Python callable, whose code is not ours to save: name it as the teacher"):
        open_encoder(f"python/{module(GIVEN)}:encode", weights="random")
