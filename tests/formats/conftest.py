"""Checkpoints built to published layouts, and how a format's test contributes its own.

Every `test_*.py` in this folder may have two functions without arguments, called once, when tests are collected:

    layouts() -> dict[str, Callable[[], content]]
        "FORMAT: what it is" -> makes a checkpoint as `weights.read_checkpoint` would return it, of a layout that no
        other format may claim: recognised without its format's name.
    plain_layouts() -> the same
        layouts that say nothing of their authors (a bare ResNet): read as FORMAT when the user names it; without, they
        are recognised as another format, or refused with FORMAT among those that it could be.

The part before the colon is the name of the format's file. test_formats.py holds every layout against every format, so
tensors should be small and few: shapes in proportion are enough, for nothing is loaded there. That a loaded file gives
its authors' features is the format's own test.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Content = Callable[[], Any]


def collect(function: str) -> dict[str, Content]:
    """The layouts of every test file here, by name."""
    found: dict[str, Content] = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if f"def {function}(" not in file.read_text():
            continue
        spec = importlib.util.spec_from_file_location(f"layouts_of_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, make in getattr(module, function)().items():
            assert name not in found, f"{file.name}: {name!r} is taken"
            found[name] = make
    return found


@pytest.fixture
def layout_names() -> list[str]:
    return [*collect("layouts"), *collect("plain_layouts")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`published_layout` and `plain_layout` run over all of them; each is (format, content)."""
    for fixture, function in (("published_layout", "layouts"), ("plain_layout", "plain_layouts")):
        if fixture in metafunc.fixturenames:
            found = collect(function)
            metafunc.parametrize(
                fixture, [(name.partition(":")[0], make) for name, make in found.items()], ids=list(found)
            )
